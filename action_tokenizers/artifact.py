"""A tokenizer <-> its config and its tensors: everything a saved tokenizer is, before it meets a disk."""

import copy
import json
import math
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch

from action_tokenizers.errors import ActionValueError, FormatError, NotFittedError, UnknownTokenizerError
from action_tokenizers.ranges import Range
from action_tokenizers.registry import tokenizer_class

__all__ = ["FORMAT_VERSION", "from_parts", "to_json_bytes", "to_parts", "tokenizer_class_of"]

FORMAT_VERSION = 1
MODEL_TYPE = "action_tokenizer"
MOST_CHUNK_VALUES = 1 << 26
KEYS = {"model_type", "tokenizer_type", "format_version", "params", "fitted", "provenance"}
FACTS = {"horizon", "action_dim", "vocab_size", "max_tokens", "pad_id", "range_keys", "sizes"}
# what error messages and the card make use of, where it is there
PROVENANCE = {"library": str, "written_by": list, "sources": list, "keys": dict, "license": str}
Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, torch.Tensor]


def to_parts(tokenizer: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config (JSON values) and the tensors (CPU, contiguous) that `from_parts` rebuilds it from.

    Raises:
        NotFittedError: not fitted.
        ActionValueError: a parameter that JSON cannot hold.
    """
    if not tokenizer.is_fitted:
        raise NotFittedError("expected a fitted tokenizer to save, got one that is not; call fit(data) first")
    config = {
        "model_type": MODEL_TYPE,
        "tokenizer_type": tokenizer.tokenizer_type,
        "format_version": FORMAT_VERSION,
        **_description(tokenizer),
        "provenance": _provenance(tokenizer),
    }
    # through JSON and back: what it cannot hold is refused here, and nothing of the tokenizer itself is handed out
    state = sorted(tokenizer.state_dict().items())
    return json.loads(to_json_bytes(config)), {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state}


def from_parts(config: Mapping[str, Any], tensors: Tensors, file: Path | str = "the config") -> Any:
    """Rebuild a tokenizer.

    Args:
        config: as `to_parts` returned it.
        tensors: as `to_parts` returned them.
        file: where the config comes from, for messages.

    Raises:
        FormatError: an unknown key or tensor, a newer format, or tensors that do not belong to the config.
        UnknownTokenizerError: a tokenizer type nobody here knows; says what wrote it.
    """
    found = tokenizer_class_of(config, file)
    config = copy.deepcopy(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with torch.device("cpu"):  # also where a policy is being built under another default device
        tokenizer = _skeleton(found, config, file, shapes)
        _fill(tokenizer, {name: tensor.clone() for name, tensor in tensors.items()}, file)
    return tokenizer


def tokenizer_class_of(config: Any, file: Path | str) -> type:
    """Check the outer form of a config and return the class it names."""
    if not isinstance(config, Mapping) or config.get("model_type") != MODEL_TYPE:
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
    provenance = config["provenance"]
    for name, kind in PROVENANCE.items():
        if not isinstance(provenance.get(name), kind | None):
            raise FormatError(
                f"expected {name} of the provenance in {file} as {kind.__name__}, got {provenance[name]!r}"
            )
    wrote = provenance.get("written_by") or [provenance.get("library", "an unknown library")]
    try:
        return tokenizer_class(config["tokenizer_type"], distribution=", ".join(map(str, wrote)))
    except UnknownTokenizerError as error:
        raise UnknownTokenizerError(f"{file}: {error}") from error


def to_json_bytes(value: Mapping[str, Any]) -> bytes:
    """Return JSON text with a final newline.

    Raises:
        ActionValueError: NaN or inf in it, or values of other types.
    """
    try:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ActionValueError(f"expected finite values that JSON can hold, got {error}") from error


def _provenance(tokenizer: Any) -> dict[str, Any]:
    given = dict(tokenizer.provenance)
    module = type(tokenizer).__module__.partition(".")[0]
    if module == "action_tokenizers":
        return given
    return {**given, "written_by": sorted(set(packages_distributions().get(module, [module])))}


def _description(tokenizer: Any) -> dict[str, Any]:
    return {
        "params": {name: _to_json(value) for name, value in tokenizer._saved_params().items()},
        "fitted": tokenizer._facts() if tokenizer.is_fitted else None,
    }


def _to_json(value: Any) -> Any:
    """Parameters as JSON; a Range or a tokenizer inside becomes a tagged object."""
    if isinstance(value, Range):
        return {"range": value.to_json()}
    if hasattr(value, "tokenizer_type"):
        # parts of a fitted tokenizer carry their facts; their tensors travel with the whole's
        return {"tokenizer_type": value.tokenizer_type, **_description(value)}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ActionValueError(f"expected parameters that JSON can hold, got a {type(value).__name__}")


def _from_json(value: Any, file: Path | str, shapes: Shapes) -> Any:
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


def _skeleton(cls: Any, config: Mapping[str, Any], file: Path | str, shapes: Shapes) -> Any:
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


def _check_facts(facts: Any, file: Path | str, shapes: Shapes) -> None:
    """Refuse facts of the wrong kind, or larger than the file they come with, before anything is built from them."""
    if not isinstance(facts, dict) or set(facts) != FACTS:
        raise FormatError(f"expected the facts {sorted(FACTS)} in {file}, got {facts}")
    t, d, keys = facts["horizon"], facts["action_dim"], facts["range_keys"]
    given = [n for n in (t, d) if n is not None]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in given)
    if not whole or math.prod(given) > MOST_CHUNK_VALUES:
        raise FormatError(f"expected a horizon and action_dim of a chunk in {file}, got {t!r} and {d!r}")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError(f"expected range_keys as a list of names in {file}, got {keys!r}")
    found = shapes.get("range.low")
    if found != (len(keys), d or 1):
        raise FormatError(f"expected tensor 'range.low' of {len(keys)} keys x {d or 1} dims beside {file}, got {found}")
    if not isinstance(facts["sizes"], dict):
        raise FormatError(f"expected sizes as an object in {file}, got {facts['sizes']!r}")


def _fill(tokenizer: Any, tensors: Tensors, file: Path | str) -> None:
    """Put the file's tensors into the skeleton; names, shapes and dtypes must be exactly the skeleton's."""
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in tokenizer.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for name in sorted(set(wanted) | set(found)):
        if wanted.get(name) != found.get(name):
            raise FormatError(f"expected tensor {name!r} as {wanted.get(name)} beside {file}, got {found.get(name)}")
    tokenizer.load_state_dict(tensors, strict=True, assign=True)
    try:
        tokenizer._check_loaded()
    except ValueError as error:
        raise FormatError(f"expected tensors of a fitted tokenizer beside {file}, got damaged ones: {error}") from error
