"""Shared by the scripts in this folder: a tiny Llama, plain SGD, groups, and one line of output per rank.

Run a script with a Python that has DeepSpeed, for example:

    DS_ACCELERATOR=cpu torchrun --nproc-per-node 4 two_models.py
"""

import copy
import sys

import deepspeed
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

deepspeed.init_distributed(verbose=False)
torch.set_num_threads(1)
RANK, WORLD = dist.get_rank(), dist.get_world_size()
CONFIG = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0}
torch.manual_seed(0)
_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
MODEL = LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=4, vocab_size=32, initializer_range=0.15))


def model():
    """Return a copy of the model, in fp32, the same on every rank."""
    return copy.deepcopy(MODEL)


def start(net, config, **more):
    """Return the engine for a model."""
    sgd = torch.optim.SGD(net.parameters(), lr=0.5)
    return deepspeed.initialize(model=net, optimizer=sgd, config=config, **more)[0]


def tell(text):
    """Print one line for this rank."""
    sys.stdout.write(f"rank {RANK}: {text}\n")
    sys.stdout.flush()


def attempt(what, function):
    """Call the function, print its result or exception, and return its result."""
    try:
        value = function()
    except Exception as error:
        tell(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:130] or '(no message)'}")
        return None
    tell(f"{what}: {describe(value) if hasattr(value, 'module') else value}")
    return value


def describe(engine):
    """Say how q_proj (16 x 16 when whole) was cut, and in which dtype it is."""
    weight = dict(engine.module.named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    return f"an engine, q_proj {tuple(weight.shape)} in {str(weight.dtype).removeprefix('torch.')}"


def batch(seed):
    """Return one sample of 8 tokens."""
    tokens = torch.randint(0, 32, (1, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "labels": tokens}


def train(engine, seeds):
    """Do one update per entry of `seeds`; return the largest error of the final norm's weight from the unsharded model.

    `seeds` holds for each update the seeds of the batches of all ranks.
    """
    whole = model()
    sgd = torch.optim.SGD(whole.parameters(), lr=0.5)
    for step in seeds:
        engine.backward(engine(**batch(step[RANK])).loss)
        engine.step()
        loss = sum(whole(**batch(seed)).loss for seed in sorted(set(step))) / len(set(step))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    norm = "model.norm.weight"  # replicated, so every rank has the full weight
    return float((dict(engine.module.named_parameters())[norm] - dict(whole.named_parameters())[norm]).abs().max())


def group(partition):
    """Make all groups on every rank and return this rank's group."""
    made = [(ranks, dist.new_group(ranks)) for ranks in partition]
    return next(one for ranks, one in made if RANK in ranks)


class Mpu:
    """A model-parallel unit over the given groups."""

    def __init__(self, tensor, data):
        tp, dp = group(tensor), group(data)
        self.get_model_parallel_group = lambda: tp
        self.get_model_parallel_rank = lambda: dist.get_rank(tp)
        self.get_model_parallel_world_size = lambda: dist.get_world_size(tp)
        self.get_data_parallel_group = lambda: dp
        self.get_data_parallel_rank = lambda: dist.get_rank(dp)
        self.get_data_parallel_world_size = lambda: dist.get_world_size(dp)
