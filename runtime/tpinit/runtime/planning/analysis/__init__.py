"""What the planner reads of a model: linears, data flow, dropout, equal layers."""
