"""The bounds rest on the numbers of an audit, and say on which."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import diagnostics
from action_tokenizers.diagnostics.bounds import ESTIMATORS, Given, bound_measures, regime
from action_tokenizers.diagnostics.measure import Kind, Measure
from action_tokenizers.diagnostics.smoothness import FINE
from action_tokenizers.diagnostics.theorems import bound_augmented, bound_deterministic, bound_stochastic

KNOWN = Given(
    mean_error=0.01,
    worst_error=0.02,
    largest_error=0.02,
    excess_jump=0.04,
    lipschitz=0.25,
    gain=2.0,
    policy_slope=0.5,
    deterministic_variation=0.1,
    stochastic_variation=0.2,
)


def without(*names, **changes):
    return Given(**{**KNOWN.__dict__, **dict.fromkeys(names), **changes})


def named(given=KNOWN, horizon=50, **options):
    return {measure.name: measure for measure in bound_measures(given, horizon, **options)}


REGIMES = {
    "linear": KNOWN,
    # small error, one jump: the trap's own numbers
    "no guarantee": Given(mean_error=0.0444, excess_jump=0.995, lipschitz=1, gain=0.375, is_deterministic=True),
    "quadratic": without("lipschitz"),
    "not shown": without("policy_slope", lipschitz=2.0),
}


@pytest.mark.parametrize("word", REGIMES)
def test_regime_in_words(word):
    assert regime(REGIMES[word]).startswith(f"{word}:")


# the controls of the trap, in the same system: mean error, J_q
@pytest.mark.parametrize(("mean", "jump"), [(0.0078, 0.0156), (0.0888, 0.178), (0.0, 0.159), (0.0008, 0.0)])
def test_tokenizers_that_deploy_well_are_linear(mean, jump):
    given = Given(mean_error=mean, excess_jump=jump, lipschitz=1, gain=0.375, is_deterministic=True)
    assert regime(given).startswith("linear:")


def test_regime_says_what_would_decide():
    said = regime(without("gain", "policy_slope"))
    assert said.startswith("not shown: it would take the gain of the dynamics")
    assert "slope (states)" not in said
    said = regime(without("policy_slope", excess_jump=2.0))
    assert "whether the expert is nearly a function of the state" in said
    assert "gradually" in regime(without("policy_slope", excess_jump=2.0, is_deterministic=False))
    assert "inconclusive" in regime(without("policy_slope", lipschitz=1.0))
    assert regime(without(gain=math.inf)).startswith("no guarantee: the system, as fitted, does not forget")
    assert "as far as a search found" in regime(without(is_jump_searched=True))
    assert regime(Given()).count("it would take") == 1


def test_regime_always_says_something():
    values = {
        "lipschitz": (None, 0.0, 0.3, 3.0),
        "gain": (None, 1.0, math.inf),
        "excess_jump": (None, 0.01, 3.0),
        "mean_error": (None, 0.01),
        "policy_slope": (None, 0.5),
        "is_deterministic": (None, True, False),
    }
    grid = np.meshgrid(*[np.arange(len(v)) for v in values.values()], indexing="ij")
    for pick in np.stack([g.ravel() for g in grid], 1):
        given = Given(**{name: choices[i] for (name, choices), i in zip(values.items(), pick, strict=True)})
        said = regime(given)
        assert said.split(":")[0] in REGIMES
        assert "it would take ." not in said


def test_measures_at_the_horizon():
    found = named(horizon=50)
    assert list(found) == [row.name for row in ESTIMATORS]
    h = np.array([50.0])
    expected = {
        "bound_stochastic": bound_stochastic(h, total_variation=0.2, mean_error=0.01, policy_slope=0.5, gain=2),
        "bound_deterministic": bound_deterministic(h, total_variation=0.1, worst_error=0.02, lipschitz=0.25, gain=2),
        "bound_augmented": bound_augmented(h, total_variation=0.2, mean_error=0.01, gain=2),
    }
    for name, bound in expected.items():
        measure = found[name]
        assert measure.value == pytest.approx(bound.capped[0])
        assert measure.kind is Kind.UPPER
        assert measure.interval is None
        assert "do not forecast" in measure.caveat
        parts = measure.parts
        assert parts["horizon"][0] == 1
        assert parts["horizon"][-1] == 200
        assert np.interp(50, parts["horizon"], parts["curve"]) == pytest.approx(measure.value, rel=0.02)
        assert parts["dominating"][0]["from"] == 1
        assert parts["regime"].startswith("linear")
        assert set(parts["terms"]) >= {"learning", "executing"}
    assert found["bound_floor"].value == pytest.approx(50 * 0.02 / 4)
    gain = found["small_gain"]
    assert gain.value == 0.5
    assert gain.parts["deviation"] == 4
    assert gain.parts["state_deviation"] == pytest.approx(4 * 0.06)


def test_the_reward_counts_by_its_slope():
    one, ten = named()["bound_augmented"], named(reward_slope=10)["bound_augmented"]
    assert ten.value - 10 == pytest.approx(10 * (one.value - 10))  # 10 = 50 * .2 of learning


@pytest.mark.parametrize(
    ("missing", "bounds", "words"),
    [
        ("gain", {"small_gain", "bound_stochastic", "bound_deterministic", "bound_augmented"}, "gain of the dynamics"),
        ("lipschitz", {"small_gain", "bound_deterministic"}, "expert's slope (states)"),
        ("policy_slope", {"bound_stochastic"}, "a policy and states"),
        ("deterministic_variation", {"bound_deterministic"}, "a policy and states"),
        ("stochastic_variation", {"bound_stochastic", "bound_augmented"}, "a policy and states"),
        ("worst_error", {"bound_deterministic", "bound_floor"}, "a bound on the error of any action"),
        ("mean_error", {"bound_stochastic", "bound_augmented"}, "the mean error"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_guessed(missing, bounds, words):
    for name, measure in named(without(missing)).items():
        assert (measure.value is None) == (name in bounds)
        if name in bounds:
            assert words in measure.caveat


def test_a_system_that_does_not_forget_has_no_bound_but_everything():
    found = named(without(gain=math.inf))
    for name in ("bound_stochastic", "bound_deterministic", "bound_augmented"):
        assert found[name].value == 50
        assert "says nothing" in found[name].caveat
    assert found["small_gain"].value == math.inf


def measure(name, value, kind=Kind.CONSISTENT, **parts):
    return Measure(name, value, "", kind, n={"episodes": 12}, parts=parts)


def test_numbers_come_from_the_other_measures():
    taken = {
        "error_mean": measure("error_mean", 0.01),
        "error_sup": measure("error_sup", 0.02, Kind.EXACT),
        "error_max": measure("error_max", 0.015, maxima=[0.01, 0.02]),
        "excess_jump": measure("excess_jump", 0.04, Kind.LOWER),
        "expert_lipschitz": measure("expert_lipschitz", 0.25),
        "dynamics_gain": measure("dynamics_gain", 2.0),
        "policy_tv": measure("policy_tv", 0.3, kappa_1=0.4, kappa_1_steepest=0.5),
        "statistical_term": measure("statistical_term", 0.1),
        "statistical_bound": measure("statistical_bound", 0.2),
        "expert_spread": measure("expert_spread", 0.03, Kind.UPPER),
    }
    assert Given.of(taken) == without(is_jump_searched=True, is_deterministic=True)
    found = named(taken)
    assert found["bound_stochastic"].n == {"episodes": 12}
    assert found["bound_stochastic"].value == named()["bound_stochastic"].value
    # a search is no bound, and a large spread is no proof of a stochastic expert
    taken["error_sup"] = measure("error_sup", 0.02, Kind.LOWER)
    taken["expert_spread"] = measure("expert_spread", 0.5, Kind.UPPER)
    given = Given.of(taken)
    assert given.worst_error is None
    assert given.is_deterministic is None
    # the very scale of the silent-failure flag
    for value, is_deterministic in ((FINE, None), (0.999 * FINE, True)):
        spread = measure("expert_spread", value, Kind.UPPER)
        assert Given.of({"expert_spread": spread}).is_deterministic is is_deterministic
    assert Given.of({}) == Given()
    assert [one.value for one in bound_measures({}, 50)] == [None] * 5


class TestRelative:
    """Of relative actions smooth and deterministic mean what they mean to the alarm and the flag."""

    def taken(self, jump, *, on=False, spread=0.03, own=0.5):
        share = {"interval": (1.0, 1.0) if on else (0.0, 0.2)}
        parts = {"of_relative": {"unit": [0.1], "mean_error": 0.05, "excess_jump": jump}, "per_episode": [0.1, 0.9]}
        alarm = [
            replace(measure(name, 0.0, Kind.UNBIASED, **parts), **share)
            for name in ("episode_jump", "episode_jump_fine")
        ]
        others = [
            measure("error_mean", 0.005),
            measure("excess_jump", 0.1),
            measure("expert_spread", spread, Kind.UPPER, of_relative=own),
            measure("expert_lipschitz", 0.25),
            measure("dynamics_gain", 2.0),
        ]
        return {m.name: m for m in (*alarm, *others)}

    def test_a_jump_across_what_is_coded_is_not_smooth(self):
        """Beside the range of absolute actions it is one of .1, which is not far."""
        given = Given.of(self.taken(2.0))
        assert (given.excess_jump, given.jump, given.near, given.is_smooth) == (0.1, 2.0, 0.5, False)
        assert regime(given).startswith("not shown")
        given = Given.of(self.taken(0.4))
        assert given.is_smooth is True
        assert "jump no farther than 0.5 half spans of the relative actions" in regime(given)

    def test_does_not_contradict_the_alarm(self):
        """Whose own jumps count where a search for the largest missed them."""
        given = Given.of(self.taken(0.4, on=True))
        assert (given.jump, given.is_smooth) == (0.9, False)

    @pytest.mark.parametrize(("own", "is_deterministic"), [(FINE, None), (0.999 * FINE, True)])
    def test_the_spread_is_the_one_of_the_flag(self, own, is_deterministic):
        assert Given.of(self.taken(2.0, own=own)).is_deterministic is is_deterministic
        said = regime(Given.of(self.taken(2.0, own=own)))
        assert ("can jump by 2 half spans of the relative actions" in said) == bool(is_deterministic)

    def test_without_a_largest_jump_nothing_is_said(self):
        assert Given.of(self.taken(None)).is_smooth is None


def test_how_loose_the_bounds_are_said_to_be_is_what_the_recipes_measured():
    root = Path(diagnostics.__file__).parents[2]
    results = root / "recipes" / "theory" / "results.json"
    if not results.exists():
        pytest.skip("the recipes are not part of an installed package")
    rows = [row for script in json.loads(results.read_text())["scripts"].values() for row in script["rows"]]
    over = [1 / row["measured"] for row in rows if re.search("(over|to) the bound", row["shows"])]
    assert len(over) > 5
    assert min(over) == pytest.approx(2, rel=0.05)
    assert max(over) == pytest.approx(10_000, rel=0.2)
    folder = root / "action_tokenizers" / "diagnostics"
    for text in [(folder / name).read_text() for name in ("bounds.py", "README.md", "theory.md")]:
        said = " ".join(text.replace("`", "").replace('"', "").split())
        assert re.search(r"from 2 to about 10,000 times what happens in recipes/theory", said)
        assert not re.search("3 to 12|three to twelve", said)
