"""Replay in simulators whose answers can be written down."""

import math

import numpy as np
import pytest

from action_tokenizers import Episodes
from action_tokenizers.data.synthetic import smooth_episodes
from action_tokenizers.diagnostics.dynamics import scalar_gain
from action_tokenizers.diagnostics.execution import Outcome
from action_tokenizers.diagnostics.measure import Kind, bootstrap_t, clopper_pearson
from action_tokenizers.diagnostics.stability import ESTIMATORS, growth_rate, largest_gain, replay_measures
from tests.fakes.simulators import HORIZON, Breaking, Line, subject_of


@pytest.fixture(scope="module")
def episodes():
    return smooth_episodes(8, (20, 40), 2, gripper=False, seed=1)


@pytest.fixture(scope="module")
def subject(episodes):
    return subject_of(episodes)


def measured(subject, replay, **options):
    return {measure.name: measure for measure in replay_measures(subject, replay, **options)}


def brute_deviation(subject, line):
    """Per episode, from the tokenizer itself."""
    found = []
    for name, actions in zip(subject.episodes.names, subject.episodes.actions, strict=True):
        full = np.concatenate([actions, np.repeat(actions[-1:], -len(actions) % HORIZON, 0)])
        decoded = subject.tokenizer.quantize(full.reshape(-1, HORIZON, 2)).reshape(-1, 2)[: len(actions)]
        found.append(np.linalg.norm(line.states(name, decoded) - line.states(name, actions), axis=1))
    return found


def test_deviation_is_the_mean_of_the_largest_distances(subject):
    line = Line()
    found = measured(subject, line, seed=3)["replay_deviation"]
    largest = [curve.max() for curve in brute_deviation(subject, line)]
    assert found.value == pytest.approx(np.mean(largest))
    assert found.kind is Kind.UNBIASED
    assert found.interval == pytest.approx(bootstrap_t(largest, seed=3))
    assert found.n == {"episodes": 8, "failed": 0}
    assert found.parts["per_episode"]["state"] == pytest.approx(largest)
    assert found.parts["repeat"] == 0


def test_curve_is_the_mean_of_the_episodes_that_last_as_long(subject):
    line = Line()
    curve = measured(subject, line)["replay_deviation"].parts["curve"]["state"]
    curves = brute_deviation(subject, line)
    assert len(curve) == max(map(len, curves))
    assert curve[0] == 0
    for h in (1, 20, len(curve) - 1):
        assert curve[h] == pytest.approx(np.mean([one[h] for one in curves if len(one) > h]))


def test_the_worst_group_is_the_value(subject):
    def replay(name, actions):
        x = Line().states(name, actions)
        return Outcome({"hand": x[:, :1], "object": 3 * x})

    found = measured(subject, replay)
    deviation, alone = found["replay_deviation"], measured(subject, Line())["replay_deviation"]
    assert deviation.parts["group"] == "object"
    assert deviation.value == pytest.approx(3 * alone.value)
    assert set(deviation.parts["per_group"]) == {"hand", "object"}
    assert found["replay_gain"].parts["per_disturbance"]["quantization"].keys() == {"hand", "object"}


def test_states_after_each_action_are_enough(subject):
    def replay(name, actions):
        return Outcome(Line().states(name, actions)[1:])

    whole, after = measured(subject, Line()), measured(subject, replay)
    for name in ("replay_deviation", "replay_gain", "replay_growth"):
        assert after[name].value == pytest.approx(whole[name].value)


def test_score_lost_has_an_exact_interval_where_it_is_a_share(subject):
    limit = np.median([curve[-1] for curve in brute_deviation(subject, Line())])
    ends = {}

    def near(x):  # as near to the exact end as half of the episodes come
        end = ends.setdefault(x[0, 0], x[-1])
        return float(np.linalg.norm(x[-1] - end) < limit)

    found = measured(subject, Line(score=near))["replay_score"]
    assert found.value == 0.5
    assert found.interval == clopper_pearson(4, 8)
    assert found.method == "Clopper-Pearson"
    assert found.parts["exact"] == {"mean": 1.0, "interval": clopper_pearson(8, 8)}
    assert found.parts["decoded"] == {"mean": 0.5, "interval": clopper_pearson(4, 8)}


def test_score_lost_of_a_coverage_counts_no_gains(subject):
    given = iter(np.array([[0.9, 0.5], [0.5, 0.9], [0.8, 0.6], [0.7, 0.7]]).repeat(2, 0).ravel())
    scores = {}

    def replay(name, actions):
        outcome = Line()(name, actions)
        key = (name, actions.tobytes())
        return outcome._replace(score=scores[key] if key in scores else scores.setdefault(key, next(given)))

    found = measured(subject, replay)["replay_score"]
    assert found.value == pytest.approx((0.4 + 0 + 0.2 + 0) / 4)
    assert found.parts["per_episode"]["loss"] == pytest.approx([0.4, 0.4, 0, 0, 0.2, 0.2, 0, 0])
    assert found.method.startswith("bootstrap-t")
    assert found.parts["exact"]["mean"] == pytest.approx(np.mean([0.9, 0.5, 0.8, 0.7]))


def test_no_score_is_not_shown(subject):
    found = measured(subject, Line())["replay_score"]
    assert found.value is None
    assert "gives no score" in found.caveat
    assert found.n["episodes"] == 0


def test_exact_actions_that_fail_are_told(subject):
    found = measured(subject, Line(score=lambda x: x[0, 0] < 6))["replay_score"]
    assert found.value == 0
    assert "The exact actions themselves succeed in 6 of 8" in found.caveat


def test_gain_of_a_linear_system_is_found_from_below():
    """An error that never changes is the worst one: after t steps it has built up b (1 - a^t) / (1 - a)."""
    actions = [np.full((30, 2), value, np.float32) for value in (0.1, 0.3, -0.2)]
    subject = subject_of(Episodes(actions), bins=4)
    found = measured(subject, Line(0.8, 0.5))["replay_gain"]
    assert found.kind is Kind.LOWER
    assert found.interval is None
    assert found.value == pytest.approx(0.5 * (1 - 0.8**30) / 0.2, rel=1e-5)
    assert 0.99 * scalar_gain(0.8, 0.5) < found.value < scalar_gain(0.8, 0.5)


def test_gain_of_moving_actions_stays_below_the_truth(subject):
    found = measured(subject, Line(0.8, 0.5), probes=(1, 10))["replay_gain"]
    assert 0.5 <= found.value <= scalar_gain(0.8, 0.5)


def test_probes_are_as_large_as_asked_for(subject):
    line = Line()
    found = measured(subject, line, probes=(2,), seed=5)
    size = 2 * np.linalg.norm(subject.error, axis=-1)
    size = subject.average(size).mean()
    recorded = dict(zip(subject.episodes.names, subject.episodes.actions, strict=True))
    asked = [actions - recorded[name] for name, actions in line.asked if name == 3]
    assert len(asked) == 4  # exact, decoded, push, signs
    push, signs = (np.linalg.norm(shift, axis=1) for shift in asked[2:])
    assert np.count_nonzero(push) == 1
    assert push.max() == pytest.approx(size, rel=1e-5)
    assert signs == pytest.approx(np.full(len(signs), size), rel=1e-5)
    kinds = found["replay_gain"].parts["per_disturbance"]
    assert list(kinds) == ["quantization", f"push of {size:.3g}", f"signs of {size:.3g}"]
    assert found["replay_gain"].value == max(gain["state"] for gain in kinds.values())
    # the deviation is that of the decoded actions alone
    assert found["replay_deviation"].value == measured(subject, Line())["replay_deviation"].value


def test_an_error_of_nothing_has_no_gain():
    episodes = Episodes([np.zeros((12, 2), np.float32)] * 3)
    found = measured(subject_of(episodes, bins=3), Line(), probes=(1,))
    assert found["replay_deviation"].value == 0
    assert found["replay_gain"].value is None
    assert "nothing was tried" in found["replay_gain"].caveat
    assert found["replay_growth"].value is None
    assert "deviates at three steps" in found["replay_growth"].caveat


def test_gain_counts_the_errors_before_a_deviation():
    deviation, size = np.array([0.0, 1.0, 1.0, 8.0]), np.array([0.5, 0.1, 4.0])
    assert largest_gain(deviation, size) == 2.0
    assert largest_gain(deviation, np.array([0.0, 0.0, 4.0])) == 2.0  # a deviation without an error is none of its
    assert largest_gain(deviation, np.zeros(3)) is None


def test_growth_is_the_rate_of_an_unstable_system():
    actions = [np.full((60, 2), value, np.float32) for value in (0.1, 0.3, -0.2, 0.25)]
    subject = subject_of(Episodes(actions), bins=4)
    unstable = measured(subject, Line(1.1))["replay_growth"]
    assert unstable.value == pytest.approx(math.log(1.1), rel=0.03)
    assert unstable.parts["factor"]["state"]["value"] == pytest.approx(1.1**30, rel=0.1)
    stable = measured(subject, Line(0.5))["replay_growth"]
    assert abs(stable.value) < 1e-3
    assert stable.parts["factor"]["state"]["value"] == pytest.approx(1, abs=0.01)
    assert stable.parts["whole"]["state"] > stable.value  # the rise from 0 is not in it
    adding = measured(subject, Line(1.0))["replay_growth"]
    assert adding.parts["factor"]["state"]["value"] == pytest.approx(2, rel=0.05)
    low, high = adding.parts["factor"]["state"]["interval"]
    assert low <= adding.parts["factor"]["state"]["value"] <= high


def test_growth_rate_leaves_rounding_out():
    curve = np.concatenate([[0.0], 1e-300 * np.ones(5), 3.0 ** np.arange(8)])
    assert growth_rate(curve) == pytest.approx(math.log(3))
    assert growth_rate(np.array([0.0, 1.0, 2.0])) is None
    assert growth_rate(np.zeros(9)) is None


def raised(outcome):
    raise RuntimeError("the solver\ngave up")


def test_an_episode_that_fails_is_named_and_the_others_go_on(subject):
    found = measured(subject, Breaking(3, raised))
    others = subject_of(subject.episodes[[0, 1, 2, 4, 5, 6, 7]])
    expected = measured(others, Line(score=lambda x: 1))
    for name, measure in found.items():
        assert measure.value == pytest.approx(expected[name].value)
        assert measure.n == {"episodes": 7, "failed": 1}
        assert "Replays that failed: 1, the first in episode 3 (decoded actions: RuntimeError: the solver)" in (
            measure.caveat
        )
        assert measure.parts["failed"] == [{"episode": 3, "reason": "decoded actions: RuntimeError: the solver"}]


def test_all_failing_shows_nothing(subject):
    found = measured(subject, lambda name, actions: raised(None))
    for measure in found.values():
        assert measure.value is None
        assert measure.interval is None
        assert measure.n == {"episodes": 0, "failed": 8}
        assert "Replays that failed: 8" in measure.caveat
        measure.to_json()


def test_a_probe_that_fails_leaves_the_episode_in(subject):
    line = Line()

    def replay(name, actions):
        if name == 2 and sum(asked == 2 for asked, _ in line.asked) >= 2:
            raise RuntimeError("too far")
        return line(name, actions)

    found = measured(subject, replay, probes=(1,))["replay_gain"]
    assert found.n == {"episodes": 8, "failed": 1}
    assert [item["reason"].split(" of ")[0] for item in found.parts["failed"]] == ["push", "signs"]


def test_a_replay_that_draws_anew_is_told(subject):
    rng = np.random.default_rng(0)

    def replay(name, actions):
        x = Line().states(name, actions)
        return Outcome(x + 0.01 * rng.standard_normal(x.shape))

    found = measured(subject, replay)["replay_deviation"]
    assert 0 < found.parts["repeat"] < 0.1
    assert "does not repeat its noise" in found.caveat


def test_an_exact_replay_that_leaves_the_recording_is_told(episodes):
    line = Line()
    recorded = [line.states(i, a)[:-1] for i, a in enumerate(episodes.actions)]
    for states, is_told in ((recorded, False), ([x + 5 for x in recorded], True)):
        subject = subject_of(Episodes(episodes.actions, states=states))
        for replay in (line, lambda name, actions: Outcome(line.states(name, actions)[1:])):
            found = measured(subject, replay)["replay_deviation"]
            assert found.parts["exact_from_recorded"] == pytest.approx(5 * 2**0.5 * is_told, abs=1e-5)
            assert ("does not reproduce the recording" in found.caveat) == is_told


def test_exact_outcomes_are_kept_for_the_next_tokenizer(episodes, subject):
    line, kept = Line(), {}
    first = measured(subject, line, baseline=kept)
    assert set(kept) == set(episodes.names)
    assert len(line.asked) == 2 * 8 + 1
    line.asked.clear()
    again = measured(subject, line, baseline=kept)
    assert len(line.asked) == 8 + 1  # decoded ones, and one to see that the replay repeats itself
    assert again == first


def test_equal_seeds_give_equal_measures_and_progress_is_told(subject):
    told = []
    one = replay_measures(subject, Line(), probes=(1,), seed=4, progress=lambda *at: told.append(at))
    assert told == [("replay", i + 1, 8) for i in range(8)]
    assert one == replay_measures(subject, Line(), probes=(1,), seed=4)
    other = replay_measures(subject, Line(), probes=(1,), seed=5)
    assert one[0].interval != other[0].interval
    assert [row.name for row in ESTIMATORS] == [measure.name for measure in one]


def test_one_episode_has_no_interval(episodes):
    found = measured(subject_of(episodes[[0]]), Line())["replay_deviation"]
    assert found.interval is None
    assert found.method is None
    assert "One episode has no interval" in found.caveat


def test_short_episodes_are_not_replayed(episodes):
    actions = [*episodes.actions[:2], episodes.actions[2][: HORIZON - 1]]
    line = Line()
    found = measured(subject_of(Episodes(actions, names=(5, 6, 7))), line)["replay_deviation"]
    assert {name for name, _ in line.asked} == {5, 6}
    assert found.parts["episodes"] == [5, 6]
