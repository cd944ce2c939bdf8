"""The settings of a run, from the config outside of what the decision covers."""

from tpinit.runtime.settings.checks import read_checks
from tpinit.runtime.settings.dtypes import TORCH_DTYPES
from tpinit.runtime.settings.reader import check_section, read_settings
from tpinit.runtime.settings.schema import (
    LARGEST_BUCKET,
    Averaging,
    BatchSizes,
    Checks,
    ComponentSettings,
    LossScaling,
    Note,
    Settings,
)

__all__ = [
    "LARGEST_BUCKET",
    "TORCH_DTYPES",
    "Averaging",
    "BatchSizes",
    "Checks",
    "ComponentSettings",
    "LossScaling",
    "Note",
    "Settings",
    "check_section",
    "read_checks",
    "read_settings",
]
