"""Exact smallest and largest recorded value per action dim, over all chunks, in bounded memory."""

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.chunks import ChunkPlan, by_episode, gather
from action_tokenizers.data.door import FloatArray
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.relative import Relative

__all__ = ["Extent", "extent", "planned_extent"]

Extent = tuple[FloatArray, FloatArray]
BLOCK = 1 << 20  # values of one block of relative chunks


def extent(actions: FloatArray, pad: NDArray[np.bool_] | None) -> Extent:
    """Return (minimum, maximum) `(d,)` of chunks `(n, t, d)`, pads left out."""
    if pad is None or not pad.any():
        # chunks first: rows of t x d values fill vector instructions, rows of d do not
        return actions.min(axis=0).min(axis=0), actions.max(axis=0).max(axis=0)
    real = ~pad[..., None]
    low = actions.min(axis=(0, 1), where=real, initial=np.inf)
    return low, actions.max(axis=(0, 1), where=real, initial=-np.inf)


def planned_extent(episodes: Episodes, plan: ChunkPlan, relative: Relative | None) -> Extent:
    """Return (minimum, maximum) `(d,)` of the planned chunks, pads left out."""
    if relative is None:
        return _of_frames(episodes, plan)
    step = max(1, BLOCK // (plan.horizon * episodes.action_dim))
    found = []
    for begin in range(0, len(plan), step):
        block = gather(episodes, plan[begin : begin + step], relative)
        found.append(extent(block.actions, block.action_is_pad))
    return _of_all(found)


def _of_frames(episodes: Episodes, plan: ChunkPlan) -> Extent:
    """Look once at each frame that lies in some chunk, instead of once per chunk it lies in."""
    found = []
    lengths = episodes.lengths
    for at, rows in by_episode(plan):
        length, first = lengths[at], plan.first[rows]
        step = np.diff(first)
        if episodes.action_is_pad is None and ((step >= 0) & (step <= plan.horizon)).all():
            # the usual case, worth a short way: the windows leave no gap, so they cover one stretch of frames
            frames = episodes.actions[at][first[0] : first[-1] + plan.horizon]
            found.append((frames.min(axis=0), frames.max(axis=0)))
            continue
        opened = np.bincount(first, minlength=length + 1)
        closed = np.bincount(np.minimum(first + plan.horizon, length), minlength=length + 1)
        inside = np.cumsum(opened - closed)[:length] > 0
        if episodes.action_is_pad is not None:
            inside &= ~episodes.action_is_pad[at]
        frames = episodes.actions[at][inside]
        found.append((frames.min(axis=0), frames.max(axis=0)))
    return _of_all(found)


def _of_all(found: list[Extent]) -> Extent:
    lows, highs = zip(*found, strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)
