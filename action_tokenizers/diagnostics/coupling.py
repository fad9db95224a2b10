"""How far two laws over ids are apart: in total variation, or in actions that differ by more than a threshold.

Total variation is the least probability, over all couplings of two laws, that the ids differ; the cost of a threshold
is the least probability that the decoded actions differ by more than it (Cao & Xie 2026, arXiv:2603.20538, Def 4), so
that another id for nearly the same action counts for nothing. Both are exact where every probability can be listed.
Else total variation is estimated from draws, any coupling of draws bounds the cost, and logits bound both.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.measure import LEVEL
from action_tokenizers.diagnostics.policy import (
    MASS_ROUNDING,
    SURE,
    CheckedPolicy,
    TokenPolicy,
    checked,
    derived,
    leveled,
    named_state,
)
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = [
    "SequenceTV",
    "cost_of",
    "exact_tv",
    "log_ratio",
    "logit_certificate",
    "maximal_coupling",
    "sequence_tv",
    "threshold_cost",
]

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Cost = Callable[[Floats, Floats, float], float]

UNITS = 1 << 30  # integer units of probability in a flow
ROUNDS = 16  # of draws from what a coupling has left over


class SequenceTV(NamedTuple):
    """Total variation of whole id sequences, per pair of states `(b,)`; the ends are of a guaranteed interval."""

    value: Floats
    low: Floats
    high: Floats


def sequence_tv(
    policy: TokenPolicy, states: States, others: States, n: int = 1000, seed: int = 0, level: float = LEVEL
) -> SequenceTV:
    """Estimate, without bias, how far a policy's laws P at `states` and Q at `others` are apart.

    The mean of |P - Q| / (P + Q) over draws from (P + Q) / 2, of which P and Q give half each. The signed mean is 0
    for every normalised policy, and is tested.

    Args:
        policy: which.
        states: `(b, ds)`.
        others: `(b, ds)`.
        n: draws per pair.
        seed: of the draws.
        level: of the interval (Hoeffding), for each pair alone.

    Raises:
        ActionValueError: the policy is not normalised, or its answers are unusable; names the row.
    """
    policy, half = checked(policy), max(1, -(-n // 2))
    x, y = np.repeat(states, half, axis=0), np.repeat(others, half, axis=0)
    tilt = np.stack([_tilt(policy, x, y, derived(seed, 0)), -_tilt(policy, y, x, derived(seed, 1))])
    tilt = tilt.reshape(2, len(states), half)
    _refuse_tilted(tilt, states)
    value = np.abs(tilt).mean((0, 2))
    reach = math.sqrt(math.log(2 / (1 - level)) / (4 * half))
    return SequenceTV(value, np.maximum(value - reach, 0), np.minimum(value + reach, 1))


def _tilt(policy: CheckedPolicy, x: States, y: States, seed: int) -> Floats:
    """Return (Q - P) / (Q + P) at ids drawn from P, the law at `x`, row by row; Q is the law at `y`."""
    tilt: Floats = np.tanh(log_ratio(policy, x, y, policy.sample(x, seed=seed)) / 2)
    return tilt


def _refuse_tilted(tilt: Floats, states: States) -> None:
    """Refuse `tilt (2, b, n)` whose mean is not 0, as sum (P + Q) / 2 * (Q - P) / (Q + P) = 0."""
    _, pairs, half = tilt.shape
    mean = tilt.mean((0, 2))
    reach = 2 * math.sqrt(math.log(2 * pairs / SURE) / (4 * half))
    bad = np.flatnonzero(np.abs(mean) > reach)
    if len(bad):
        raise ActionValueError(
            f"expected log-probabilities that are normalised in every state, got sums that differ between "
            f"{named_state(states, bad)} and its neighbour (signed mean {mean[bad[0]]:.3g}, 0 ± {reach:.2g} expected); "
            "sum log_softmax values, with the temperature and masks that sample uses"
        )


def exact_tv(p: Floats, q: Floats) -> Floats:
    """Return the total variation of probabilities `p (..., k)` and `q (..., k)`, `(...)`.

    Example:
        >>> float(exact_tv(np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])))
        0.25
    """
    tv: Floats = 0.5 * np.abs(np.asarray(p, np.float64) - q).sum(-1)
    return tv


def threshold_cost(p: Floats, q: Floats, actions: npt.NDArray[np.floating], eps: float) -> float:
    """Return the least probability that two actions of these laws differ by more than `eps` (Def 4).

    The least over all couplings is 1 - the largest flow from p to q along pairs at most `eps` apart (Strassen 1965).
    For scalar actions it is exact; else probabilities are rounded down to 2**-30, so that the result is never below
    the truth, and above it by at most 2**-29 per action.

    Args:
        p: `(k,)` probabilities.
        q: `(k,)`.
        actions: `(k,)`, `(k, d)` or `(k, t, d)`; a NaN is an undecodable one, which is like itself only.
        eps: threshold, in their unit.

    Raises:
        ActionShapeError: not one probability per action.
        ActionValueError: they are no probabilities.

    Example:
        >>> threshold_cost(np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5]), np.array([0.0, 1.0, 2.0]), 1.0)
        0.0
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.ndim != 1 or not p.shape == q.shape == np.shape(actions)[:1]:
        raise ActionShapeError(
            f"expected p (k,), q (k,) and actions (k, ...), got {p.shape}, {q.shape} and {np.shape(actions)}"
        )
    for name, law in (("p", p), ("q", q)):
        if not (law >= 0).all() or abs(law.sum() - 1) > MASS_ROUNDING:
            raise ActionValueError(f"expected probabilities that add up to 1 in {name}, got a sum of {law.sum():.4g}")
    return cost_of(actions)(p / p.sum(), q / q.sum(), eps)


def cost_of(actions: npt.NDArray[np.floating]) -> Cost:
    """Return `threshold_cost` of these actions as a function of p, q and eps, for probabilities known to be such."""
    every = np.asarray(actions, np.float64)
    every = every if every.ndim == 3 else every.reshape(len(every), 1, -1)
    if every[0].size == 1:
        points = every[:, 0, 0]
        order = np.argsort(points, kind="stable")[: int((~np.isnan(points)).sum())]  # NaN come last
        return partial(_cost_on_a_line, order, points[order])
    distance = np.zeros((len(every), len(every)))
    for t in range(every.shape[1]):
        distance = np.maximum(distance, np.linalg.norm(every[:, None, t] - every[None, :, t], axis=-1))
    distance[np.isnan(distance)] = np.inf
    np.fill_diagonal(distance, 0)
    return partial(_cost_by_flow, distance)


def _cost_on_a_line(order: Ints, points: Floats, p: Floats, q: Floats, eps: float) -> float:
    """Return the cost of scalar actions; `order` are those that decode, at ascending `points`."""
    alone = np.minimum(p, q)
    alone[order] = 0
    matched = _match_on_a_line(points, p[order].tolist(), q[order].tolist(), eps)
    return _no_more_than_tv(1 - matched - float(alone.sum()), p, q)


def _cost_by_flow(distance: Floats, p: Floats, q: Floats, eps: float) -> float:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    give, take = (np.floor(law * UNITS).astype(np.int32) for law in (p, q))
    rows, columns = np.flatnonzero(give), np.flatnonzero(take)
    n, m = len(rows), len(columns)
    i, j = np.nonzero(distance[np.ix_(rows, columns)] <= eps)
    heads = np.concatenate([np.zeros(n, np.int32), 1 + i, 1 + n + np.arange(m)])
    tails = np.concatenate([1 + np.arange(n), 1 + n + j, np.full(m, n + m + 1)])
    between = np.minimum(give[rows][i], take[columns][j])
    capacity = np.concatenate([give[rows], between, take[columns]])
    graph = csr_array((capacity, (heads, tails)), shape=(n + m + 2, n + m + 2))
    return _no_more_than_tv(1 - float(maximum_flow(graph, 0, n + m + 1).flow_value) / UNITS, p, q)


def _no_more_than_tv(cost: float, p: Floats, q: Floats) -> float:
    """Return a cost without what rounding added: every action is as near itself as it can be."""
    return min(max(cost, 0.0), float(exact_tv(p, q)))


def _match_on_a_line(points: Floats, p: list[float], q: list[float], eps: float) -> float:
    """Return the most mass of p and q on ascending `points` that can be paired within `eps`.

    From left to right: what lies farther left has no better partner later, so nothing is lost by pairing it first.
    """
    i = j = 0
    matched = 0.0
    places = points.tolist()
    while i < len(p) and j < len(q):
        if p[i] <= 0 or (q[j] > 0 and places[j] - places[i] > eps):
            i += 1
        elif q[j] <= 0 or places[i] - places[j] > eps:
            j += 1
        else:
            both = min(p[i], q[j])
            matched += both
            p[i] -= both
            q[j] -= both
    return matched


def log_ratio(policy: CheckedPolicy, states: States, others: States, ids: Ints) -> Floats:
    """Return log Q / P of `ids` drawn from P, the law at `states`; Q is the law at `others`."""
    return policy.log_prob(others, ids) - policy.log_prob_of_own(states, ids)


def maximal_coupling(
    policy: CheckedPolicy, states: States, others: States, ids: Ints, ratio: Floats, seed: int = 0
) -> tuple[Ints, Ints, Bools]:
    """Give each row of ids drawn at a state a row for the state beside it, equal as often as any coupling can: 1 - TV.

    A row of P is kept for Q with probability min(1, Q / P); else one is drawn from what Q has over P, by rejection.

    Args:
        policy: which.
        states: `(b, ds)` where P is asked.
        others: `(b, ds)` where Q is asked.
        ids: `(b, n)` drawn from P, with another seed.
        ratio: `(b,)` their `log_ratio`.
        seed: of the draws from Q.

    Returns:
        Rows `(b, n)` of P, rows `(b, n)` of Q, and which of the latter were not found in `ROUNDS` draws, `(b,)`: Q is
        then so near P that this is rare, and they count as different from everything.
    """
    random = np.random.default_rng([seed, 1])
    missing = np.log(1 - random.random(len(ids))) > ratio
    found = ids
    for turn in range(ROUNDS):
        rows = np.flatnonzero(missing)
        if not len(rows):
            break
        drawn = policy.sample(others[rows], seed=derived(seed, 2 + turn))
        taken = np.log(1 - random.random(len(rows))) > log_ratio(policy, others[rows], states[rows], drawn)
        found, drawn = leveled([found, drawn], policy.pad)
        found[rows[taken]] = drawn[taken]
        missing[rows[taken]] = False
    ids, found = leveled([ids, found], policy.pad)
    return ids, found, missing


def logit_certificate(z: Floats, z_other: Floats) -> Floats:
    """Return a bound of the total variation of two softmax laws from their logits `(..., v)`, `(...)`.

    TV <= tanh(span / 4) <= max |z - z'| / 2 with the span, largest minus smallest, of z - z'. Ids that are impossible
    (-inf) under both do not count; one that is so under one of them makes it 1.

    Example:
        >>> float(logit_certificate(np.array([1.0, 0.0]), np.array([-1.0, 0.0])).round(4))
        0.4621
    """
    z, z_other = np.asarray(z, np.float64), np.asarray(z_other, np.float64)
    never = np.isneginf(z) & np.isneginf(z_other)
    apart = np.where(never, 0.0, z) - np.where(never, 0.0, z_other)
    span = np.where(never, -np.inf, apart).max(-1) - np.where(never, np.inf, apart).min(-1)
    bound: Floats = np.tanh(span / 4)
    return bound
