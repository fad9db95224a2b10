"""The data door's checks: arrays become float32, unusable values are refused with their place."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = [
    "FloatArray",
    "IntArray",
    "as_float32",
    "checked_chunks",
    "checked_fps",
    "episode_matrices",
    "first_nonfinite",
    "refuse_nonfinite",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def as_float32(values: Any, what: str) -> FloatArray:
    """Return `values` (array, torch tensor or nested list) as a contiguous float32 array.

    A float64 beyond float32's reach becomes infinite, so that the finiteness check meets it.
    """
    if hasattr(values, "detach"):  # a torch tensor, told by its manners: this layer does not import torch
        values = values.detach().cpu().float().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ActionShapeError(f"{what}: expected a rectangular array of numbers, got {error}") from error
    if array.dtype.kind not in "fiub":
        raise ActionValueError(f"{what}: expected numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def first_nonfinite(array: FloatArray) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinite value, None where every value is finite."""
    finite = np.isfinite(array)
    if finite.all():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))


def checked_fps(fps: float) -> float:
    """Return `fps` as a float; ActionValueError unless it is positive and finite."""
    if not (math.isfinite(fps) and fps > 0):
        raise ActionValueError(f"expected fps > 0, got {fps}: pass None where it is unknown")
    return float(fps)


def refuse_nonfinite(array: FloatArray, axes: tuple[str, ...], where: str = "") -> None:
    """Raise ActionValueError naming the place of the first non-finite value along `axes`."""
    place = first_nonfinite(array)
    if place is None:
        return
    names = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True))
    raise ActionValueError(
        f"expected finite actions (within float32), got {array[place]} at {where}{names}: "
        "repair or drop that episode before fitting"
    )


def episode_matrices(arrays: Sequence[Any], names: tuple[int, ...], what: str) -> list[FloatArray]:
    """Return the episodes as float32 `(t, d)` of one d, or say which episode, frame and dim is unusable."""
    matrices: list[FloatArray] = []
    for name, array in zip(names, arrays, strict=False):
        matrix = as_float32(array, f"{what}s of episode {name}")
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ActionShapeError(
                f"expected {what}s (t, d) with t >= 1 and d >= 1, got shape {matrix.shape} in episode {name}"
            )
        if matrices and matrix.shape[1] != matrices[0].shape[1]:
            raise ActionShapeError(
                f"expected {what}s of {matrices[0].shape[1]} dims as in episode {names[0]}, "
                f"got {matrix.shape[1]} in episode {name}: load robots of different dims apart"
            )
        refuse_nonfinite(matrix, ("frame", "dim"), f"{what} of episode {name}, ")
        matrices.append(matrix)
    return matrices


def checked_chunks(
    actions: Any, episode: ArrayLike, start: ArrayLike, action_is_pad: ArrayLike | None
) -> tuple[FloatArray, IntArray, IntArray, NDArray[np.bool_]]:
    """Return chunks `(n, t, d)`, ids and starts `(n,)`, pads `(n, t)`; chunks of pads alone are left out."""
    chunks = as_float32(actions, "chunks")
    if chunks.ndim != 3 or 0 in chunks.shape[1:]:
        raise ActionShapeError(f"expected chunks (n, t, d), got shape {chunks.shape}")
    refuse_nonfinite(chunks, ("chunk", "step", "dim"))
    grid = chunks.shape[:2]
    pads = np.zeros(grid, np.bool_) if action_is_pad is None else np.asarray(action_is_pad, np.bool_)
    ids, starts = np.asarray(episode, np.int64), np.asarray(start, np.int64)
    if ids.shape != grid[:1] or starts.shape != ids.shape or pads.shape != grid:
        raise ActionShapeError(
            f"expected episode and start ({len(chunks)},) and action_is_pad {grid}, "
            f"got {ids.shape}, {starts.shape} and {pads.shape}"
        )
    empty = pads.all(axis=1)
    if not empty.any():
        return chunks, ids, starts, pads
    return chunks[~empty], ids[~empty], starts[~empty], pads[~empty]
