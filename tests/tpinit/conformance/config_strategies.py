"""Hypothesis strategies for DeepSpeed configs: every spelling of a meaning, and every kind of mistake.

Derived from the contract (section 5) and from the settings that DeepSpeed accepts in a `tensor_parallel` section, not
from the reader that they test. Needs Hypothesis (the extra `conformance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from tpinit.conformance._draw import BOOLS, maybe, pick, shuffled
from tpinit.spec.vocabulary import DType, Group, Section

__all__ = [
    "DTYPE_SPELLINGS",
    "MalformedConfig",
    "FakeProcessGroup",
    "configs",
    "malformed_configs",
    "reordered",
    "spellings_of",
]

Config = dict[str, Any]

# The spellings of D8.
DTYPE_SPELLINGS: dict[DType, tuple[str, ...]] = {
    DType.FP32: ("fp32", "float32", "float", "torch.fp32", "torch.float32", "torch.float"),
    DType.FP16: ("fp16", "float16", "half", "torch.fp16", "torch.float16", "torch.half"),
    DType.BF16: ("bf16", "bfloat16", "torch.bf16", "torch.bfloat16"),
}

_ABSENT = (None, "auto")  # values of a field that mean the same as a missing field (D3)


@dataclass(frozen=True, slots=True, eq=False)
class FakeProcessGroup:
    """A process group object in a config: equal only to itself, with a size in ranks."""

    ranks: int

    def size(self) -> int:
        """Return the number of ranks."""
        return self.ranks


@dataclass(frozen=True, slots=True)
class MalformedConfig:
    """A config with exactly one defect, and the dotted paths that an error about it may name.

    Most defects have one path. If two keys contradict each other (D6), `paths` has the paths of both.
    """

    config: Config
    paths: tuple[str, ...]

    @property
    def path(self) -> str:
        """The first of the paths."""
        return self.paths[0]


_BOOLS = {
    "tp_overlap_comm": False,
    "keep_module_on_host": False,
    "replace_with_kernel_inject": False,
    "kernel_inject": False,
    "vocab_parallel_lm_head": False,
}
_PRESETS = ("llama", "bloom", "chatglm", "mixtral", "deepseek_v2", "qwen2", "phi3")
_SECTION_KEYS = (
    *_BOOLS,
    "autotp_size",
    "dtype",
    "tp",
    "tensor_parallel",
    "partition_config",
    "preset_model",
    "injection_policy_tuple",
    "vocab_parallel_ce_backend",
)
_TP_KEYS = ("tp_size", "tp_grain_size", "mpu", "tp_group")


@st.composite
def configs(draw: DrawFn, process_groups: bool = False) -> Config:
    """Well-formed DeepSpeed configs as plain JSON data: with or without a section, in every spelling.

    With `process_groups` a section may also hold a group object (`FakeProcessGroup`), which JSON can't express.
    """
    section = None
    if draw(BOOLS):
        group = None
        if process_groups and draw(BOOLS):
            group = Group(0, 2, FakeProcessGroup(2))
        section = Section(draw(_NUMBERS), draw(_NUMBERS), maybe(draw, list(DType)), group)
    return _spelling(draw, section, pick(draw, (None, DType.BF16, DType.FP16)))


@st.composite
def spellings_of(draw: DrawFn, section: Section | None, precision: DType | None) -> Config:
    """Configs that mean exactly this section and this precision, in every legal spelling.

    A group is written as the object in its `handle`, ranks as a list. `carried` is ignored: a config may also hold any
    other legal setting. Raises ValueError for precision fp32, which a config can't express (D6).
    """
    if precision is DType.FP32:
        raise ValueError("a config can't express precision fp32: without bf16 and fp16 it is unset (D6)")
    return _spelling(draw, section, precision)


@st.composite
def reordered(draw: DrawFn, config: Mapping[str, Any]) -> Config:
    """The same config with the keys of every nested object in any order. Values that are not objects are shared."""
    result: Config = _reordered(draw, config)
    return result


def _reordered(draw: DrawFn, value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _reordered(draw, value[key]) for key in shuffled(draw, list(value))}
    if isinstance(value, list):
        return [_reordered(draw, item) for item in value]
    return value


def _spelling(draw: DrawFn, section: Section | None, precision: DType | None) -> Config:
    config: Config = draw(_OUTSIDE)
    for key, dtype in (("bf16", DType.BF16), ("fp16", DType.FP16)):
        block = pick(draw, _ENABLED if precision is dtype else _NOT_ENABLED)
        if block is not None:
            config[key] = block
    if section is not None:
        config["tensor_parallel"] = _spelled_section(draw, section)
    elif draw(BOOLS):
        config["tensor_parallel"] = None  # D1: null means absent
    result: Config = _reordered(draw, config)
    return result


def _spelled_section(draw: DrawFn, section: Section) -> Config:
    spelled: Config = draw(_DECIDES_NOTHING)
    tp: Config = {"tp_grain_size": 64} if draw(BOOLS) else {}
    dtype = section.dtype and pick(draw, DTYPE_SPELLINGS[section.dtype])
    handle = section.tp_group and section.tp_group.handle
    group = list(handle) if isinstance(handle, tuple) else handle
    for block, key, value in (
        (spelled, "autotp_size", section.autotp_size),
        (spelled, "dtype", dtype),
        (tp, "tp_size", section.tp_size),
        (tp, "tp_group", group),
    ):
        if value is not None:
            block[key] = value
        elif draw(BOOLS):
            block[key] = pick(draw, _ABSENT)
    empty_too = draw(BOOLS)
    if tp or empty_too:
        spelled["tensor_parallel" if draw(BOOLS) else "tp"] = tp
    return spelled


_NUMBERS = st.none() | st.integers(0, 8) | st.integers()
_ENABLED: list[Config | None] = [{"enabled": True}, {"enabled": True, "loss_scale": 0}]
_NOT_ENABLED: list[Config | None] = [None, {"enabled": False}, {}, {"enabled": "auto"}]

# Legal settings beside the section, and settings inside it that the decision does not read (D10). A config gets at most
# two of each kind; a failing example shrinks to none.
_BESIDE: list[Config] = [
    {"train_batch_size": 256, "train_micro_batch_size_per_gpu": 4},
    {"gradient_clipping": 1.0, "steps_per_print": 10},
    {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}}},
    {"zero_optimization": {"stage": 1, "overlap_comm": True}},
]
_ROW_SPEC = {"patterns": [r".*\.o_proj\.weight$", r".*\.down_proj\.weight$"], "partition_type": "row"}
_FUSED_SPEC = {"patterns": [r".*\.gate_up_proj\.weight$"], "shape": [2, -1], "partition_dim": 0}
_BESIDE_SIZE: list[Config] = [
    *({name: value} for name in _BOOLS if name != "kernel_inject" for value in (False, True)),
    {"kernel_inject": True},
    *({"preset_model": name} for name in _PRESETS),
    {"partition_config": {"layer_specs": [_ROW_SPEC]}},
    {"partition_config": {"use_default_specs": False, "layer_specs": [_FUSED_SPEC, _ROW_SPEC]}},
    {"vocab_parallel_ce_backend": "torch"},
    {"vocab_parallel_ce_backend": "liger"},
    {"injection_policy_tuple": ["self_attn.o_proj", "mlp.down_proj"]},
]


def _merged(parts: list[Config]) -> Config:
    return {key: value for part in parts for key, value in part.items()}


def _setting(part: Config) -> str:
    """Return the name of the setting of a part; a setting with two names may be given once."""
    key = next(iter(part))
    return "replace_with_kernel_inject" if key == "kernel_inject" else key


_OUTSIDE = st.lists(st.sampled_from(_BESIDE), max_size=2, unique_by=_setting).map(_merged)
_DECIDES_NOTHING = st.lists(st.sampled_from(_BESIDE_SIZE), max_size=2, unique_by=_setting).map(_merged)


# --- one defect ------------------------------------------------------------------------------------


@st.composite
def malformed_configs(draw: DrawFn) -> MalformedConfig:
    """Configs with exactly one defect: an unknown key, a wrong type or an unknown value, in any part that is read."""
    config = draw(_WELL_FORMED)
    section = config["tensor_parallel"] = config.get("tensor_parallel") or {}
    name = "tensor_parallel" if "tensor_parallel" in section else "tp"
    section.setdefault(name, {})
    return pick(draw, _DEFECTS)(draw, config, name)


def _malformed_value(draw: DrawFn, config: Config, name: str) -> MalformedConfig:
    """Give a field an illegal value (D7, D8)."""
    inside, key = pick(draw, sorted(_NOT_VALUES))
    block, path = _block(config, name, inside)
    if key == "kernel_inject":
        block.pop("replace_with_kernel_inject", None)
    block[key] = draw(_NOT_VALUES[inside, key])
    return MalformedConfig(config, (f"{path}.{key}",))


def _unknown_key(draw: DrawFn, config: Config, name: str) -> MalformedConfig:
    """Add an unknown key (D8) with any value."""
    inside = draw(BOOLS)
    block, path = _block(config, name, inside)
    key = _misspelt(draw, _TP_KEYS if inside else _SECTION_KEYS)
    block[key] = pick(draw, [1, None, "auto", {}])
    return MalformedConfig(config, (f"{path}.{key}",))


def _not_a_block(draw: DrawFn, config: Config, name: str) -> MalformedConfig:
    """Replace an object by a value of another type."""
    key = pick(draw, ["", name, "partition_config"])
    value = pick(draw, [True, False, 0, 2, 1.5, "on", [], [2]])
    if not key:
        config["tensor_parallel"] = value
        return MalformedConfig(config, ("tensor_parallel",))
    config["tensor_parallel"][key] = value
    return MalformedConfig(config, (f"tensor_parallel.{key}",))


def _mpu_inside(draw: DrawFn, config: Config, name: str) -> MalformedConfig:
    """Put an mpu into the config; it is an argument of `initialize` (D11)."""
    block, path = _block(config, name, True)
    block["mpu"] = pick(draw, [{"tp": [0, 1]}, [0, 1], "megatron"])
    return MalformedConfig(config, (f"{path}.mpu",))


def _two_names(draw: DrawFn, config: Config, name: str) -> MalformedConfig:
    """Give one setting under both of its names."""
    section = config["tensor_parallel"]
    first, second = pick(draw, [("tp", "tensor_parallel"), ("replace_with_kernel_inject", "kernel_inject")])
    values: list[Any] = [section.pop(name), {}] if first == "tp" else [True, False]
    section[first], section[second] = shuffled(draw, values)
    return MalformedConfig(config, (f"tensor_parallel.{second}", f"tensor_parallel.{first}"))


def _block(config: Config, name: str, inside: bool) -> tuple[Config, str]:
    """Return the section, or with `inside` its block `name`, and the path of what is returned."""
    section = config["tensor_parallel"]
    return (section[name], f"tensor_parallel.{name}") if inside else (section, "tensor_parallel")


def _malformed_precision(draw: DrawFn, config: Config, name: str) -> MalformedConfig:  # noqa: ARG001 # one signature
    """Enable both precisions (D6), or give one a malformed block."""
    key, other = shuffled(draw, ["bf16", "fp16"])
    kind = pick(draw, ["both", "enabled", "block"])
    if kind == "both":  # D6
        config["bf16"], config["fp16"] = {"enabled": True}, {"enabled": True}
        return MalformedConfig(config, ("bf16", "fp16", "bf16.enabled", "fp16.enabled"))
    config.pop(other, None)
    if kind == "enabled":
        config[key] = {"enabled": pick(draw, ["yes", "true", 2, 1.0, []])}
        return MalformedConfig(config, (f"{key}.enabled",))
    config[key] = pick(draw, [True, "on", 1, ["enabled"]])
    return MalformedConfig(config, (key,))


def _misspelt(draw: DrawFn, legal: tuple[str, ...]) -> str:
    """Draw a misspelling of one of these keys, or an unrelated key."""
    word = pick(draw, legal)
    at = pick(draw, range(len(word)))
    slip = pick(draw, ["double", "capital", "prefix", "other"])
    made = {
        "double": word[:at] + word[at] + word[at:],
        "capital": word.upper(),
        "prefix": f"my_{word}",
        "other": pick(draw, ["sizes", "enabled", "stage"]),
    }[slip]
    return made if made not in legal else f"{made}_"


# D7: integers only, so no bools, no floats (2.0 included) and no digits in quotes.
_NOT_SIZES: SearchStrategy[Any] = (
    st.booleans() | st.sampled_from(["2", "", "two", "Auto", [2], {"size": 2}, 2.0]) | st.floats()
)
_NOT_BOOLS: SearchStrategy[Any] = st.sampled_from(["true", "no", 0, 1, 0.5, [], {}])
_NOT_DTYPES: SearchStrategy[Any] = st.sampled_from(
    ["fp8", "bf61", "float8_e4m3fn", "int8", "torch.", "torch.torch.half", "fp64", 16, 16.0, True, ["bf16"], {}]
)
# Keyed by (whether the key is in `tp`, its name).
_NOT_VALUES: dict[tuple[bool, str], SearchStrategy[Any]] = {
    (False, "autotp_size"): _NOT_SIZES,
    (True, "tp_size"): _NOT_SIZES,
    (True, "tp_grain_size"): _NOT_SIZES,
    (False, "dtype"): _NOT_DTYPES,
    (False, "preset_model"): st.sampled_from(["lama", "gpt-17", "", 3, True, ["llama"]]),
    (False, "vocab_parallel_ce_backend"): st.sampled_from(["tourch", "cuda", "", 1, False]),
    (False, "injection_policy_tuple"): st.sampled_from(["mlp", 3, True]),
    **{(False, name): _NOT_BOOLS for name in _BOOLS},
}
_WELL_FORMED = configs()
_DEFECTS = [_malformed_value, _unknown_key, _not_a_block, _malformed_precision, _mpu_inside, _two_names]
