"""`tp_model_init` and `initialize`: read the config, decide, plan, compare the ranks, apply the plan."""
