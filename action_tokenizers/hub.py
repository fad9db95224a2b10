"""A folder <-> a tokenizer: `config.json`, `model.safetensors` and a card; no pickle, no remote code."""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from action_tokenizers.card import model_card
from action_tokenizers.errors import ActionValueError, FormatError, NotFittedError
from action_tokenizers.folder import write_folder
from action_tokenizers.ranges import Range
from action_tokenizers.registry import tokenizer_class

__all__ = ["FORMAT_VERSION", "PretrainedMixin"]

FORMAT_VERSION = 1
CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
# every name this library ever writes: a save replaces them all and keeps whatever else lies in the folder
OURS = (
    CONFIG,
    TENSORS,
    CARD,
    "processor_config.json",
    "processing_action_tokenizer.py",
    "vocabulary.json",
    "tokenizer.json",
    "audit.json",
)
MOST_CONFIG_BYTES = 16 << 20
MOST_TENSOR_BYTES = 8 << 30
MOST_CHUNK_VALUES = 1 << 26
KEYS = {"model_type", "tokenizer_type", "format_version", "params", "fitted", "provenance", "sha256"}
Shapes = Mapping[str, tuple[int, ...]]
FACTS = {"horizon", "action_dim", "vocab_size", "max_tokens", "pad_id", "range_keys", "sizes"}


class PretrainedMixin:
    """`save_pretrained` and `from_pretrained` for tokenizers."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the tokenizer to `folder`, all files at once or none.

        Files of an older save are replaced, files that are not ours are kept. Equal tokenizers give equal bytes.

        Raises:
            NotFittedError: not fitted.
            ActionValueError: a parameter that JSON cannot hold.
            OSError: the folder cannot be written.
        """
        if not self.is_fitted:  # type: ignore[attr-defined]
            raise NotFittedError("expected a fitted tokenizer to save, got one that is not; call fit(data) first")
        module = cast(torch.nn.Module, self)
        state = {k: v.detach().cpu().contiguous() for k, v in sorted(module.state_dict().items())}
        tensors = save_tensors(state)
        config = {
            "model_type": "action_tokenizer",
            "tokenizer_type": self.tokenizer_type,  # type: ignore[attr-defined]
            "format_version": FORMAT_VERSION,
            **_description(self),
            "provenance": self._written_provenance(),
            "sha256": hashlib.sha256(tensors).hexdigest(),
        }
        files = {
            TENSORS: tensors,
            CARD: model_card(config).encode(),
            CONFIG: _json(config),
        }
        return write_folder(folder, files, OURS)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Load a tokenizer from a folder; called on the base class it returns the family that was saved.

        Raises:
            FormatError: a missing, damaged, oversized or newer file, an unknown key or tensor, or tensors that do not
                belong to the config; names the file.
            UnknownTokenizerError: a tokenizer type nobody here knows.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FormatError(f"expected a folder written by save_pretrained, got {str(folder)!r}, which is none")
        with torch.device("cpu"):  # also where a policy is being built under another default device
            return cls._from_folder(path)

    @classmethod
    def _from_folder(cls, path: Path) -> Self:
        config = _read_config(path / CONFIG)
        wrote = config["provenance"].get("written_by") or [config["provenance"].get("library", "an unknown library")]
        found = tokenizer_class(config["tokenizer_type"], distribution=", ".join(map(str, wrote)))
        if not issubclass(found, cls):
            raise FormatError(f"expected a {cls.__name__} in {path / CONFIG}, got a {found.__name__}")
        tensors = _read_tensors(path / TENSORS, config["sha256"])
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        tokenizer = _skeleton(found, config, path / CONFIG, shapes)
        _fill(tokenizer, tensors, path / TENSORS)
        return cast(Self, tokenizer)

    def _written_provenance(self) -> dict[str, Any]:
        given = dict(self.provenance)  # type: ignore[attr-defined]
        module = type(self).__module__.partition(".")[0]
        if module == "action_tokenizers":
            return given
        return {**given, "written_by": sorted(set(packages_distributions().get(module, [module])))}


def _json(config: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise ActionValueError(f"expected finite parameters to save, got {error}") from error


def _description(tokenizer: Any) -> dict[str, Any]:
    return {
        "params": {name: _to_json(value) for name, value in tokenizer._saved_params().items()},
        "fitted": tokenizer._facts() if tokenizer.is_fitted else None,
    }


def _to_json(value: Any) -> Any:
    """Parameters as JSON; a Range or a tokenizer inside becomes a tagged object."""
    if isinstance(value, Range):
        return {"range": value.to_json()}
    if isinstance(value, PretrainedMixin):
        # parts of a fitted tokenizer carry their facts; their tensors travel with the whole's
        return {"tokenizer_type": value.tokenizer_type, **_description(value)}  # type: ignore[attr-defined]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ActionValueError(f"expected parameters that JSON can hold, got a {type(value).__name__}")


def _from_json(value: Any, file: Path, shapes: Shapes) -> Any:
    if isinstance(value, list):
        return [_from_json(item, file, _part(shapes, i)) for i, item in enumerate(value)]
    if isinstance(value, dict) and set(value) == {"range"}:
        return Range.from_json(value["range"])
    if isinstance(value, dict) and set(value) == {"tokenizer_type", "params", "fitted"}:
        return _skeleton(tokenizer_class(value["tokenizer_type"]), value, file, shapes)
    if isinstance(value, dict):
        raise FormatError(f"expected a range or a tokenizer in the params of {file}, got keys {sorted(value)}")
    return value


def _part(shapes: Shapes, i: int) -> Shapes:
    """Return the shapes of part `i` of a tokenizer: its tensors are named `parts.i.*`."""
    prefix = f"parts.{i}."
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _skeleton(cls: Any, config: Mapping[str, Any], file: Path, shapes: Shapes) -> Any:
    """Build the tokenizer that `config` describes, its tensors without memory behind them."""
    facts = config["fitted"]
    if facts is not None:
        _check_facts(facts, file, shapes)
    try:
        params = {name: _from_json(value, file, shapes) for name, value in config["params"].items()}
        tokenizer = cls(**params)
        if set(tokenizer.get_params()) != set(params):
            missing = sorted(set(tokenizer.get_params()) - set(params))
            raise FormatError(f"expected every parameter of a {cls.__name__} in {file}, got none of {missing}")
        if facts is not None:
            with torch.device("meta"):
                tokenizer._restore(facts, config.get("provenance", {}))
            if tokenizer._facts() != facts:
                raise FormatError(f"expected facts that follow from params and sizes in {file}, got {facts}")
    except FormatError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise FormatError(f"expected the parameters of a {cls.__name__} in {file}, got {error}") from error
    return tokenizer


def _check_facts(facts: Any, file: Path, shapes: Shapes) -> None:
    """Refuse facts of the wrong kind, or larger than the file they come with, before anything is built from them."""
    if not isinstance(facts, dict) or set(facts) != FACTS:
        raise FormatError(f"expected the facts {sorted(FACTS)} in {file}, got {facts}")
    t, d, keys = facts["horizon"], facts["action_dim"], facts["range_keys"]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (1 if t is None else t, d))
    if not whole or (t or 1) * d > MOST_CHUNK_VALUES:
        raise FormatError(f"expected a horizon and action_dim of a chunk in {file}, got {t!r} and {d!r}")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError(f"expected range_keys as a list of names in {file}, got {keys!r}")
    found = shapes.get("range.low")
    if found != (len(keys), d):
        raise FormatError(f"expected tensor 'range.low' of {len(keys)} keys x {d} dims beside {file}, got {found}")
    if not isinstance(facts["sizes"], dict):
        raise FormatError(f"expected sizes as an object in {file}, got {facts['sizes']!r}")


def _fill(tokenizer: Any, tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Put the file's tensors into the skeleton; names, shapes and dtypes must be exactly the skeleton's."""
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in tokenizer.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for name in sorted(set(wanted) | set(found)):
        if wanted.get(name) != found.get(name):
            raise FormatError(f"expected tensor {name!r} as {wanted.get(name)} in {file}, got {found.get(name)}")
    tokenizer.load_state_dict(tensors, strict=True, assign=True)
    try:
        tokenizer._check_loaded()
    except ValueError as error:
        raise FormatError(f"expected tensors of a fitted tokenizer in {file}, got damaged ones: {error}") from error


def _read_tensors(file: Path, sha256: Any) -> dict[str, torch.Tensor]:
    data = _read(file, MOST_TENSOR_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FormatError(f"expected {file} as saved with its {CONFIG}, got other bytes; copy both files again")
    try:
        return load_tensors(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"expected safetensors in {file}, got {error}; the file is damaged") from error


def _read(file: Path, most: int) -> bytes:
    if not file.is_file():
        raise FormatError(f"expected {file.name} in {file.parent}, got no such file")
    size = file.stat().st_size
    if size > most:
        raise FormatError(f"expected at most {most} bytes in {file}, got {size}")
    return file.read_bytes()


def _read_config(file: Path) -> dict[str, Any]:
    data = _read(file, MOST_CONFIG_BYTES)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"expected JSON in {file}, got {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != "action_tokenizer":
        raise FormatError(f"expected an action tokenizer's config in {file}, got something else")
    version = config.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise FormatError(
            f"expected a format_version of 1 to {FORMAT_VERSION} in {file}, got {version!r}; "
            "a newer one needs a newer action-tokenizers"
        )
    if set(config) != KEYS:
        raise FormatError(f"expected the keys {sorted(KEYS)} in {file}, got {sorted(config)}")
    if not isinstance(config["params"], dict) or not isinstance(config["fitted"], dict):
        raise FormatError(f"expected params and fitted as objects in {file}, got other types")
    if not isinstance(config["provenance"], dict) or not isinstance(config["tokenizer_type"], str):
        raise FormatError(f"expected provenance as object and tokenizer_type as text in {file}, got other types")
    return config
