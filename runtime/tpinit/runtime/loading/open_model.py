"""Models on the meta device, with the source of their weights: a directory, a transformers config or a function."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.reference.spellings import show
from tpinit.runtime.errors import LoadError
from tpinit.runtime.groups.agreement import flatten
from tpinit.runtime.internals.transformers_private import (
    causal_lm_class,
    missing_keys_to_ignore,
    pretrained_model,
    unexpected_keys_to_ignore,
)
from tpinit.runtime.loading.key_mapping import KeyMapping, map_keys
from tpinit.runtime.loading.meta_device import build_on_meta_device
from tpinit.runtime.loading.meta_init import MetaModel, build_meta_model
from tpinit.runtime.loading.safetensors_dir import SafetensorsDir, open_safetensors_dir, read_json, shorten
from tpinit.runtime.loading.weight_loading import WeightSource

__all__ = ["build_without_weights", "model_class_of", "open_config", "open_pretrained", "read_config"]

_FLOATS = ("F64", "F32", "F16", "BF16")


# --- from a directory ------------------------------------------------------------------------------------


def open_pretrained(directory: Path, model_class: type[nn.Module] | None, model_config: Any) -> WeightSource:
    """Return the model of a `save_pretrained` directory on the meta device, with its files open.

    `model_class` and `model_config` replace what the directory's config.json says. Raises LoadError.
    """
    checkpoint = open_safetensors_dir(directory)
    try:
        config = model_config if model_config is not None else read_config(directory)
        meta_model = build_without_weights(config, model_class)
        fields = {**checkpoint.files, **_config_fields(config), **_set_generation_config(meta_model.model, directory)}
        mapping = map_keys(meta_model.model, checkpoint.tensors)
        _check_mapping(meta_model.model, mapping, checkpoint)
        meta_model.fill_buffers(list(mapping.tensors))
    except BaseException:
        checkpoint.close()
        raise
    return WeightSource(meta_model, mapping.tensors, checkpoint, fields)


def _set_generation_config(model: Any, directory: Path) -> dict[str, object]:
    """Give a model that generates the defaults of its directory; return them as fields that ranks compare."""
    own = getattr(model, "generation_config", None)
    if own is None or not (directory / "generation_config.json").exists():
        return {}
    try:
        read_json(directory / "generation_config.json")
        model.generation_config = type(own).from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LoadError(
            f"{directory}/generation_config.json can't be read: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return flatten(model.generation_config.to_dict(), "generation_config")


def _config_fields(config: Any) -> dict[str, object]:
    """Return a config as fields that ranks compare, without the path it was read from: that may differ."""
    page = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
    return flatten(page, "model_config")


def read_config(directory: Path) -> Any:
    """Return the transformers config of a directory. Raises LoadError."""
    from transformers import AutoConfig

    if not (directory / "config.json").exists():
        raise LoadError(f"{directory} has no config.json: give the directory that save_pretrained wrote")
    try:
        page = read_json(directory / "config.json")
        if not isinstance(page, dict):
            raise ValueError(f"it holds a {type(page).__name__}")
        if "auto_map" in page:
            raise LoadError(
                f"{directory}/config.json asks for code of its own (auto_map), which is not run: give model_class"
            )
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"{directory}/config.json can't be read: {type(error).__name__}: {error}") from error


def build_without_weights(config: Any, model_class: type[nn.Module] | None = None) -> MetaModel:
    """Return the model of a transformers config with its large parameters on the meta device. Raises LoadError.

    The buffers of a transformers model are real; those of another class are computed by `fill_buffers`.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise LoadError("the model is quantized (quantization_config), and quantized weights are not trained here")
    kind: Any = model_class if model_class is not None else model_class_of(config)
    base = pretrained_model()

    def build() -> Any:
        return kind(config)

    if base is not None and inspect.isclass(kind) and issubclass(kind, base):
        model = build_on_meta_device(build)
        if model is not None:
            return MetaModel(model)
    return build_meta_model(build)


def model_class_of(config: Any) -> type[nn.Module]:
    """Return the class that a transformers config names, else its causal language model. Raises LoadError."""
    import transformers

    names = getattr(config, "architectures", None) or []
    found = getattr(transformers, names[0], None) if names else causal_lm_class(config)
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        reason = f"the config names {names[0]}" if names else f"a {type(config).__qualname__} names no class"
        raise LoadError(f"{reason}, which this transformers does not have: give model_class")
    return found


def _check_mapping(model: nn.Module, mapping: KeyMapping, checkpoint: SafetensorsDir) -> None:
    """Raise LoadError, with all problems at once, unless the stored tensors are those of the model.

    Warns of stored tensors that the model does not use.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems: list[str] = []
    missing = _missing_names(model, mapping, set(shapes))
    if missing:
        problems.append(f"the checkpoint lacks {shorten(missing)}")
    for name, tensor in mapping.tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name} is stored as {list(tensor.shape)}, and the model has {list(shapes[name])}")
    quantized = [
        key
        for key, dtype in checkpoint.dtypes.items()
        if dtype not in _FLOATS and key not in mapping.unused and (dtype.startswith("F8") or key.endswith("weight"))
    ]
    if quantized:
        dtype = checkpoint.dtypes[quantized[0]]
        problems.append(f"{shorten(quantized)}: stored as {dtype}, which is quantized")
    if problems:
        raise LoadError(
            f"the checkpoint is not one of a {type(model).__qualname__} with this config:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    ignored = [*unexpected_keys_to_ignore(model), r"rotary_emb\.inv_freq", "position_ids"]
    unused = [name for name in mapping.unused if not _matches(name, ignored)]
    if unused:
        warnings.warn(
            f"a {type(model).__qualname__} has no place for {shorten(unused)} of the checkpoint", stacklevel=7
        )


def _missing_names(model: nn.Module, mapping: KeyMapping, state_names: set[str]) -> list[str]:
    """Return the parameters, tied names counted as one, and the persistent buffers that the checkpoint lacks."""
    tied_names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied_names.setdefault(id(parameter), []).append(name)
    missing = [names[0] for names in tied_names.values() if not any(name in mapping.tensors for name in names)]
    persistent_buffers = state_names - {name for names in tied_names.values() for name in names}
    ignored = missing_keys_to_ignore(model)
    return missing + [
        name for name in sorted(persistent_buffers) if name not in mapping.tensors and not _matches(name, ignored)
    ]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


# --- from a seed -----------------------------------------------------------------------------------------


def open_config(model_config: Any, model_class: type[nn.Module] | None, seed: int) -> WeightSource:
    """Return the model of a config, or of a function that builds one, to be drawn from `seed`. Raises LoadError."""
    build: Callable[[], nn.Module]
    if hasattr(model_config, "to_dict"):
        kind: Any = model_class if model_class is not None else model_class_of(model_config)
        origin = {**_config_fields(model_config), "model_class": kind.__qualname__}

        def build() -> nn.Module:
            built: nn.Module = kind(model_config)
            return built

    elif callable(model_config):
        build, origin = model_config, {}
    else:
        raise TpinitError(
            f"model_config is {show(model_config)}, and must be a transformers config or a function that builds a model"
        )
    meta_model = build_meta_model(build, seed)
    if not isinstance(meta_model.model, nn.Module):
        raise TpinitError(f"the function returned {show(meta_model.model)}, and must return a torch.nn.Module")
    meta_model.check_drawn()
    meta_model.fill_buffers()
    return WeightSource(meta_model, origin={**origin, "seed": seed})
