"""`tp_model_init` and `initialize`: read, decide, plan, agree, apply."""
