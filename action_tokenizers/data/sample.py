"""A bounded, mergeable, reproducible sample of chunks: what every fit learns from."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from action_tokenizers.data.chunks import gather, plan_chunks
from action_tokenizers.data.door import FloatArray, IntArray, checked_chunks
from action_tokenizers.data.episodes import Episodes, default_horizon
from action_tokenizers.data.extent import Extent, extent, planned_extent
from action_tokenizers.data.priority import priorities
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.rows import Fetch, Group, Reservoir, Rows
from action_tokenizers.errors import ActionShapeError, ActionValueError

if TYPE_CHECKING:
    from action_tokenizers.data.accept import FitData

__all__ = ["ChunkSample"]


class ChunkSample:
    """The k chunks of smallest hash of (key, source, episode, start, seed), plus exact counts and extents.

    What it holds depends on the chunks that were added and on nothing else: not on their order, their
    sharding, the merge tree, the machine. Shards sampled on a thousand processes and merged equal one
    pass, bit for bit (`digest`). Chunks are stored in order of priority, ties by identity. Memory is
    bounded by about 1.5 k chunks: only the winners of an `add` are ever cut.

    A chunk added twice is held once, but `count` counts it twice. The same identity with other contents
    means two data sets share a key and a source: ActionValueError, at the latest when the sample is read.

    Args:
        k: Most chunks to hold.
        seed: Another seed holds another random subset.
        weights: Per key, how much likelier than weight 1 each of its chunks is to be held (the
            exponential race of `priority.py`): a key's share of the sample is its weight times its chunks.
        horizon: Steps of a chunk; None takes it from what is added first.

    Attributes:
        action_dim: Number of action dims; None while nothing was added.
        relative: How the chunks are relative, or None.
        skipped: Number of episodes shorter than the horizon; `longest_skipped` is the longest of them.
        skipped_shards: Names of the files of which something was left out because it cannot be used, sorted.
        lost_episodes: Number of episodes that broken files took with them, as far as their index is known.

    Example:
        >>> from action_tokenizers.data import smooth_episodes
        >>> episodes = smooth_episodes(10)
        >>> whole = ChunkSample(k=100, horizon=8).add(episodes)
        >>> some = ChunkSample(k=100, horizon=8).add(episodes[[7, 2, 9, 1]])
        >>> rest = ChunkSample(k=100, horizon=8).add(episodes[[0, 8, 3, 4, 5, 6]])
        >>> rest.merge(some).digest() == whole.digest()
        True
    """

    def __init__(
        self,
        k: int = 32768,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        horizon: int | None = None,
    ) -> None:
        if k < 1:
            raise ActionValueError(f"expected k >= 1, got {k}")
        if horizon is not None and horizon < 1:
            raise ActionValueError(f"expected horizon >= 1, got {horizon}")
        for key, weight in (weights or {}).items():
            if not (math.isfinite(weight) and weight > 0):
                raise ActionValueError(f"expected weights > 0, got {weight} for {key!r}: leave its data out")
        self.k, self.seed, self.horizon = int(k), int(seed), horizon
        self.weights = None if weights is None else {key: float(weights[key]) for key in sorted(weights)}
        self.relative: Relative | None = None
        self.action_dim: int | None = None
        self.skipped = 0
        self.longest_skipped = 0
        self.skipped_shards: tuple[str, ...] = ()
        self.lost_episodes = 0
        self._reservoir = Reservoir(self.k)
        self._count: dict[str, int] = {}
        self._extent: dict[str, Extent] = {}
        self._fps: set[float | None] = set()

    @classmethod
    def of(
        cls,
        data: "FitData",
        horizon: int | None = None,
        k: int = 32768,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
    ) -> "ChunkSample":
        """Return a sample of anything `fit` accepts; a sample comes back as it is.

        Args:
            data: Episodes, a ChunkSample, an array or tensor `(n, t, d)` (chunk i becomes episode i of key
                `"default"`), a list of `(t_i, d)` arrays (EPISODES), or an iterable of these, consumed
                lazily, in which the ids of bare arrays run on.
            horizon: Steps of a chunk; None takes the arrays' t, else one second of the first episodes.
            k: Most chunks to hold.
            seed: Seed of the hash.
            weights: Per key weights.

        Raises:
            ActionShapeError: No horizon to be had, or every episode is shorter than it.
        """
        from action_tokenizers.data.accept import sample_of

        return sample_of(data, cls(k, seed, weights, horizon))

    def add(
        self,
        episodes: Episodes,
        horizon: int | None = None,
        stride: int = 1,
        relative: Relative | None = None,
    ) -> Self:
        """Add the chunks of some episodes; those shorter than the horizon count as `skipped`."""
        if horizon is None:
            horizon = default_horizon(episodes) if self.horizon is None else self.horizon
        if horizon is None:
            raise ActionShapeError("expected a horizon: give horizon=, or episodes that know their fps")
        self._agree(horizon, episodes.action_dim, relative)
        plan = plan_chunks(episodes, horizon, stride)
        self.skipped += len(plan.skipped)
        if plan.skipped:
            short = [length for length in episodes.lengths if length < horizon]
            self.longest_skipped = max(self.longest_skipped, *short)
        self._fps.add(episodes.fps)
        if len(plan) == 0:
            return self
        episode = np.asarray(episodes.names, np.int64)[plan.position]
        start = np.asarray(episodes.offsets, np.int64)[plan.position] + plan.first

        def fetch(rows: IntArray) -> tuple[FloatArray, NDArray[np.bool_]]:
            found = gather(episodes, plan[rows], relative)
            pad = found.action_is_pad
            return found.actions, np.zeros(found.actions.shape[:2], np.bool_) if pad is None else pad

        group = (episodes.key, episodes.source)
        return self._admit(group, episode, start, planned_extent(episodes, plan, relative), fetch)

    def add_chunks(
        self,
        actions: Any,
        *,
        key: str = "default",
        episode: ArrayLike,
        start: ArrayLike,
        action_is_pad: ArrayLike | None = None,
        source: str = "",
        fps: float | None = None,
    ) -> Self:
        """Add ready chunks `(n, t, d)` with their episode ids `(n,)` and first frames `(n,)`."""
        chunks, ids, starts, pads = checked_chunks(actions, episode, start, action_is_pad)
        self._agree(chunks.shape[1], chunks.shape[2], None)
        self._fps.add(fps)
        if len(chunks) == 0:
            return self
        return self._admit((key, source), ids, starts, extent(chunks, pads), lambda rows: (chunks[rows], pads[rows]))

    def part(self, threshold: float = math.inf) -> Self:
        """Return an empty sample to fill elsewhere and merge into this one.

        It holds only chunks that may still be among the k of this one, and none of a priority above `threshold`.
        """
        empty = type(self)(self.k, self.seed, self.weights, self.horizon)
        empty._reservoir.shut_out(min(threshold, self._reservoir.threshold))
        return empty

    def merge(self, other: "ChunkSample") -> Self:
        """Take in another sample, of other data, with the same k, seed and weights."""
        mine, theirs = ((s.k, s.seed, s.weights) for s in (self, other))
        if mine != theirs:
            raise ActionValueError(f"expected samples of the same k, seed and weights, got {mine} and {theirs}")
        if other.action_dim is not None and other.horizon is not None:
            self._agree(other.horizon, other.action_dim, other.relative)
        elif other.horizon is not None and self.horizon not in (None, other.horizon):
            raise ActionShapeError(f"expected horizon {self.horizon}, got a sample of {other.horizon}")
        self.skipped += other.skipped
        self.longest_skipped = max(self.longest_skipped, other.longest_skipped)
        self.skipped_shards = tuple(sorted({*self.skipped_shards, *other.skipped_shards}))
        self.lost_episodes += other.lost_episodes
        self._fps |= other._fps
        for key, count in other._count.items():
            self._note(key, count, other._extent[key])
        self._reservoir.merge(other._reservoir)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file (safetensors, no pickle), atomically; equal samples are equal bytes."""
        from action_tokenizers.data.sample_file import write

        write(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "ChunkSample":
        """Return the sample that `save` wrote; FormatError for anything else."""
        from action_tokenizers.data.sample_file import read

        return read(path)

    def digest(self) -> str:
        """Return a hex blake2b over all contents: equal exactly where the samples are."""
        from action_tokenizers.data.sample_file import digest

        return digest(self)

    def __len__(self) -> int:
        """Return the number of chunks held."""
        return len(self._rows)

    def __repr__(self) -> str:
        """Return the facts, not the arrays."""
        return (
            f"ChunkSample({len(self)} of {sum(self._count.values())} chunks, horizon={self.horizon}, "
            f"action_dim={self.action_dim}, keys={list(self.key_names)}, skipped={self.skipped})"
        )

    @property
    def actions(self) -> FloatArray:
        """Chunks `(n, t, d)` float32, in order of priority."""
        return self._rows.actions

    @property
    def action_is_pad(self) -> NDArray[np.bool_] | None:
        """Mask `(n, t)` of steps that were not recorded; None where all were."""
        pad = self._rows.pad
        return pad if pad.any() else None

    @property
    def key_names(self) -> tuple[str, ...]:
        """Every key seen, sorted."""
        return tuple(sorted(self._count))

    @property
    def unsampled_keys(self) -> tuple[str, ...]:
        """The keys seen of which the sample holds no chunk, sorted: k was too small for them."""
        rows = self._rows  # read first: reading renumbers the groups
        groups = self._reservoir.groups
        held = {groups[number][0] for number in np.unique(rows.group)}
        return tuple(key for key in self.key_names if key not in held)

    @property
    def key_index(self) -> IntArray:
        """`(n,)` index of each chunk's key in `key_names`."""
        names = {name: i for i, name in enumerate(self.key_names)}
        rows = self._rows  # read first: reading renumbers the groups
        return np.array([names[key] for key, _ in self._reservoir.groups], np.int64)[rows.group]

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source seen, sorted; chunks without one are not listed."""
        return tuple(sorted({source for _, source in self._reservoir.groups if source}))

    @property
    def episode(self) -> IntArray:
        """`(n,)` the recorded episode name of each chunk."""
        return self._rows.episode

    @property
    def start(self) -> IntArray:
        """`(n,)` the recorded frame of each chunk's first step."""
        return self._rows.start

    @property
    def count(self) -> dict[str, int]:
        """Per key, the exact number of chunks seen."""
        return {key: self._count[key] for key in self.key_names}

    @property
    def minimum(self) -> dict[str, FloatArray]:
        """Per key, the exact minimum `(d,)` of all values seen, pads left out."""
        return {key: self._extent[key][0] for key in self.key_names}

    @property
    def maximum(self) -> dict[str, FloatArray]:
        """Per key, the exact maximum `(d,)` of all values seen, pads left out."""
        return {key: self._extent[key][1] for key in self.key_names}

    @property
    def fps(self) -> float | None:
        """Frames per second where everything added agrees on it, else None."""
        return next(iter(self._fps)) if len(self._fps) == 1 else None

    @property
    def _rows(self) -> Rows:
        rows = self._reservoir.rows()
        return Rows.none(self.horizon or 0, self.action_dim or 0) if rows is None else rows

    def _agree(self, horizon: int, dim: int, relative: Relative | None) -> None:
        """Fix horizon, dims and relative mode by the first chunks, hold the later ones to them."""
        for what, mine, got in (("horizon", self.horizon, horizon), ("action_dim", self.action_dim, dim)):
            if mine is not None and mine != got:
                raise ActionShapeError(
                    f"expected {what} {mine} as in this sample, got {got}: sample other shapes apart"
                )
        if self.action_dim is not None and self.relative != relative:
            raise ActionValueError(f"expected relative={self.relative} as in this sample, got {relative}")
        self.horizon, self.action_dim, self.relative = horizon, dim, relative

    def _admit(self, group: Group, episode: IntArray, start: IntArray, seen: Extent, fetch: Fetch) -> Self:
        """Count these chunks and hold those that may be among the k of smallest priority."""
        self._offer(group, episode, start, fetch)
        self._note(group[0], len(start), seen)
        return self

    def _offer(self, group: Group, episode: IntArray, start: IntArray, fetch: Fetch) -> None:
        priority = priorities(*group, episode, start, self.seed, self._weight(group[0]))
        self._reservoir.offer(group, episode, start, priority, fetch)

    def _weight(self, key: str) -> float | None:
        if self.weights is None:
            return None
        if key not in self.weights:
            raise ActionValueError(f"expected a weight for every key, got none for {key!r} in {self.weights}")
        return self.weights[key]

    def _note(self, key: str, count: int, seen: Extent) -> None:
        low, high = self._extent.get(key, seen)
        self._count[key] = self._count.get(key, 0) + count
        # of 0.0 and -0.0 the extreme is the one that comes last: adding a zero leaves but one of them
        zero = np.float32(0)
        self._extent[key] = (np.minimum(low, seen[0]) + zero, np.maximum(high, seen[1]) + zero)
