"""Chunks: windows `(t, d)` of actions that never cross an episode, plain or relative."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from action_tokenizers.data.door import FloatArray, IntArray
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.relative import Relative
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["ChunkPlan", "Chunks", "by_episode", "chunks", "gather", "plan_chunks", "windows"]

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Chunks:
    """Chunks of one key and where each came from.

    Attributes:
        actions: `(n, t, d)` float32.
        episode: `(n,)` the recorded episode name of each chunk.
        start: `(n,)` the recorded frame of each chunk's first step.
        key: The key of the episodes.
        source: The source of the episodes.
        action_is_pad: `(n, t)` mask of steps that were not recorded, or None.
        skipped: Names of the episodes shorter than the horizon.
        reference: `(n, d)` what relative actions are relative to, or None; 0 in absolute dims.
        frames_left_out: Recorded frames that no chunk covers: all of the skipped episodes, tails shorter than
            a stride, and what lies between chunks where the stride is longer than the horizon.
    """

    actions: FloatArray
    episode: IntArray
    start: IntArray
    key: str
    source: str = ""
    action_is_pad: BoolArray | None = None
    skipped: tuple[int, ...] = ()
    reference: FloatArray | None = None
    frames_left_out: int = 0

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.actions)

    @property
    def padding(self) -> NDArray[np.bool_]:
        """`action_is_pad` `(n, t)`, all False where nothing is padded."""
        return np.zeros(self.actions.shape[:2], np.bool_) if self.action_is_pad is None else self.action_is_pad


@dataclass(frozen=True, eq=False)
class ChunkPlan:
    """Where the chunks of some episodes begin: `position` `(n,)` in the list and row `first` `(n,)`."""

    position: IntArray
    first: IntArray
    horizon: int
    skipped: tuple[int, ...]
    left_out: int = 0  # recorded frames that no chunk of the whole plan covers

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.first)

    def __getitem__(self, which: Any) -> "ChunkPlan":
        """Return the plan of some of the chunks."""
        return ChunkPlan(self.position[which], self.first[which], self.horizon, self.skipped, self.left_out)


def windows(array: NDArray[Any], horizon: int, stride: int = 1) -> NDArray[Any]:
    """Return the windows `(n, horizon, ...)` of `array` `(t, ...)` as a view; none where t < horizon.

    Example:
        >>> windows(np.arange(4), 2).tolist()
        [[0, 1], [1, 2], [2, 3]]
    """
    if len(array) < horizon:
        return np.empty((0, horizon, *array.shape[1:]), array.dtype)
    return np.moveaxis(sliding_window_view(array, horizon, axis=0)[::stride], -1, 1)


def chunks(
    episodes: Episodes,
    horizon: int,
    stride: int = 1,
    relative: Relative | None = None,
    *,
    pad_tail: bool = False,
) -> Chunks:
    """Cut episodes into chunks of `horizon` steps, `stride` frames apart.

    Args:
        episodes: What to cut.
        horizon: Steps of a chunk.
        stride: Frames between the first steps of neighbouring chunks.
        relative: Turns the actions relative; the references come back in `reference`.
        pad_tail: Chunks run to the episode's end: missing steps repeat the last action and are marked in
            `action_is_pad` (LeRobot's convention); no episode is then too short.

    Raises:
        ActionShapeError: Every episode is shorter than the horizon.
    """
    plan = plan_chunks(episodes, horizon, stride, pad_tail=pad_tail)
    if len(plan) == 0:
        raise ActionShapeError(
            f"expected an episode of at least horizon {horizon} steps, the longest of {len(episodes)} has "
            f"{max(episodes.lengths)}: give a smaller horizon, or pad_tail=True"
        )
    return gather(episodes, plan, relative)


def plan_chunks(episodes: Episodes, horizon: int, stride: int = 1, *, pad_tail: bool = False) -> ChunkPlan:
    """Return where the chunks begin, without touching a single action; chunks of pads alone are left out."""
    if horizon < 1 or stride < 1:
        raise ActionValueError(f"expected horizon >= 1 and stride >= 1, got {horizon} and {stride}")
    firsts, skipped, left_out = [], [], 0
    for at, length in enumerate(episodes.lengths):
        first = np.arange(0, length if pad_tail else length - horizon + 1, stride, dtype=np.int64)
        if not len(first):
            skipped.append(episodes.names[at])
        elif episodes.action_is_pad is not None:
            first = first[~_cut(episodes.action_is_pad[at], first, horizon).all(axis=1)]
        firsts.append(first)
        uncovered = _uncovered(length, first, horizon)
        if episodes.action_is_pad is not None:
            uncovered &= ~episodes.action_is_pad[at]
        left_out += int(uncovered.sum())
    position = np.repeat(np.arange(len(firsts), dtype=np.int64), [len(first) for first in firsts])
    return ChunkPlan(position, np.concatenate(firsts), horizon, tuple(skipped), left_out)


def _uncovered(length: int, first: IntArray, horizon: int) -> BoolArray:
    """Return the mask `(length,)` of the frames in none of the windows that begin at the sorted `first`."""
    if len(first) == 0:
        return np.ones(length, np.bool_)
    frames = np.arange(length)
    since = frames - first[np.searchsorted(first, frames, side="right") - 1]
    return (since < 0) | (since >= horizon)  # before the first window the last one is meant: it is ahead


def gather(episodes: Episodes, plan: ChunkPlan, relative: Relative | None = None) -> Chunks:
    """Return the planned chunks, in the order of the plan."""
    actions = np.empty((len(plan), plan.horizon, episodes.action_dim), np.float32)
    pad = np.zeros((len(plan), plan.horizon), np.bool_)
    lengths = episodes.lengths
    for at, rows in by_episode(plan):
        first = plan.first[rows]
        actions[rows] = _cut(episodes.actions[at], first, plan.horizon)
        pad[rows] = first[:, None] + np.arange(plan.horizon) >= lengths[at]
        if episodes.action_is_pad is not None:
            pad[rows] |= _cut(episodes.action_is_pad[at], first, plan.horizon)
    reference = None
    if relative is not None:
        reference = _references(episodes, plan, relative)
        actions = relative.apply(actions, reference)
    return Chunks(
        actions,
        np.asarray(episodes.names, np.int64)[plan.position],
        np.asarray(episodes.offsets, np.int64)[plan.position] + plan.first,
        episodes.key,
        episodes.source,
        pad if episodes.action_is_pad is not None or bool(pad.any()) else None,
        plan.skipped,
        reference,
        plan.left_out,
    )


def _cut(array: NDArray[Any], first: IntArray, horizon: int) -> NDArray[Any]:
    """Return the windows `(n, horizon, ...)` that begin at `first`; past the end the last row repeats."""
    cut: NDArray[Any] = array[np.minimum(first[:, None] + np.arange(horizon), len(array) - 1)]
    return cut


def by_episode(plan: ChunkPlan) -> Iterator[tuple[int, IntArray]]:
    """Yield (position, rows of the plan) of every episode that has chunks."""
    if len(plan) == 0:
        return
    order = np.argsort(plan.position, kind="stable")
    borders = np.flatnonzero(np.diff(plan.position[order])) + 1
    for rows in np.split(order, borders):
        yield int(plan.position[rows[0]]), rows


def _references(episodes: Episodes, plan: ChunkPlan, relative: Relative) -> FloatArray:
    """Return `(n, d)`: the state at the chunk's start or the action before it, 0 in absolute dims.

    Before an episode's first action there is none: the state stands in where it has the actions' dims,
    else the first action itself, whose delta is then 0.
    """
    dim = episodes.action_dim
    modes = relative.modes(dim)
    by_state = np.array([mode == "state" for mode in modes])
    by_previous = np.array([mode == "previous" for mode in modes])
    states = episodes.states
    if states is not None and states[0].shape[1] < dim:
        states = None
    if by_state.any() and states is None:
        raise ActionShapeError(
            f'expected states of at least {dim} dims for relative "state" actions, got '
            f"{'none' if episodes.states is None else episodes.states[0].shape[1]}: "
            'name the column with state=, or use "previous"'
        )
    out = np.zeros((len(plan), dim), np.float32)
    for at, rows in by_episode(plan):
        first = plan.first[rows]
        before = episodes.actions[at][np.maximum(first - 1, 0)]
        if states is not None:
            state = states[at][first, :dim]
            before = np.where(first[:, None] == 0, state, before)
            out[rows] += state * by_state
        out[rows] += before * by_previous
    return out
