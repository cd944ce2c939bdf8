"""The parallel modules and their collectives."""

from tpinit.runtime.layers.collectives import copy_to_group, sum_over_group
from tpinit.runtime.layers.linear import ColumnLinear, RowLinear, enter_region, make_column, make_row

__all__ = ["ColumnLinear", "RowLinear", "copy_to_group", "enter_region", "make_column", "make_row", "sum_over_group"]
