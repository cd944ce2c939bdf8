"""The settings of a run, from the config outside of what the decision covers."""

from tpinit.runtime.settings.reader import check_section, read_settings
from tpinit.runtime.settings.schema import (
    Averaging,
    BatchSizes,
    Checks,
    ComponentSettings,
    LossScaling,
    Note,
    Settings,
)

__all__ = [
    "Averaging",
    "BatchSizes",
    "Checks",
    "ComponentSettings",
    "LossScaling",
    "Note",
    "Settings",
    "check_section",
    "read_settings",
]
