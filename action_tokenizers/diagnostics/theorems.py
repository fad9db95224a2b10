"""The bounds of the theory as formulas: what can be lost over a horizon, and what no method can avoid losing.

Cao & Xie 2026 (arXiv:2603.20538) with the constants of their proofs. Nothing here looks at data: `bounds` puts the
numbers of an audit in.

Throughout, `gain` is g = C / (1 - eta), the largest state deviation per unit of action error (`dynamics`), and
`reward_slope` is L_r, how much the reward changes per unit of state and action. Reward is 0..1 per step, so that a
horizon of H steps can lose at most H.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.errors import ActionValueError

__all__ = [
    "Bound",
    "SmallGain",
    "TwoDeterministic",
    "TwoStochastic",
    "bound_augmented",
    "bound_deterministic",
    "bound_stochastic",
    "floor",
    "product",
    "small_gain",
    "statistical_rate",
    "two_point_deterministic",
    "two_point_stochastic",
]

Floats = npt.NDArray[np.float64]

LEARNING, DEPARTING, EXECUTING = "learning", "departing", "executing"
CONFIDENCE = 0.05


class SmallGain(NamedTuple):
    """What the product of the expert's slope and the system's gain says.

    Attributes:
        product: L g; below 1, a smooth tokenizer costs no more than its error times a constant per step. At 1 or
            more the argument is inconclusive, which is no failure: a stable closed loop can do as well.
        steps_of_error: the smallest k + 1 for which Theorem 3 loses its quadratic term, 3 / (1 - L g).
        deviation: the largest state deviation per unit of the largest error, g / (1 - L g), of the quantized expert.
        learned_deviation: the same of a policy learned from tokens, 3 g / (1 - L g), per unit of the worst error.
    """

    product: float
    steps_of_error: float
    deviation: float
    learned_deviation: float


def small_gain(lipschitz: float, gain: float) -> SmallGain:
    """Return what an expert of slope `lipschitz` and a system of `gain` make of errors; inf where nothing follows.

    Example:
        >>> small_gain(0.25, 2.0)
        SmallGain(product=0.5, steps_of_error=6.0, deviation=4.0, learned_deviation=12.0)
    """
    _check(lipschitz=lipschitz, gain=gain)
    both = product(lipschitz, gain)
    if both >= 1:
        return SmallGain(both, math.inf, math.inf, math.inf)
    return SmallGain(both, 3 / (1 - both), gain / (1 - both), 3 * gain / (1 - both))


def product(*factors: float) -> float:
    """Return the product; 0 where a factor is, also of an infinite one: no error, no loss, whatever the system.

    Example:
        >>> product(0.0, math.inf), product(0.5, 4.0)
        (0.0, 2.0)
    """
    return 0.0 if 0 in factors else math.prod(factors)


@dataclass(frozen=True)
class Bound:
    """A bound on the lost reward, term by term.

    Attributes:
        horizon: `(m,)` H.
        terms: each `(m,)`: `learning`, what the policy got wrong; `departing`, the chance that quantization makes it
            leave the expert's behaviour, times all that is then lost; `executing`, what the error itself costs.
    """

    horizon: Floats
    terms: dict[str, Floats]

    @property
    def total(self) -> Floats:
        """Return the sum of the terms `(m,)`."""
        return np.asarray(sum(self.terms.values()), np.float64)

    @property
    def capped(self) -> Floats:
        """Return the sum, and at most H: all there is to lose."""
        return np.minimum(self.total, self.horizon)

    def dominating(self) -> list[dict[str, Any]]:
        """Return from which horizon on which term is the largest, such as `[{"from": 1, "term": "executing"}]`."""
        names = list(self.terms)
        largest = np.argmax(np.stack(list(self.terms.values())), axis=0)
        changes = [0, *(np.flatnonzero(np.diff(largest)) + 1).tolist()]
        return [{"from": float(self.horizon[i]), "term": names[largest[i]]} for i in changes]


def bound_stochastic(
    horizon: npt.ArrayLike,
    *,
    total_variation: float,
    mean_error: float,
    policy_slope: float,
    gain: float,
    reward_slope: float = 1.0,
) -> Bound:
    """Return H TV + H² ε κ₁ g + H ε L_r (1 + g), Theorem 2.

    Args:
        horizon: `(m,)` H.
        total_variation: between the learned policy and the quantized expert, over a whole episode.
        mean_error: ε, in distribution.
        policy_slope: κ₁, total variation of the policy's tokens per unit of state.
        gain: g.
        reward_slope: L_r.

    Raises:
        ActionValueError: a number that is negative or none, or a horizon that is not a positive number of steps.
    """
    h = _steps(horizon)
    _check(total_variation=total_variation, mean_error=mean_error, policy_slope=policy_slope, gain=gain)
    _check(reward_slope=reward_slope)
    return Bound(
        h,
        {
            LEARNING: h * total_variation,
            DEPARTING: h**2 * product(mean_error, policy_slope, gain),
            EXECUTING: h * product(mean_error, reward_slope, 1 + gain),
        },
    )


def bound_deterministic(
    horizon: npt.ArrayLike,
    *,
    total_variation: float,
    worst_error: float,
    lipschitz: float,
    gain: float,
    k: float | None = None,
    reward_slope: float = 1.0,
) -> Bound:
    """Return H TV + H² 1{γ((k + 1) ε) > δ₀} + H L_r (1 + g) (k + 1) ε, Theorem 3 with γ = g and δ₀ = (k - 2) ε / L.

    Args:
        horizon: `(m,)` H.
        total_variation: between the learned policy and the quantized expert, over a whole episode.
        worst_error: ε, of any action.
        lipschitz: L, the expert's slope.
        gain: g.
        k: > 2; None takes the smallest for which the indicator is 0, k + 1 = 3 / (1 - L g). Where L g is 1 or more
            there is none, and k is 2.
        reward_slope: L_r.

    Raises:
        ActionValueError: a number that is negative or none, a k of 2 or less, or a horizon that is not a positive
            number of steps.
    """
    _check(total_variation=total_variation, worst_error=worst_error, reward_slope=reward_slope)
    if k is not None and not k > 2:
        raise ActionValueError(f"expected k > 2, got {k}; None takes the best one")
    h = _steps(horizon)
    found = small_gain(lipschitz, gain)
    if k is None:
        is_rough = found.product >= 1
        factor = 3.0 if is_rough else found.steps_of_error
    else:
        is_rough = found.product * (k + 1) > k - 2
        factor = k + 1
    return Bound(
        h,
        {
            LEARNING: h * total_variation,
            DEPARTING: h**2 * float(is_rough and worst_error > 0),
            EXECUTING: h * product(worst_error, reward_slope, 1 + gain, factor),
        },
    )


def bound_augmented(
    horizon: npt.ArrayLike, *, total_variation: float, mean_error: float, gain: float, reward_slope: float = 1.0
) -> Bound:
    """Return H TV + H ε L_r (1 + g), Theorem 7.

    Args:
        horizon: `(m,)` H.
        total_variation: of policy and model together, over a whole episode.
        mean_error: ε, in distribution.
        gain: g.
        reward_slope: L_r.

    Raises:
        ActionValueError: a number that is negative or none, or a horizon that is not a positive number of steps.
    """
    h = _steps(horizon)
    _check(total_variation=total_variation, mean_error=mean_error, gain=gain, reward_slope=reward_slope)
    return Bound(h, {LEARNING: h * total_variation, EXECUTING: h * product(mean_error, reward_slope, 1 + gain)})


def floor(horizon: npt.ArrayLike, worst_error: float) -> Floats:
    """Return H ε / 4, at most H: the loss that some task forces on every method (Theorem 8).

    Example:
        >>> floor([100], 0.02)
        array([0.5])
    """
    h = _steps(horizon)
    _check(worst_error=worst_error)
    return np.minimum(h * worst_error / 4, h)


def statistical_rate(
    n: int, log_class: float, *, confidence: float = CONFIDENCE, is_deterministic: bool = False
) -> float:
    """Return the paper's bound on the total variation between the learned policy and the quantized expert.

    sqrt(6 log(2 |Π| / δ) / n), or 24 log(2 |Π| / δ) / n for a deterministic expert; at most 1.

    Args:
        n: number of demonstrations.
        log_class: log |Π|; of policies and models together, log |Π| + log |M|.
        confidence: δ, the probability that it does not hold.
        is_deterministic: whether the quantized expert is.

    Example:
        >>> round(statistical_rate(10_000, math.log(256)), 4), statistical_rate(10, math.log(256))
        (0.0744, 1.0)
    """
    if not n >= 1 or not 0 < confidence < 1 or not log_class >= 0:
        raise ActionValueError(
            f"expected n >= 1, log_class >= 0 and a confidence between 0 and 1, got {n}, {log_class} and {confidence}"
        )
    hellinger = 6 * (log_class + math.log(2 / confidence)) / n
    return min(1.0, 4 * hellinger if is_deterministic else math.sqrt(hellinger))


class TwoDeterministic(NamedTuple):
    """Two deterministic experts that demonstrations can hardly tell apart, from which Theorem 8 follows.

    Attributes:
        total_variation: between n demonstrations of the one and of the other.
        shown: the paper's bound on it, from the Hellinger distance.
        loss: the share of H that every method loses on one of the two, on average over the demonstrations.
    """

    total_variation: float
    shown: float
    loss: float


class TwoStochastic(NamedTuple):
    """Two stochastic experts that demonstrations can hardly tell apart, from which Theorem 9 follows.

    Attributes:
        total_variation: between n demonstrations of the one and of the other.
        shown: the paper's bound on it, from the Hellinger distance.
        probability: (1 - TV) / 4, with which every method takes one of the two for the other.
    """

    total_variation: float
    shown: float
    probability: float


def two_point_deterministic(n: int) -> TwoDeterministic:
    """Return the construction of Theorem 8: a first state of probability 1 / (3 n) in which the experts differ.

    Raises:
        ActionValueError: fewer than one demonstration.

    Example:
        >>> round(8 * two_point_deterministic(8).loss, 4)
        0.0593
    """
    _check_count(n)
    rare = 1 / (3 * n)
    affinity = (1 - rare) ** n
    return TwoDeterministic(1 - affinity, math.sqrt(2 * (1 - affinity)), rare / 4 * affinity)


def two_point_stochastic(n: int, c: float) -> TwoStochastic:
    """Return the construction of Theorem 9: experts that open with 1 with probability ½ ± c / sqrt(n).

    With the paper's c = 3/5 the probability (1 - TV) / 4 is .058 and not the stated 1/8, which takes c <= .337.

    Args:
        n: number of demonstrations.
        c: of the shift; c / sqrt(n) below ½.

    Raises:
        ActionValueError: fewer than one demonstration, or a shift that leaves no probability.
    """
    from scipy.stats import binom

    _check_count(n)
    shift = c / math.sqrt(n)
    if not 0 < shift < 0.5:
        raise ActionValueError(f"expected 0 < c / sqrt(n) < 1/2, got {shift}; give more demonstrations or a smaller c")
    ones = np.arange(n + 1)
    apart = np.abs(binom.pmf(ones, n, 0.5 + shift) - binom.pmf(ones, n, 0.5 - shift)).sum() / 2
    return TwoStochastic(float(apart), math.sqrt(1 - (1 - 4 * shift**2) ** n), (1 - float(apart)) / 4)


def _steps(horizon: npt.ArrayLike) -> Floats:
    h = np.atleast_1d(np.asarray(horizon, np.float64))
    if not (np.isfinite(h) & (h > 0)).all():
        raise ActionValueError(f"expected horizons of finitely many steps, more than 0, got {h.tolist()}")
    return h


def _check(**numbers: float) -> None:
    """Refuse what no theorem is about; inf stays, as the gain of a system that does not forget."""
    for name, value in numbers.items():
        if not value >= 0:
            raise ActionValueError(f"expected {name} a number of at least 0, got {value}")


def _check_count(n: int) -> None:
    if not n >= 1:
        raise ActionValueError(f"expected at least 1 demonstration, got n = {n}")
