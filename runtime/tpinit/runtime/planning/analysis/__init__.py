"""Analysis of a model before it is partitioned: linear layers, data flow, dropout, similar layers."""
