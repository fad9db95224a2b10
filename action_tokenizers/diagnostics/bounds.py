"""How much reward a policy learned from tokens can lose, against the horizon, as far as theory can say.

The formulas of `theorems` with the numbers of an audit in them, and the regime in words. They are worst cases: from 2
to about 10,000 times what happens in `recipes/theory`; they rank, they do not forecast. They also say from which
horizon on a term dominates.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.error import far
from action_tokenizers.diagnostics.expert import spread_of
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure
from action_tokenizers.diagnostics.smoothness import FINE, jump_alarm
from action_tokenizers.diagnostics.theorems import (
    Bound,
    bound_augmented,
    bound_deterministic,
    bound_stochastic,
    floor,
    product,
    small_gain,
)

__all__ = [
    "ESTIMATORS",
    "Given",
    "bound_measures",
    "regime",
]

Floats = npt.NDArray[np.float64]

LONGEST = 4  # curves run to this many times the horizon
POINTS = 33

_CAUTION = (
    "A worst case with worst-case constants, from 2 to about 10,000 times what happens in recipes/theory: bounds rank "
    "tokenizers on the same data, they do not forecast. An upper bound only if its inputs are true; here they are "
    "estimates, and the reward is taken to change by at most 1 per half range and unit of state. Fully observed state, "
    "one action per step: nothing is proven for chunks or for tokens predicted one after another."
)
_UNIT = "reward, of at most one per step"

SMALL_GAIN = Estimator(
    name="small_gain",
    heading="expert's slope times gain",
    unit="ratio",
    kinds=(Kind.PROXY,),
    meaning=(
        "How much of a state deviation comes back after one round: the expert reacts to it, the tokenizer's error "
        "rides on that reaction, and the system answers. Below 1 deviations die out."
    ),
    caution="At 1 or more the argument says nothing, which is no failure: feedback may stabilise what it cannot see.",
    advice="At 1 or more, look at the gain under feedback times the largest error instead.",
    source="Cao & Xie 2026, Prop 5 and Thm 3 (condition L < (k - 2) eps / gamma((k + 1) eps))",
    function="bounds.bound_measures",
    test="test_bounds.py::test_regime_in_words",
)
BOUND_STOCHASTIC = Estimator(
    name="bound_stochastic",
    heading="bound for a stochastic expert",
    unit=_UNIT,
    kinds=(Kind.UPPER, Kind.PROXY),
    meaning=(
        "The most reward that can be lost over an episode if the policy's choice of tokens changes gradually with the "
        "state; its quantization part grows with the square of the horizon."
    ),
    caution=_CAUTION,
    advice="Where `departing` dominates, shorten the horizon or make the policy smoother (noise on its states).",
    source="Cao & Xie 2026, Thm 2",
    function="theorems.bound_stochastic",
    test="test_theorems.py::test_terms_are_those_of_the_theorems",
)
BOUND_DETERMINISTIC = Estimator(
    name="bound_deterministic",
    heading="bound for a deterministic expert",
    unit=_UNIT,
    kinds=(Kind.UPPER, Kind.PROXY),
    meaning=(
        "The most reward that can be lost over an episode if the tokenizer errs by no more than its worst case "
        "everywhere and the expert's slope times the gain is below 1; linear in the horizon."
    ),
    caution=_CAUTION,
    advice="Where `executing` dominates, use a finer tokenizer; where `learning` does, record more.",
    source="Cao & Xie 2026, Thm 3 with the smallest k of Prop 5",
    function="theorems.bound_deterministic",
    test="test_theorems.py::test_terms_are_those_of_the_theorems",
)
BOUND_AUGMENTED = Estimator(
    name="bound_augmented",
    heading="bound with a learned model",
    unit=_UNIT,
    kinds=(Kind.UPPER, Kind.PROXY),
    meaning=(
        "The most reward that can be lost if tokens are predicted in a learned model of the system and executed "
        "without looking: linear in the horizon, and in the mean error alone, for any tokenizer."
    ),
    caution=_CAUTION + " What the model gets wrong comes on top.",
    advice="Compare with the other two: it is what a model would buy.",
    source="Cao & Xie 2026, Algorithm 1 and Thm 7",
    function="theorems.bound_augmented",
    test="test_theorems.py::test_terms_are_those_of_the_theorems",
)
BOUND_FLOOR = Estimator(
    name="bound_floor",
    heading="floor of any method",
    unit=_UNIT,
    kinds=(Kind.PROXY,),
    meaning=(
        "What no method can avoid losing on every task, with tokens this coarse: there is a task on which at least "
        "this much is lost."
    ),
    caution="Such a task exists; yours may lose less, or nothing.",
    advice="Only a finer tokenizer lowers it.",
    source="Cao & Xie 2026, Thm 8",
    function="theorems.floor",
    test="test_theorems.py::test_floor_is_a_quarter_of_the_error_per_step",
)

ESTIMATORS: tuple[Estimator, ...] = (SMALL_GAIN, BOUND_STOCHASTIC, BOUND_DETERMINISTIC, BOUND_AUGMENTED, BOUND_FLOOR)

# which input of an audit would give a number that is missing
_SOURCES = {
    "mean_error": "the mean error",
    "worst_error": "a bound on the error of any action (uniform bins have one)",
    "excess_jump": "the excess jump",
    "lipschitz": "the expert's slope (states)",
    "gain": "the gain of the dynamics (states recorded with noise on the actions, or a simulator)",
    "policy_slope": "how fast the policy's choice of ids changes with the state (a policy and states)",
    "deterministic_variation": "how far the policy is from the expert (a policy and states)",
    "stochastic_variation": "how far the policy is from the expert (a policy and states)",
    "is_deterministic": "whether the expert is nearly a function of the state (states)",
}


@dataclass(frozen=True)
class Given:
    """The numbers that the bounds rest on; None where they are not known.

    Attributes:
        mean_error: in distribution, in half ranges.
        worst_error: of any action, in half ranges.
        largest_error: on held-out episodes, in half ranges.
        excess_jump: J_q, in half ranges.
        own_mean_error: of relative actions the mean error in half spans of their own, else None.
        own_jump: likewise J_q, or the largest jump that set the smoothness alarm off, if that is larger.
        is_jump_searched: whether it is only the largest that a search found.
        lipschitz: L, the expert's slope, in half ranges per unit of state.
        gain: g, in the same units of state per half range; inf for a system that does not forget.
        policy_slope: κ₁, total variation of the policy's ids per unit of state.
        deterministic_variation: total variation between the learned policy and an expert whose ids are a function of
            the state, over a whole episode.
        stochastic_variation: likewise for any expert.
        is_deterministic: whether the expert's actions are nearly a function of the state: they spread less in one state
            than the finer noise of the smoothness alarm, both in the unit of the alarm.
    """

    mean_error: float | None = None
    worst_error: float | None = None
    largest_error: float | None = None
    excess_jump: float | None = None
    own_mean_error: float | None = None
    own_jump: float | None = None
    is_jump_searched: bool = False
    lipschitz: float | None = None
    gain: float | None = None
    policy_slope: float | None = None
    deterministic_variation: float | None = None
    stochastic_variation: float | None = None
    is_deterministic: bool | None = None

    @classmethod
    def of(cls, taken: Mapping[str, Measure]) -> "Given":
        """Take what the measures of an audit, by name, say."""
        values = {name: measure.value for name, measure in taken.items()}
        proven = (Kind.EXACT, Kind.UPPER)
        worst, jump, policy = taken.get("error_sup"), taken.get("excess_jump"), taken.get("policy_tv")
        largest = taken["error_max"].parts.get("maxima") if "error_max" in taken else None
        spread = spread_of(taken)
        own_mean, own_jump = _own(taken)
        proven_worst = worst.value if worst is not None and worst.kind in proven else None
        return cls(
            mean_error=values.get("error_mean"),
            # error_sup is of actions inside the range: what lies beyond was clipped by as much as was seen
            worst_error=None if proven_worst is None else max([proven_worst, *(largest or ())]),
            largest_error=max(largest) if largest else None,
            excess_jump=values.get("excess_jump"),
            own_mean_error=own_mean,
            own_jump=own_jump,
            is_jump_searched=jump is not None and jump.kind not in proven,
            lipschitz=values.get("expert_lipschitz"),
            gain=values.get("dynamics_gain"),
            # the fitted slope is low: total variation bends down before it ends at 1
            policy_slope=None if policy is None else policy.parts.get("kappa_1_steepest"),
            deterministic_variation=values.get("statistical_term"),
            stochastic_variation=values.get("statistical_bound"),
            # the spread is an upper end: that it is large proves nothing
            is_deterministic=True if spread is not None and spread < FINE else None,
        )

    @property
    def product(self) -> float | None:
        """L g."""
        if self.lipschitz is None or self.gain is None:
            return None
        return small_gain(self.lipschitz, self.gain).product

    @property
    def near(self) -> float:
        """How far a jump may go before it counts as far: the threshold of the smoothness alarm, in its unit."""
        return far((self.mean_error if self.own_mean_error is None else self.own_mean_error) or 0.0)

    @property
    def jump(self) -> float | None:
        """The largest excess jump, in the unit of the smoothness alarm."""
        return self.excess_jump if self.own_mean_error is None else self.own_jump

    @property
    def told_unit(self) -> str:
        """That unit, where it is not the one of errors."""
        return "" if self.own_mean_error is None else " half spans of the relative actions"

    @property
    def is_smooth(self) -> bool | None:
        """Whether decoded actions jump no farther than what counts as far, both in the unit of the smoothness alarm."""
        if self.jump is None or self.mean_error is None:
            return None
        return self.jump <= self.near

    def missing(self, *names: str) -> list[str]:
        """Return which of these are not known."""
        return [name for name in names if getattr(self, name) is None]


def _own(taken: Mapping[str, Measure]) -> tuple[float | None, float | None]:
    """Return mean error and largest jump in half spans of relative actions; None where actions are absolute."""
    five, two = taken.get("episode_jump"), taken.get("episode_jump_fine")
    own = None if five is None else five.parts.get("of_relative")
    if five is None or own is None:
        return None, None
    jump = own["excess_jump"]
    # a search may miss what the alarm met; were the regime then called smooth, it would contradict the alarm
    if jump is not None and two is not None and jump_alarm(five, two):
        jump = max(jump, *five.parts["per_episode"])
    return own["mean_error"], jump


def regime(given: Given) -> str:
    """Return in words how losses grow with the horizon, as far as the numbers at hand decide it.

    Returns:
        A sentence that begins with `linear`, `quadratic`, `no guarantee` or `not shown`.

    Example:
        >>> regime(Given(mean_error=0.01, excess_jump=0.02, lipschitz=0.5, gain=math.inf))[:12]
        'no guarantee'
    """
    gain, product, is_smooth = given.gain, given.product, given.is_smooth
    if gain is not None and math.isinf(gain):
        return "no guarantee: the system, as fitted, does not forget: errors of actions add up for as long as it runs."
    if product is not None and product < 1 and is_smooth:
        searched = ", as far as a search found," if given.is_jump_searched else ""
        return (
            f"linear: the expert's slope times the gain is {product:.3g}, below 1, and decoded actions{searched} jump "
            f"no farther than {given.near:.3g}{given.told_unit}, so that every step costs about the same."
        )
    if given.is_deterministic and is_smooth is False:
        return (
            f"no guarantee: decoded actions can jump by {given.jump:.3g}{given.told_unit}, far more than the error, "
            "and the expert is nearly a function of the state: a small deviation can turn into another motion."
        )
    if gain is not None and (given.policy_slope is not None or given.is_deterministic is False):
        return (
            "quadratic: a policy whose choice of ids changes gradually with the state has a guarantee with any "
            "tokenizer, which grows with the square of the horizon (whether it must is an open question)."
        )
    if product is not None and product >= 1:
        return (
            f"not shown: the expert's slope times the gain is {product:.3g}, not below 1, where the argument is "
            "inconclusive; compare the gain under feedback with the largest error."
        )
    if is_smooth is False:
        return _wanted(given.missing("gain", "is_deterministic", "policy_slope"), "not shown")
    return _wanted(given.missing("lipschitz", "gain", "excess_jump", "mean_error"), "not shown")


def bound_measures(taken: Mapping[str, Measure] | Given, horizon: int, *, reward_slope: float = 1.0) -> list[Measure]:
    """Return the bounds at the horizon, with their curves; without a value where an input is missing.

    Args:
        taken: the other measures of the audit by name, or the numbers themselves.
        horizon: H, steps of an episode.
        reward_slope: L_r, how much the reward changes per unit of state and half range.

    Returns:
        `small_gain`, `bound_stochastic`, `bound_deterministic`, `bound_augmented` and `bound_floor`.
    """
    given = taken if isinstance(taken, Given) else Given.of(taken)
    counted = {} if isinstance(taken, Given) or "error_mean" not in taken else taken["error_mean"].n
    words = regime(given)
    made = [_small_gain(given, words, counted)]
    for row, bound, variation, needed in (
        (BOUND_STOCHASTIC, bound_stochastic, "stochastic_variation", ("mean_error", "policy_slope", "gain")),
        (BOUND_DETERMINISTIC, bound_deterministic, "deterministic_variation", ("worst_error", "lipschitz", "gain")),
        (BOUND_AUGMENTED, bound_augmented, "stochastic_variation", ("mean_error", "gain")),
    ):
        missing = given.missing(variation, *needed)
        if missing:
            made.append(row.measure(None, n=counted, note=_wanted(missing), parts={"regime": words}))
            continue
        inputs = {name: getattr(given, name) for name in needed}
        inputs |= {"total_variation": getattr(given, variation), "reward_slope": reward_slope}
        value = float(bound([horizon], **inputs).capped[0])
        note = "At this horizon it allows that everything is lost, and so says nothing." if value >= horizon else ""
        parts = {"regime": words, **_drawn(bound(_span(horizon), **inputs))}
        # with the estimates of an audit it is no bound, only built like one
        kind = Kind.UPPER if isinstance(taken, Given) else Kind.PROXY
        made.append(row.measure(value, kind=kind, n=counted, note=note, parts=parts))
    made.append(_floor(given, horizon, counted))
    return made


def _small_gain(given: Given, words: str, n: dict[str, int]) -> Measure:
    if given.lipschitz is None or given.gain is None:
        note = _wanted(given.missing("lipschitz", "gain"))
        return SMALL_GAIN.measure(None, n=n, note=note, parts={"regime": words})
    found = small_gain(given.lipschitz, given.gain)
    parts: dict[str, Any] = {"regime": words, **found._asdict()}
    if given.largest_error is not None and given.excess_jump is not None:
        # of a tokenizer that errs by e and jumps by J_q at most: |dx| <= g (e + J_q) / (1 - L g)
        parts["state_deviation"] = product(found.deviation, given.largest_error + given.excess_jump)
    return SMALL_GAIN.measure(found.product, n=n, parts=parts)


def _floor(given: Given, horizon: int, n: dict[str, int]) -> Measure:
    if given.worst_error is None:
        return BOUND_FLOOR.measure(None, n=n, note=_wanted(["worst_error"]))
    span = _span(horizon)
    parts = {"horizon": span.tolist(), "curve": floor(span, given.worst_error).tolist()}
    return BOUND_FLOOR.measure(float(floor([horizon], given.worst_error)[0]), n=n, parts=parts)


def _drawn(curve: Bound) -> dict[str, Any]:
    return {
        "horizon": curve.horizon.tolist(),
        "curve": curve.capped.tolist(),
        "terms": {name: term.tolist() for name, term in curve.terms.items()},
        "dominating": curve.dominating(),
    }


def _wanted(missing: list[str], verdict: str = "Not shown") -> str:
    sources = dict.fromkeys(_SOURCES[name] for name in missing)
    return f"{verdict}: it would take {', and '.join(sources)}."


def _span(horizon: int) -> Floats:
    """Return whole horizons from 1 on, evenly spaced in their logarithm, to `LONGEST` times the one asked for."""
    return np.unique(np.geomspace(1, LONGEST * horizon, POINTS).round())
