"""One training step as plain data: what a model computes, and what its ranks send.

`record_whole` and `record_rank` return a `tpinit.step.graph.Graph`; `Recorder` records anything else.
"""

from tpinit.runtime.recording.equal_world import equal_world
from tpinit.runtime.recording.errors import RecordError
from tpinit.runtime.recording.places import module_paths
from tpinit.runtime.recording.ranks import LayoutClaim, adamw, layout_claims, record_rank, record_whole
from tpinit.runtime.recording.recorder import LeafNames, Recorder

__all__ = [
    "LayoutClaim",
    "LeafNames",
    "RecordError",
    "Recorder",
    "adamw",
    "equal_world",
    "layout_claims",
    "module_paths",
    "record_rank",
    "record_whole",
]
