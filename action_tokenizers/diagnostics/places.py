"""`Places`: a sample of recorded states with their actions, and `Pairs` of them from different episodes.

Steps of one episode are copies of each other: only states of different episodes tell of the expert or the tokenizer.
States are compared in standardised units (every dim over its standard deviation, constant dims dropped, Euclidean),
actions in half ranges. Of tokenizers that code steps together a place is the start of a chunk and its action the whole
chunk, whose norm is the largest over its steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.subject import Subject

__all__ = ["FEW_NEIGHBOURS", "NEIGHBOURS", "SAME", "Pairs", "Places", "blocks", "norm"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
States = Sequence[npt.NDArray[Any]]

MOST_PLACES = 3000  # compared with each other: bounds the cost
MOST_STATE_DIMS = 64  # beyond it fewer places are compared
NEIGHBOURS = 32
FEW_NEIGHBOURS = 8
RANKS = (0, 1, 3, 7, 15, 31)  # which neighbours make pairs: distances of all sizes
FAR_PAIRS = 4  # random partners per place
CURVE_POINTS = 10
SAME = 1e-6  # standard deviations: states nearer than this are the same
BLOCK = 1 << 21  # values held at once


@dataclass(frozen=True, eq=False)
class Places:
    """Sampled steps, or starts of chunks, with their states, actions and codes; in the order of episodes and steps.

    Attributes:
        subject: where they are from.
        recorded: `(t_i, ds')` the states of every episode of the subject, in any scale; whatever they hold at padded
            steps, no place is there.
        seed: of the sample, and of whatever is drawn from it.
        states: `(n, ds)` standardised.
        scale: `(ds,)` what they were divided by.
        rows: `(n,)` the chunk of the subject each is in.
        offsets: `(n,)` its step in the chunk; None: the whole chunk.
        step: `(n,)` its step in the episode.
    """

    subject: Subject
    recorded: States
    seed: int
    states: Floats
    scale: Floats
    rows: Ints
    offsets: Ints | None
    step: Ints

    @classmethod
    def of(
        cls,
        subject: Subject,
        recorded: States,
        seed: int = 0,
        *,
        single: bool = False,
        most: int | None = MOST_PLACES,
    ) -> "Places":
        """Sample what the tokenizer codes at once.

        Args:
            subject: the tokenizer on the episodes.
            recorded: `(t_i, ds)` per episode of `subject.episodes`, in any scale.
            seed: of the sample.
            single: take single steps whatever the tokenizer (of relative actions: the first of each chunk).
            most: at most so many places, fewer where states have many dims, as many of each episode as there are; None:
                all.
        """
        offsets: Ints | None
        if not single and (not subject.steps_alone or subject.tokenizer.relative is not None):
            rows, offsets = np.flatnonzero(subject.real.all(1)), None
        elif subject.tokenizer.relative is None:
            rows, offsets = np.nonzero(subject.real)
        else:  # later steps of a chunk are relative to a state that is not theirs
            rows = np.flatnonzero(subject.real[:, 0])
            offsets = np.zeros(len(rows), np.int64)
        joined, moving, scale = _moving(recorded, np.concatenate(_real(subject)))
        if most is not None:
            fewer = int(most * min(1.0, (MOST_STATE_DIMS / max(1, len(scale))) ** 0.5))
            kept = _evenly(subject.episode[rows], seed, fewer)
            rows, offsets = rows[kept], None if offsets is None else offsets[kept]
        step = subject.first[rows] + (0 if offsets is None else offsets)
        starts = np.cumsum([0, *(len(s) for s in recorded)])
        seen = joined[:, moving][starts[subject.episode[rows]] + step] / scale
        return cls(subject, recorded, seed, seen, scale, rows, offsets, step)

    @property
    def steps(self) -> "Places":
        """Single steps, whatever the tokenizer."""
        return self if self.offsets is not None else Places.of(self.subject, self.recorded, self.seed, single=True)

    def in_own_units(self) -> "Places":
        """Return the same with actions in half spans of what is coded, see `Subject.in_own_units`."""
        return replace(self, subject=self.subject.in_own_units()) if self.subject.is_relative else self

    @property
    def whole(self) -> "Places":
        """All places, not a sample of them."""
        single = self.offsets is not None
        return Places.of(self.subject, self.recorded, self.seed, single=single, most=None)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def members(self) -> Ints:
        """`(e,)` the positions of the episodes of the data that have places."""
        return np.unique(self.subject.episode[self.rows])

    @cached_property
    def episode(self) -> Ints:
        """`(n,)` which of the `members` each is of."""
        return np.searchsorted(self.members, self.subject.episode[self.rows])

    @property
    def episodes(self) -> int:
        """e."""
        return len(self.members)

    @property
    def n(self) -> dict[str, int]:
        """Sample sizes, as measures tell them."""
        return {"episodes": self.episodes, "places": len(self)}

    @property
    def fault(self) -> str:
        """Why nothing can be said, or ``."""
        if not len(self.scale):
            return "The states never change, so that no two can be told apart."
        if not len(self):
            return "No chunk was recorded without a padded step in it."
        return "One episode only: there is no other one to find neighbours in." if self.episodes < 2 else ""

    @cached_property
    def actions(self) -> Floats:
        """`(n, t, d)` recorded, in units; t is 1 for single steps."""
        return self._at(self.subject.actions)

    @cached_property
    def decoded(self) -> Floats:
        """`(n, t, d)` likewise."""
        return self._at(self.subject.decoded) / self.subject.unit

    @cached_property
    def phase(self) -> Floats:
        """`(n,)` share of the recorded steps of the episode gone by."""
        real = _real(self.subject)
        starts = np.cumsum([0, *map(len, real)])[:-1]
        owner = self.members[self.episode]
        # how many real steps came before each step, of its own episode
        before = np.concatenate([np.cumsum(mask) - mask for mask in real])[starts[owner] + self.step]
        lengths = np.array([mask.sum() for mask in real])[owner]
        share: Floats = before / np.maximum(lengths - 1, 1)
        return share

    @cached_property
    def tokens(self) -> Ints:
        """`(n,)` one number per distinct code, 0..k-1."""
        # ids that do not say which step they are about leave only what they decode to
        ids = self.subject.ids[self.rows] if self.offsets is None else self._ids_of_steps(self.offsets)
        code = ids if (ids >= 0).any(1).all() else self.decoded.reshape(len(self), -1)
        return np.asarray(np.unique(code, axis=0, return_inverse=True)[1]).reshape(-1)

    @cached_property
    def mean_error(self) -> float:
        """Of the decoded actions, over episodes."""
        return float(self.per_episode(norm(self.decoded - self.actions)).mean())

    @cached_property
    def nearest(self) -> tuple[Ints, Floats]:
        """The nearest places of other episodes, as `neighbours` finds them."""
        return self.neighbours(NEIGHBOURS)

    @cached_property
    def reach(self) -> int:
        """How many of the nearest places everyone has."""
        return int(np.isfinite(self.nearest[1]).sum(1).min())

    def neighbours(self, k: int, phase: float | None = None) -> tuple[Ints, Floats]:
        """Return the `k` nearest places of other episodes, `(n, k)`, and how far they are, inf where there is none."""
        from scipy.spatial.distance import cdist

        # one table of distances, not a tree: own episodes are left out, and states have many dims
        k = min(k, len(self) - 1)
        index, distance = np.empty((len(self), k), np.int64), np.empty((len(self), k))
        for rows in blocks(len(self), len(self)):
            d = cdist(self.states[rows], self.states)
            d[self.episode[rows, None] == self.episode] = np.inf
            if phase is not None:
                d[np.abs(self.phase[rows, None] - self.phase) > phase] = np.inf
            near = np.argpartition(d, k - 1, axis=1)[:, :k]
            found = np.take_along_axis(d, near, 1)
            order = np.argsort(found, axis=1, kind="stable")
            index[rows] = np.take_along_axis(near, order, 1)
            distance[rows] = np.take_along_axis(found, order, 1)
        return index, distance

    def per_episode(self, values: Floats) -> Floats:
        """Return the mean of `values (n, ...)` per episode, `(e, ...)`."""
        total = np.zeros((self.episodes, *values.shape[1:]))
        np.add.at(total, self.episode, values)
        count = np.bincount(self.episode, minlength=self.episodes)
        averages: Floats = total / count.reshape(-1, *[1] * (values.ndim - 1))
        return averages

    def _at(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values[self.rows] if self.offsets is None else values[self.rows, self.offsets][:, None]

    def _ids_of_steps(self, offsets: Ints) -> Ints:
        """Return the ids of single steps `(n, m)`, in order, filled up with -1."""
        subject = self.subject
        unique, inverse = np.unique(self.rows, return_inverse=True)
        located = subject.tokenizer.locate(subject.ids[unique], **subject.coded.shape)
        own = np.asarray(located)[inverse.reshape(-1), :, 0] == offsets[:, None]
        width = max(1, int(own.sum(1).max()))
        order = np.argsort(~own, axis=1, kind="stable")[:, :width]
        ids = np.take_along_axis(subject.ids[self.rows], order, 1)
        return np.where(np.take_along_axis(own, order, 1), ids, -1)


class Pairs(NamedTuple):
    """Pairs of places of different episodes.

    Attributes:
        i: `(p,)` places.
        j: `(p,)` places.
        distance: `(p,)` of the states.
        nearest: `(p,)` bool, whether j is the nearest to i.
    """

    i: Ints
    j: Ints
    distance: Floats
    nearest: Bools

    @classmethod
    def of(cls, places: Places, phase: float | None = None) -> "Pairs":
        """Take neighbours of several ranks, and random partners for large distances.

        Args:
            places: of at least two episodes.
            phase: pair only places whose share of their episode gone by differs by at most this.
        """
        index, distance = places.nearest if phase is None else places.neighbours(NEIGHBOURS, phase)
        ranks = [rank for rank in RANKS if rank < index.shape[1]]
        n = len(places)
        i = np.repeat(np.arange(n), len(ranks))
        j, d = index[:, ranks].ravel(), distance[:, ranks].ravel()
        first = np.tile(np.arange(len(ranks)) == 0, n)
        near = cls(i, j, d, first).only(np.isfinite(d))
        a, b = np.random.default_rng(places.seed).integers(0, n, (2, FAR_PAIRS * n))
        apart = places.episode[a] != places.episode[b]
        if phase is not None:
            apart &= np.abs(places.phase[a] - places.phase[b]) <= phase
        a, b = a[apart], b[apart]
        far = cls(a, b, np.linalg.norm(places.states[a] - places.states[b], axis=1), np.zeros(len(a), bool))
        return cls(
            np.concatenate([near.i, far.i]),
            np.concatenate([near.j, far.j]),
            np.concatenate([near.distance, far.distance]),
            np.concatenate([near.nearest, far.nearest]),
        )

    def only(self, chosen: Bools) -> "Pairs":
        """Return the `chosen (p,)` ones."""
        return Pairs(self.i[chosen], self.j[chosen], self.distance[chosen], self.nearest[chosen])

    def jumps(self, values: Floats) -> Floats:
        """Return the norm of the difference of `values (n, t, d)`, `(p,)`."""
        out = np.empty(len(self.i))
        for rows in blocks(len(self.i), values[0].size):
            out[rows] = norm(values[self.i[rows]] - values[self.j[rows]])
        return out

    def classes(self) -> list[Bools]:
        """Return about ten equally full classes by distance, nearest first: which pairs `(p,)` are in each."""
        edges = np.unique(np.quantile(self.distance, np.linspace(0, 1, CURVE_POINTS + 1)[1:-1]))
        found = np.searchsorted(edges, self.distance)
        return [found == c for c in np.unique(found)]


def norm(difference: Floats) -> Floats:
    """Return the norm of `(..., t, d)`: Euclidean over dims, the largest over steps."""
    norms: Floats = np.sqrt(np.square(difference).sum(-1)).max(-1)
    return norms


def blocks(n: int, size: int) -> list[slice]:
    """Return slices of 0..n-1 that hold about two million values at most, where each row has `size`."""
    step = max(1, BLOCK // max(1, size))
    return [slice(start, start + step) for start in range(0, n, step)]


def _real(subject: Subject) -> list[Bools]:
    """Return which steps of every episode of the data were recorded, `(t_i,)` each."""
    return [~mask for mask in subject.episodes.padding]


def _moving(recorded: States, real: Bools) -> tuple[Floats, Bools, Floats]:
    """Return the states of all episodes, one after another, which dims move, and how far: their standard deviation.

    Only `real (sum of t_i,)` steps say what moves.
    """
    joined = np.concatenate([np.asarray(s, np.float64) for s in recorded])
    told = joined[real]
    moving = np.ptp(told, axis=0) > 1e-6 * np.abs(told).max(0)
    return joined, moving, told[:, moving].std(0)


def _evenly(episode: Ints, seed: int, most: int) -> Ints:
    """Return the positions of at most `most` of `episode (n,)`, as evenly over the episodes as there are steps."""
    if len(episode) <= most:
        return np.arange(len(episode))
    order = np.random.default_rng(seed).permutation(len(episode))
    by_episode = np.argsort(episode[order], kind="stable")
    _, starts, counts = np.unique(episode[order][by_episode], return_index=True, return_counts=True)
    turn = np.empty(len(episode), np.int64)
    turn[by_episode] = np.arange(len(episode)) - np.repeat(starts, counts)
    return np.sort(order[np.argsort(turn, kind="stable")[:most]])
