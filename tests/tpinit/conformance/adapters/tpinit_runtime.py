"""Our own runtime in real processes, through the same adapter as DeepSpeed.

To the kit it is `py: tpinit.conformance.adapters.tpinit_runtime:adapter`.
"""

from __future__ import annotations

import sys

from tpinit.conformance.adapters.deepspeed.adapter import RankServerAdapter

__all__ = ["adapter"]

# The runtime that is installed beside this kit. Nothing is started before `start`.
adapter = RankServerAdapter("tpinit", lambda: sys.executable, meshes=True)
