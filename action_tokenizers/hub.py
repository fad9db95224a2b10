"""A folder <-> a tokenizer: `config.json`, `model.safetensors` and a card; no pickle, no remote code."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
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
KEYS = {"model_type", "tokenizer_type", "format_version", "params", "fitted", "provenance", "sha256"}
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
            CONFIG: (json.dumps(config, indent=2, allow_nan=False) + "\n").encode(),
            TENSORS: tensors,
            CARD: model_card(config).encode(),
        }
        return _replace_folder(Path(folder), files)

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
        config = _read_config(path / CONFIG)
        found = tokenizer_class(config["tokenizer_type"], distribution=config["provenance"].get("library"))
        if not issubclass(found, cls):
            raise FormatError(f"expected a {cls.__name__} in {path / CONFIG}, got tokenizer_type {found.__name__}")
        file = path / TENSORS
        data = _read(file, MOST_TENSOR_BYTES)
        if hashlib.sha256(data).hexdigest() != config["sha256"]:
            raise FormatError(f"expected {file} as saved with its {CONFIG}, got other bytes; copy both files again")
        tokenizer = _skeleton(found, config, path / CONFIG)
        _fill(tokenizer, data, file)
        tokenizer._check_tensors()
        return cast(Self, tokenizer)

    def _written_provenance(self) -> dict[str, Any]:
        module = type(self).__module__.partition(".")[0]
        names = packages_distributions().get(module, [module])
        given = dict(self.provenance)  # type: ignore[attr-defined]
        return given if module == "action_tokenizers" else {**given, "written_by": sorted(set(names))}


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


def _from_json(value: Any, file: Path) -> Any:
    if isinstance(value, list):
        return [_from_json(item, file) for item in value]
    if isinstance(value, dict) and set(value) == {"range"}:
        return Range.from_json(value["range"])
    if isinstance(value, dict) and set(value) == {"tokenizer_type", "params", "fitted"}:
        return _skeleton(tokenizer_class(value["tokenizer_type"]), value, file)
    if isinstance(value, dict):
        raise FormatError(f"expected a range or a tokenizer in the params of {file}, got keys {sorted(value)}")
    return value


def _skeleton(cls: Any, config: Mapping[str, Any], file: Path) -> Any:
    """Build the tokenizer that `config` describes, its tensors without memory behind them."""
    params, facts = config["params"], config["fitted"]
    try:
        tokenizer = cls(**{name: _from_json(value, file) for name, value in params.items()})
        if facts is not None:
            if set(facts) != FACTS:
                raise FormatError(f"expected the facts {sorted(FACTS)} in {file}, got {sorted(facts)}")
            with torch.device("meta"):
                tokenizer._restore(facts, config.get("provenance", {}))
            if tokenizer._facts() != facts:
                raise FormatError(f"expected facts that follow from params and sizes in {file}, got {facts}")
    except FormatError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise FormatError(f"expected the parameters of a {cls.__name__} in {file}, got {error}") from error
    return tokenizer


def _fill(tokenizer: Any, data: bytes, file: Path) -> None:
    """Put the file's tensors into the skeleton; names, shapes and dtypes must be exactly the skeleton's."""
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in tokenizer.state_dict().items()}
    try:
        loaded = load_tensors(data)
    except safetensors.SafetensorError as error:
        raise FormatError(f"expected safetensors in {file}, got {error}; the file is damaged") from error
    found = {name: (tuple(t.shape), t.dtype) for name, t in loaded.items()}
    for name in sorted(set(wanted) | set(found)):
        if wanted.get(name) != found.get(name):
            raise FormatError(f"expected tensor {name!r} as {wanted.get(name)} in {file}, got {found.get(name)}")
    tokenizer.load_state_dict(loaded, strict=True, assign=True)


def _read(file: Path, most: int) -> bytes:
    try:
        size = file.stat().st_size
        if size > most:
            raise FormatError(f"expected at most {most} bytes in {file}, got {size}")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise FormatError(f"expected {file.name} in {file.parent}, got no such file") from error


def _read_config(file: Path) -> dict[str, Any]:
    data = _read(file, MOST_CONFIG_BYTES)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"expected JSON in {file}, got {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != "action_tokenizer":
        raise FormatError(f"expected an action tokenizer's config in {file}, got something else")
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FormatError(
            f"expected format_version <= {FORMAT_VERSION} in {file}, got {version!r}; upgrade action-tokenizers"
        )
    if set(config) != KEYS:
        raise FormatError(f"expected the keys {sorted(KEYS)} in {file}, got {sorted(config)}")
    if not isinstance(config["params"], dict) or not isinstance(config["fitted"], dict):
        raise FormatError(f"expected params and fitted as objects in {file}, got other types")
    if not isinstance(config["provenance"], dict) or not isinstance(config["tokenizer_type"], str):
        raise FormatError(f"expected provenance as object and tokenizer_type as text in {file}, got other types")
    return config


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Make `folder` hold `files` beside what is not ours: written aside, then renamed into place."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder to save to, got the file {folder}")
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh.chmod(0o755 if not folder.exists() else folder.stat().st_mode & 0o7777)
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        if folder.exists():
            _carry_over(folder, fresh)
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.replace(folder, old)
            os.replace(fresh, folder)
            shutil.rmtree(old)
        else:
            os.replace(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return folder


def _carry_over(folder: Path, fresh: Path) -> None:
    copy: Callable[..., Any] = shutil.copy2
    for entry in folder.iterdir():
        if entry.name in OURS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, fresh / entry.name, symlinks=True)
        else:
            copy(entry, fresh / entry.name, follow_symlinks=False)
