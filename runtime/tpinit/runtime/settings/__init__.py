"""The settings of a run, from the config outside of what the decision covers."""

from tpinit.runtime.settings.reader import check_section, read_settings
from tpinit.runtime.settings.schema import BatchSizes, Checks, ComponentSettings, LossScaling, Settings

__all__ = [
    "BatchSizes",
    "Checks",
    "ComponentSettings",
    "LossScaling",
    "Settings",
    "check_section",
    "read_settings",
]
