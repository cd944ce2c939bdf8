"""Models without numbers: built from a directory, a transformers config or a function, their weights still to come."""

from __future__ import annotations

import inspect
import json
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
from tpinit.runtime.loading.key_mapping import KeyMapping, map_keys
from tpinit.runtime.loading.meta_init import MetaModel, build_meta_model
from tpinit.runtime.loading.safetensors_dir import SafetensorsDir, open_safetensors_dir, shorten
from tpinit.runtime.loading.weight_loading import WeightSource

__all__ = ["build_without_numbers", "model_class_of", "open_config", "open_pretrained"]

_FLOATS = ("F64", "F32", "F16", "BF16")


# --- from a directory ------------------------------------------------------------------------------------


def open_pretrained(folder: Path, model_class: type[nn.Module] | None, model_config: Any) -> WeightSource:
    """Return the model of a `save_pretrained` directory on the meta device, with its files opened. Raises LoadError."""
    stored = open_safetensors_dir(folder)
    try:
        settings = model_config if model_config is not None else _config_of(folder)
        blank = build_without_numbers(settings, model_class)
        named = map_keys(blank.model, stored.leaves)
        _check(blank.model, named, stored)
        blank.fill_buffers(list(named.found))
    except BaseException:
        stored.close()
        raise
    return WeightSource(blank, dict(named.found), stored, {**stored.files, **_config_fields(settings)})


def _config_fields(settings: Any) -> dict[str, object]:
    """Return the values of a transformers config by path, without its origin, which may differ between machines."""
    page = {key: value for key, value in settings.to_dict().items() if key != "_name_or_path"}
    return flatten(page, "model_config")


def _config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").exists():
        raise LoadError(f"{folder} has no config.json: give the directory that save_pretrained wrote")
    try:
        page = json.loads((folder / "config.json").read_bytes())
        if "auto_map" in page:
            raise LoadError(
                f"{folder}/config.json asks for code of its own (auto_map), which is not run: give model_class"
            )
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{folder}/config.json can't be read: {type(error).__name__}: {error}") from error


def build_without_numbers(settings: Any, model_class: type[nn.Module] | None = None) -> MetaModel:
    """Return the model of a transformers config with its parameters on the meta device. Raises LoadError."""
    if getattr(settings, "quantization_config", None) is not None:
        raise LoadError("the model is quantized (quantization_config), and quantized weights are not trained here")
    kind: Any = model_class if model_class is not None else model_class_of(settings)
    return build_meta_model(lambda: kind(settings))


def model_class_of(settings: Any) -> type[nn.Module]:
    """Return the class that a transformers config names, else its causal language model. Raises LoadError."""
    import transformers

    names = getattr(settings, "architectures", None) or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None and not names:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(settings), None)
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        said = f"the config names {names[0]}" if names else f"a {type(settings).__qualname__} names no class"
        raise LoadError(f"{said}, which this transformers does not have: give model_class")
    return found


def _check(model: nn.Module, named: KeyMapping, stored: SafetensorsDir) -> None:
    """Raise LoadError, with everything that is wrong at once, unless the stored tensors are the model's."""
    problems: list[str] = []
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    missing = [every[0] for every in names.values() if not any(name in named.found for name in every)]
    kept = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    persistent = set(shapes) - {name for every in names.values() for name in every}
    missing += [name for name in sorted(persistent) if name not in named.found and not _ignored(name, kept)]
    if missing:
        problems.append(f"the checkpoint lacks {shorten(missing)}")
    for name, source in named.found.items():
        if tuple(source.shape) != shapes[name]:
            problems.append(f"{name} is stored as {list(source.shape)}, and the model has {list(shapes[name])}")
    strange = [
        key
        for key, dtype in stored.dtypes.items()
        if dtype not in _FLOATS and key not in named.unused and (dtype.startswith("F8") or key.endswith("weight"))
    ]
    if strange:
        problems.append(f"{shorten(strange)}: stored as {stored.dtypes[strange[0]]}, which is quantized")
    if problems:
        raise LoadError(
            f"the checkpoint is not one of a {type(model).__qualname__} with this config:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    dropped = [
        *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
        r"rotary_emb\.inv_freq",
        "position_ids",
    ]
    unused = [name for name in named.unused if not _ignored(name, dropped)]
    if unused:
        warnings.warn(
            f"a {type(model).__qualname__} has no place for {shorten(unused)} of the checkpoint", stacklevel=7
        )


def _ignored(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


# --- from a seed -----------------------------------------------------------------------------------------


def open_config(model_config: Any, model_class: type[nn.Module] | None, seed: int) -> WeightSource:
    """Return the model of a config, or of a function that builds one, to be drawn from `seed`. Raises LoadError."""
    build: Callable[[], nn.Module]
    if hasattr(model_config, "to_dict"):
        kind: Any = model_class if model_class is not None else model_class_of(model_config)
        compared = {**_config_fields(model_config), "model_class": kind.__qualname__}

        def build() -> nn.Module:
            built: nn.Module = kind(model_config)
            return built

    elif callable(model_config):
        build, compared = model_config, {}
    else:
        raise TpinitError(
            f"model_config is {show(model_config)}, and must be a transformers config or a function that builds a model"
        )
    blank = build_meta_model(build, seed)
    if not isinstance(blank.model, nn.Module):
        raise TpinitError(f"the function returned {show(blank.model)}, and must return a torch.nn.Module")
    blank.check_drawn()
    blank.fill_buffers()
    return WeightSource(blank, compared={**compared, "seed": seed})
