"""Where a plan comes from: partition_config, presets, transformers' tp_plan, a user's plan."""
