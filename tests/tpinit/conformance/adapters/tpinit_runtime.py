"""tpinit's own runtime in real processes, through the same adapter as DeepSpeed.

Use it as `tpinit conform --impl 'py: tpinit.conformance.adapters.tpinit_runtime:adapter'`.
"""

from __future__ import annotations

import sys

from tpinit.conformance.adapters.deepspeed.adapter import RankServerAdapter

__all__ = ["adapter"]

# The runtime installed in this environment. `start` starts the processes.
adapter = RankServerAdapter("tpinit", lambda: sys.executable, meshes=True)
