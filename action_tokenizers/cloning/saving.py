"""Write and read small networks: sizes as JSON, weights as safetensors, checked on the way in."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from torch import nn

from action_tokenizers.errors import FormatError
from action_tokenizers.folder import write_folder

__all__ = ["SizedModule", "fill", "read", "write"]

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


class SizedModule(nn.Module):
    """A network that a few integers decide: `cls(**sizes)` makes one, and all else are its tensors.

    Args:
        name: of its files, `name.json` and `name.safetensors`; given as `class Net(SizedModule, name="net")`.
    """

    file_name: ClassVar[str]
    sizes: dict[str, int]

    def __init_subclass__(cls, *, name: str, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.file_name = name

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write sizes and tensors into `folder`, beside other files if wanted, and return its absolute path.

        Raises:
            OSError: it cannot be written.
        """
        return write(folder, self.file_name, {"sizes": self.sizes}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the network as `save_pretrained` wrote it.

        Raises:
            FormatError: a file is missing or not as it was written.
        """
        config, tensors = read(folder, cls.file_name, {"sizes"})
        try:
            module = cls(**config["sizes"])
        except (TypeError, ValueError) as error:
            raise FormatError(
                f"expected sizes of a {cls.__name__} in {folder}/{cls.file_name}.json, got {error}"
            ) from error
        fill(module, module.state_dict(), tensors, cls.file_name)
        return module.eval()
