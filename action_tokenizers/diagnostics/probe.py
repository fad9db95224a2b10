"""A policy asked at the states of held-out chunks, and at states beside them; once, for every measure of `variation`.

States are measured in standard deviations per dim of the states at hand, actions in half ranges; the distance of two
chunks is the largest over their steps. What counts as a jump does so in half spans of relative actions where such are
coded (`Subject.in_own_units`): in the range of absolute ones none of them might be far from any other.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.coupling import Cost, cost_of, exact_tv, log_ratio, maximal_coupling, sequence_tv
from action_tokenizers.diagnostics.policy import (
    CheckedPolicy,
    TokenPolicy,
    array_of,
    check_normalised,
    checked,
    derived,
    leveled,
)
from action_tokenizers.diagnostics.states import LEAST_ERROR
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import ActionShapeError

__all__ = ["Compared", "Pairs", "Probe"]

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0)  # perturbations, in standard deviations of the states
MULTIPLES = (3.0, 5.0, 10.0)  # thresholds of the jump, in mean errors of the tokenizer, see `Probe.thresholds`
SECOND_LOOK = 1024  # draws for the pair that looked worst


@dataclass(frozen=True)
class Pairs:
    """A state beside each chosen one.

    Attributes:
        sigma: standard deviation of the perturbation; None: the nearest state of another episode.
        others: `(b, ds)`.
        distance: `(b,)` from the chosen ones, in standard deviations of the states.
        stream: of random numbers, its own.
    """

    sigma: float | None
    others: States
    distance: Floats
    stream: int


@dataclass(frozen=True)
class Compared:
    """What a policy does at pairs of states.

    Attributes:
        pairs: which.
        tv: `(b,)`, exact or estimated.
        jump: per coupling `(k, b)`, the share of draws that are more than each threshold apart.
        moved: `(b,)` mean distance of decoded draws with the same seed; NaN where none decode.
        error: `(b,)` mean distance of decoded draws from the recorded chunk; NaN where none decode.
        decodable: share of the draws at the other states.
    """

    pairs: Pairs
    tv: Floats
    jump: dict[str, Floats]
    moved: Floats
    error: Floats
    decodable: float


@dataclass(frozen=True)
class Probe:
    """A policy at the states of held-out chunks and beside them; asked once, for all measures to look at.

    Attributes:
        subject: the chunks.
        policy: checked, and found normalised as far as one can see.
        is_normalised: whether that could be seen, see `check_normalised`.
        states: `(n, ds)` at the first step of each chunk.
        rows: `(b,)` the chunks to ask at, evenly from all episodes.
        scale: `(ds,)` standard deviation of each state dim.
        draws: rows of ids per state.
        seed: of everything.
    """

    subject: Subject
    policy: CheckedPolicy
    is_normalised: bool
    states: States
    rows: Ints
    scale: Floats
    draws: int
    seed: int

    @classmethod
    def of(
        cls, subject: Subject, states: Any, policy: TokenPolicy, seed: int = 0, *, pairs: int = 128, draws: int = 32
    ) -> "Probe":
        """Choose the chunks and look at the policy.

        Raises:
            ActionShapeError: not one state per chunk, or answers of another shape.
            ActionValueError: the policy's answers are unusable.
        """
        states = np.asarray(array_of(states, "states", "iuf"), np.float32)
        if states.ndim != 2 or len(states) != len(subject):
            raise ActionShapeError(
                f"expected states ({len(subject)}, ds), one per chunk at its first step, got {states.shape}"
            )
        guarded = checked(policy, subject.tokenizer, **subject.coded.shape, key=subject.key)
        rows = _evenly(subject.episode, pairs, seed)
        is_normalised = check_normalised(guarded, states[rows[:4]], derived(seed, 0))
        return cls(subject, guarded, is_normalised, states, rows, states.std(0, dtype=np.float64), draws, seed)

    @property
    def here(self) -> States:
        """`(b, ds)` the chosen states."""
        return self.states[self.rows]

    @property
    def n(self) -> dict[str, int]:
        """Sample sizes."""
        episodes = len(np.unique(self.subject.episode[self.rows]))
        return {"episodes": episodes, "pairs": len(self.rows), "draws": self.draws}

    @cached_property
    def thresholds(self) -> list[float]:
        """What counts as a jump: multiples of the tokenizer's mean error, taken as at least 0.02, in own units.

        Without that floor a finer tokenizer would make the same smooth policy look the rougher.
        """
        return [multiple * max(self.own_units.mean_error, LEAST_ERROR) for multiple in MULTIPLES]

    @cached_property
    def own_units(self) -> Subject:
        """The subject in the units in which jumps count."""
        return self.subject.in_own_units()

    @property
    def _wider(self) -> Floats:
        """`(d,)` those units per unit of the subject."""
        return self.subject.unit / self.own_units.unit

    @cached_property
    def rings(self) -> list[Pairs]:
        """Perturbed states, the farther the later. A dim that never varies is left as it is."""
        random = np.random.default_rng([self.seed, 1])
        noise = random.standard_normal(self.here.shape) * self.scale
        return [self._pairs(sigma, (self.here + sigma * noise).astype(np.float32), i) for i, sigma in enumerate(SIGMAS)]

    @cached_property
    def neighbours(self) -> Pairs | None:
        """The nearest state of another episode; None with one episode."""
        return None if self.nearest is None else self._pairs(None, self.states[self.nearest], len(SIGMAS))

    @cached_property
    def nearest(self) -> Ints | None:
        """The chunks `(b,)` whose states those are."""
        episode, standard = self.subject.episode, self.states / self._divisor
        if len(np.unique(episode)) < 2:
            return None
        nearest = np.empty(len(self.rows), np.int64)
        for i, row in enumerate(self.rows):
            distance = np.linalg.norm(standard - standard[row], axis=1)
            nearest[i] = np.where(episode == episode[row], np.inf, distance).argmin()
        return nearest

    @cached_property
    def recorded_far(self) -> Floats | None:
        """`(k, b)` 1 where the recorded chunk is more than each threshold from that of the nearest state, else 0."""
        if self.nearest is None:
            return None
        actions, real = self.own_units.actions, self.subject.real
        apart = np.linalg.norm(actions[self.rows] - actions[self.nearest], axis=-1)
        apart = np.where(real[self.rows] & real[self.nearest], apart, 0.0).max(1)
        return np.array([apart > eps for eps in self.thresholds], np.float64)

    @cached_property
    def compared(self) -> list[Compared]:
        """What the policy does at each of the rings."""
        return [self._compare(pairs) for pairs in self.rings]

    @cached_property
    def compared_neighbours(self) -> Compared | None:
        """What it does at the neighbours."""
        return None if self.neighbours is None else self._compare(self.neighbours)

    @cached_property
    def own(self) -> Ints:
        """Rows of ids drawn at the chosen states, `draws` for each in turn, `(b * draws, n)`."""
        return self.policy.sample(self._repeated, seed=derived(self.seed, 2))

    @cached_property
    def error_here(self) -> Floats:
        """`(b,)` mean distance of the decoded draws at the chosen states from the recorded chunks."""
        return self._from_recorded(self._own_decoded)

    @cached_property
    def whole(self) -> Ints:
        """The chunks without padding, `(m,)`: of the others nobody said what their last ids should be."""
        return np.flatnonzero(self.subject.real.all(1))

    @cached_property
    def nll(self) -> Floats:
        """Negative log-likelihood of the recorded ids of each whole chunk, in nats, `(m,)`."""
        found: Floats = -self.policy.log_prob(self.states[self.whole], self.subject.ids[self.whole])
        return found

    def per_episode(self, values: Floats) -> Floats:
        """Return the mean of `values (b,)` of the chosen chunks in each episode; NaN where all are NaN, `(e,)`."""
        which = np.unique(self.subject.episode[self.rows], return_inverse=True)[1]
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            means: Floats = np.bincount(which, np.where(known, values, 0)) / np.bincount(which, known)
        return means

    def largest_tv(self, found: Compared) -> float:
        """Return a total variation that some pair surely has: where it was estimated, by a second look at it."""
        worst = int(found.tv.argmax())
        if self.policy.enumerable:
            return float(found.tv[worst])
        # the largest of many estimates is too large: what counts is what fresh draws say of that pair
        pick = slice(worst, worst + 1)
        seed = derived(self.seed, 5, found.pairs.stream)
        again = sequence_tv(self.policy, self.here[pick], found.pairs.others[pick], SECOND_LOOK, seed)
        return float(again.low[0])

    @property
    def _divisor(self) -> Floats:
        return np.where(self.scale > 0, self.scale, 1.0)

    def _pairs(self, sigma: float | None, others: States, stream: int) -> Pairs:
        # as far apart as they are in float32, which is what the policy sees
        apart = (others.astype(np.float64) - self.here) / self._divisor
        return Pairs(sigma, others, np.linalg.norm(apart, axis=1), stream)

    @cached_property
    def _repeated(self) -> States:
        return np.repeat(self.here, self.draws, axis=0)

    @cached_property
    def _own_log_prob(self) -> Floats:
        return self.policy.log_prob_of_own(self._repeated, self.own)

    @cached_property
    def _own_decoded(self) -> Floats:
        return self._decode(self.own)

    @cached_property
    def _table(self) -> Floats:
        return self.policy.table(self.here)

    @cached_property
    def _costs(self) -> Cost:
        every = np.arange(self.subject.tokenizer.vocab_size, dtype=np.int64)[:, None]
        return cost_of(self._decode(every) * self._wider)

    def _decode(self, ids: Ints) -> Floats:
        return self.policy.decode(ids)[0] / self.subject.unit

    def _compare(self, pairs: Pairs) -> Compared:
        there = np.repeat(pairs.others, self.draws, axis=0)
        ids = self.policy.sample(there, seed=derived(self.seed, 2))  # the seed of the draws here: common random numbers
        decoded = self._decode(ids)
        moved = self._mean_draw(self._apart(self.own, ids, self._own_decoded, decoded))
        if self.policy.enumerable:
            tv, jump = self._exactly(pairs.others)
        else:
            ratio = self.policy.log_prob(there, self.own) - self._own_log_prob
            tv = self._estimated_tv(ratio, log_ratio(self.policy, there, self._repeated, ids))
            maximal = self._maximally(there, ratio, derived(self.seed, 3, pairs.stream))
            same = self._apart(self.own, ids, self._own_decoded * self._wider, decoded * self._wider)
            jump = {"same seed": self._beyond(same), "maximal": self._beyond(maximal)}
        decodable = float((~np.isnan(decoded[:, 0, 0])).mean())
        return Compared(pairs, tv, jump, moved, self._from_recorded(decoded), decodable)

    def _exactly(self, others: States) -> tuple[Floats, dict[str, Floats]]:
        p, q = self._table, self.policy.table(others)
        costs = [[self._costs(a, b, eps) for a, b in zip(p, q, strict=True)] for eps in self.thresholds]
        return exact_tv(p, q), {"best": np.array(costs)}

    def _estimated_tv(self, from_here: Floats, from_there: Floats) -> Floats:
        """Return what the log ratios `(b * draws,)` of the draws at both states say, `(b,)`."""
        size = np.abs(np.tanh(np.stack([from_here, from_there]) / 2))
        tv: Floats = size.reshape(2, len(self.rows), self.draws).mean((0, 2))
        return tv

    def _maximally(self, there: States, ratio: Floats, seed: int) -> Floats:
        ids, others, missing = maximal_coupling(self.policy, self._repeated, there, self.own, ratio, seed)
        apart = np.zeros(len(ids))
        rows = np.flatnonzero((ids != others).any(1))
        if len(rows):
            decoded = (self._own_decoded[rows] * self._wider, self._decode(others[rows]) * self._wider)
            apart[rows] = self._apart(ids[rows], others[rows], *decoded)
        apart[missing] = np.inf
        return apart

    def _apart(self, ids: Ints, others: Ints, decoded: Floats, other_decoded: Floats) -> Floats:
        """Return how far the rows are apart, `(m,)`: 0 for equal ids, inf where one of them does not decode."""
        distance = np.linalg.norm(decoded - other_decoded, axis=-1).max(-1)
        distance[np.isnan(distance)] = np.inf
        left, right = leveled([ids, others], self.policy.pad)
        return np.where((left == right).all(1), 0.0, distance)

    def _beyond(self, apart: Floats) -> Floats:
        shares = [(apart > eps).reshape(len(self.rows), self.draws).mean(1) for eps in self.thresholds]
        return np.array(shares)

    def _mean_draw(self, values: Floats) -> Floats:
        """Return the mean of the finite `values (b * draws,)` of each state."""
        table = values.reshape(len(self.rows), self.draws)
        known = np.isfinite(table)
        with np.errstate(invalid="ignore"):
            mean: Floats = np.where(known, table, 0).sum(1) / known.sum(1)
        return mean

    def _from_recorded(self, decoded: Floats) -> Floats:
        recorded = np.repeat(self.subject.actions[self.rows], self.draws, axis=0)
        real = np.repeat(self.subject.real[self.rows], self.draws, axis=0)
        size = np.linalg.norm(decoded - recorded, axis=-1)
        return self._mean_draw(np.where(real, size, 0.0).max(1))


def _evenly(episode: Ints, most: int, seed: int) -> Ints:
    """Return at most `most` rows, ascending, as evenly from the episodes `(n,)` as they have rows."""
    order = np.random.default_rng([seed, 4]).permutation(len(episode))
    turn = np.empty(len(episode), np.int64)
    for each in np.unique(episode):
        mine = order[episode[order] == each]
        turn[mine] = np.arange(len(mine))
    chosen = order[np.argsort(turn[order], kind="stable")][:most]
    return np.sort(chosen)
