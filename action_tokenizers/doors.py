"""What comes into a call and goes out of it: numpy or torch, any leading dims, lists of chunks or of ids.

`base.py` calls these at its door; behind it everything is a torch tensor `(b, t, d)` float32 or `(b, n)` int64.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from action_tokenizers.codecs.finite import all_finite
from action_tokenizers.errors import ActionShapeError, ActionValueError, TokenError

__all__ = ["hold_last", "is_chunk_list", "open_actions", "open_ids", "open_mask", "refuse_odd"]

GiveBack = Callable[[torch.Tensor], Any]


def is_chunk_list(actions: Any) -> bool:
    """Say whether `actions` is a list of arrays, that is of chunks."""
    return isinstance(actions, (list, tuple)) and any(isinstance(a, (np.ndarray, torch.Tensor)) for a in actions)


def open_actions(actions: Any, device: torch.device, *, odd: bool = False) -> tuple[torch.Tensor, GiveBack]:
    """Return `(b, t, d)` float32 on `device`, and a function that gives a `(b, ...)` result the caller's form.

    Args:
        actions: what the caller brought.
        device: of the tokenizer.
        odd: let NaN and inf pass; the caller then leaves them to `refuse_odd`.

    Raises:
        ActionShapeError: not numbers, or fewer than two dims.
        ActionValueError: NaN or inf; names chunk, step and dim.
    """
    tensor = _tensor(actions, ActionShapeError, "actions (..., t, d)")
    if _is_plain(tensor, torch.float32, 3, device) and tensor.numel():
        if not odd:
            refuse_odd(tensor)
        return tensor, _give_back(actions, tensor.device, tensor.shape[:1])
    if tensor.dtype.is_complex or tensor.ndim < 2:
        what = tensor.dtype if tensor.dtype.is_complex else f"shape {tuple(tensor.shape)}"
        raise ActionShapeError(f"expected real actions (..., t, d), got {what}; one step is (1, d)")
    lead, (t, d) = tensor.shape[:-2], tensor.shape[-2:]
    if t == 0 or d == 0:
        raise ActionShapeError(f"expected chunks of at least one step and dim, got shape {tuple(tensor.shape)}")
    chunks = tensor.detach().to(device=device, dtype=torch.float32).reshape(-1, t, d)
    if not odd:
        refuse_odd(chunks)
    return chunks, _give_back(actions, tensor.device, lead)


def refuse_odd(chunks: torch.Tensor) -> None:
    """Raise ActionValueError where `chunks (b, t, d)` hold NaN or inf; names chunk, step and dim."""
    if all_finite(chunks):
        return
    bad = (~torch.isfinite(chunks)).nonzero()
    chunk, step, dim = bad[0].tolist()
    raise ActionValueError(
        f"expected finite actions, got {chunks[chunk, step, dim].item()} in chunk {chunk}, step {step}, "
        f"dim {dim} ({len(bad)} such values); clean or drop that chunk"
    )


def open_ids(ids: Any, device: torch.device, pad_id: int | None) -> tuple[torch.Tensor, GiveBack]:
    """Return `(b, n)` int64 on `device`, and a function that gives a `(b, ...)` result the caller's form.

    A list of id lists of different lengths is padded on the right.

    Raises:
        TokenError: not integers, or no dim at all.
    """
    given = ids
    if isinstance(ids, (list, tuple)) and ids and not np.isscalar(ids[0]):
        # rows of torch ids are torch ids
        given = next((row for row in ids if isinstance(row, torch.Tensor)), given)
        ids = _pad_rows(ids, pad_id)
    tensor = _tensor(_boxed(ids), TokenError, "ids (..., n)")
    if given is ids and _is_plain(tensor, torch.int64, 2, device):
        return tensor, _give_back(ids, tensor.device, tensor.shape[:1])
    if tensor.numel() == 0:
        tensor = tensor.to(torch.int64)  # an empty list has no dtype to speak of
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TokenError(f"expected integer ids (..., n), got {tensor.dtype}; ids are what encode returns")
    if tensor.ndim == 0:
        raise TokenError("expected ids (..., n), got a single number; wrap it in a list")
    lead, n = tensor.shape[:-1], tensor.shape[-1]
    rows = tensor.detach().to(device=device, dtype=torch.int64).reshape(lead.numel(), n)
    return rows, _give_back(given, getattr(given, "device", tensor.device), lead)


def open_mask(action_is_pad: Any, lead_steps: torch.Size, device: torch.device) -> torch.Tensor:
    """Return a `(b, t)` bool mask for chunks of shape `(b, t, d)`.

    Raises:
        ActionShapeError: other than one flag per step.
    """
    mask = _tensor(action_is_pad, ActionShapeError, "action_is_pad (..., t)")
    if mask.dtype != torch.bool or mask.numel() != lead_steps.numel() or mask.shape[-1:] != lead_steps[-1:]:
        raise ActionShapeError(
            f"expected action_is_pad bool with one flag per step {tuple(lead_steps)}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return mask.to(device).reshape(lead_steps)


def hold_last(chunks: torch.Tensor, is_pad: torch.Tensor) -> torch.Tensor:
    """Repeat the last real step of `chunks (b, t, d)` where `is_pad (b, t)`, so that padding carries nothing.

    Raises:
        ActionValueError: a chunk that is nothing but padding.
    """
    if bool(is_pad.all(dim=1).any()):
        row = int(is_pad.all(dim=1).nonzero()[0])
        raise ActionValueError(f"expected at least one real step per chunk, got only padding in chunk {row}")
    steps = torch.arange(chunks.shape[1], device=chunks.device)
    source = torch.where(is_pad, -1, steps).cummax(dim=1).values
    first = (~is_pad).int().argmax(dim=1, keepdim=True)  # padding before the first real step holds that one
    source = torch.where(source < 0, first, source)
    return chunks.gather(1, source[..., None].expand_as(chunks))


def _is_plain(tensor: torch.Tensor, dtype: torch.dtype, ndim: int, device: torch.device) -> bool:
    """Say whether a tensor is as wanted already: at batch 1 conversions count, also those that do nothing."""
    return tensor.dtype == dtype and tensor.ndim == ndim and not tensor.requires_grad and tensor.device == device


def _tensor(value: Any, error: type[Exception], expected: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if type(value) is np.ndarray and value.flags.carray and (value.dtype == np.float32 or value.dtype == np.int64):
        return torch.from_numpy(value)  # what follows would change nothing, and takes as long as a small chunk
    try:
        array = np.asarray(value)
    except ValueError as problem:
        raise error(f"expected {expected}, got rows of different shapes") from problem
    if array.dtype.kind not in "biufc":
        raise error(f"expected {expected}, got {type(value).__name__} of {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # torch has no long double
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch has few operations for wide unsigned integers
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch warns about read-only memory and refuses negative strides
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _boxed(ids: Any) -> Any:
    """Return lists of Python integers as int64; what does not fit is no id anywhere, and -1 says so."""
    if isinstance(ids, (np.ndarray, torch.Tensor)) and getattr(ids, "dtype", None) != np.dtype(object):
        return ids
    boxed = np.array(ids, dtype=object)
    if any(isinstance(i, bool | np.bool_) for i in boxed.flat):
        raise TokenError("expected integer ids, got True or False among them; a mask is not a list of ids")
    if not boxed.size or not all(isinstance(i, int) for i in boxed.flat):
        return ids
    return np.array([i if abs(i) < 1 << 62 else -1 for i in boxed.flat], np.int64).reshape(boxed.shape)


def _pad_rows(rows: Sequence[Any], pad_id: int | None) -> Any:
    if any(row is None for row in rows):
        raise TokenError("expected a list of id lists, got None for one of them; an empty generation is an empty list")
    try:
        arrays = [r.detach().cpu().numpy() if isinstance(r, torch.Tensor) else np.asarray(_boxed(r)) for r in rows]
    except ValueError as problem:
        raise TokenError("expected ids (..., n) or a list of id lists, got lists of different depth") from problem
    if all(a.shape == arrays[0].shape for a in arrays):
        return np.asarray(arrays)
    if any(a.ndim != 1 for a in arrays):
        raise TokenError(f"expected a list of id lists, got shapes {sorted({a.shape for a in arrays})[:4]}")
    if any(a.size and a.dtype.kind not in "iu" for a in arrays):
        raise TokenError("expected integer ids, got other values in a list of id lists")
    padded = np.full((len(arrays), max(a.size for a in arrays)), -1 if pad_id is None else pad_id, np.int64)
    for row, array in zip(padded, arrays, strict=True):
        row[: array.size] = array
    return padded


def _give_back(given: Any, device: torch.device, lead: torch.Size) -> GiveBack:
    def give_back(result: torch.Tensor) -> Any:
        if len(lead) != 1:
            result = result.reshape(lead + result.shape[1:])
        return result.to(device) if isinstance(given, torch.Tensor) else result.cpu().numpy()

    return give_back
