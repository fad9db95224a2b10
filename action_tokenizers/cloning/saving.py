"""Write and read small networks: sizes as JSON, weights as safetensors, checked on the way in."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from action_tokenizers.errors import FormatError
from action_tokenizers.folder import write_folder

__all__ = ["fill", "read", "write"]

FORMAT_VERSION = 1


def write(
    folder: str | os.PathLike[str], name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Path:
    """Write `name.json` and `name.safetensors` into `folder`, all or none, and return its absolute path.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2, sort_keys=True) + "\n"
    weights = safetensors.torch.save({key: tensor.contiguous().cpu() for key, tensor in tensors.items()})
    return write_folder(folder, {f"{name}.safetensors": weights, f"{name}.json": text.encode()}, ours=())


def read(folder: str | os.PathLike[str], name: str, keys: set[str]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the tensors that `write` left, once the config has exactly these keys.

    Raises:
        FormatError: a file is missing, damaged or of a newer version.
    """
    path = Path(folder)
    try:
        config = json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
        tensors = safetensors.torch.load((path / f"{name}.safetensors").read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise FormatError(f"expected {name}.json and {name}.safetensors in {path}, got {error}") from error
    version = config.pop("format_version", None) if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise FormatError(f"expected format_version {FORMAT_VERSION} in {path / name}.json, got {version!r}; upgrade")
    if set(config) != keys:
        raise FormatError(f"expected the keys {sorted(keys)} in {path / name}.json, got {sorted(config)}")
    return config, tensors


def fill(module: nn.Module, own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Put `tensors` into the tensors `own` of `module`, which must be the same in name and shape.

    Raises:
        FormatError: they are not, or hold NaN or inf.
    """
    shapes = [{key: tuple(tensor.shape) for key, tensor in some.items()} for some in (own, tensors)]
    if shapes[0] != shapes[1]:
        differing = sorted(key for key, _ in set(shapes[0].items()) ^ set(shapes[1].items()))
        raise FormatError(f"expected the tensors that the sizes in {name}.json ask for, got others: {differing}")
    if bad := sorted(key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())):
        raise FormatError(f"expected finite weights in {name}.safetensors, got NaN or inf in {bad}")
    module.load_state_dict(dict(tensors), strict=False)
