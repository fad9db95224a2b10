"""Anything `fit` accepts becomes a ChunkSample."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from action_tokenizers.data.door import FloatArray, as_float32
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["FitData", "sample_of"]

FitData = Any  # Episodes | ChunkSample | (n, t, d) array or tensor | list of (t_i, d) | iterable of these


def sample_of(data: FitData, empty: ChunkSample) -> ChunkSample:
    """Return `data` as a sample; `empty` says k, seed, weights and horizon. See `ChunkSample.of`."""
    if isinstance(data, ChunkSample):
        return _checked(data, empty.horizon)
    sample = empty
    numbered = 0
    for item in _items(data):
        if isinstance(item, ChunkSample):
            sample.merge(item)
        elif isinstance(item, Episodes):
            sample.add(item)
        elif item.ndim == 3:
            ids = np.arange(numbered, numbered + len(item))
            sample.add_chunks(item, episode=ids, start=np.zeros_like(ids))
            numbered += len(item)
        else:
            sample.add(Episodes([item], names=(numbered,)))
            numbered += 1
    return _checked(sample, None)


def _items(data: FitData) -> Iterator[Episodes | ChunkSample | FloatArray]:
    """Yield Episodes, samples, and float32 arrays of two or three axes."""
    if isinstance(data, Episodes):
        yield data
    elif _is_array(data):
        yield _array(data, axes=(3,))
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes | dict):
        for item in data:
            yield item if isinstance(item, Episodes | ChunkSample) else _array(item, axes=(2, 3))
    else:
        raise ActionValueError(
            f"expected Episodes, a ChunkSample, chunks (n, t, d), or an iterable of these, got "
            f"{type(data).__name__}: read a path with Episodes.load(path)"
        )


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape") and hasattr(data, "ndim")


def _array(values: Any, axes: tuple[int, ...]) -> FloatArray:
    array = as_float32(values, "actions")
    if array.ndim not in axes:
        shapes = " or ".join("episodes (t, d)" if axis == 2 else "chunks (n, t, d)" for axis in axes)
        raise ActionShapeError(
            f"expected {shapes}, got shape {array.shape}: one episode is given as [actions], one chunk as actions[None]"
        )
    return array


def _checked(sample: ChunkSample, horizon: int | None) -> ChunkSample:
    if horizon is not None and sample.horizon not in (None, horizon):
        raise ActionShapeError(f"expected a sample of horizon {horizon}, got one of {sample.horizon}")
    if len(sample) == 0 and sample.skipped:
        raise ActionShapeError(
            f"expected an episode of at least horizon {sample.horizon} steps, got {sample.skipped} episodes, "
            f"the longest of {sample.longest_skipped}: give a smaller horizon="
        )
    if len(sample) == 0:
        raise ActionValueError("expected at least one chunk, got none: there is nothing to fit on")
    return sample
