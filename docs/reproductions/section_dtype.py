"""2 ranks. tensor_parallel.dtype accepts no name of a dtype, and a torch dtype can't be printed as JSON on rank 0."""

import torch
from tiny import CONFIG, attempt, model, start

for dtype in ("bf16", torch.bfloat16, None):
    section = {"autotp_size": 2, "dtype": dtype}
    attempt(f"dtype {dtype!r}", lambda section=section: start(model(), {**CONFIG, "tensor_parallel": section}))
