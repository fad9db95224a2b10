"""What is executed is what was decoded, and what a simulator returns is looked at."""

import math
import re

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, ChunkSample, Episodes, Relative
from action_tokenizers.data.synthetic import smooth_episodes
from action_tokenizers.diagnostics.execution import Bench, decoded_episodes
from tests.fakes.simulators import HORIZON, Breaking, Line, subject_of


@pytest.fixture(scope="module")
def episodes():
    return smooth_episodes(8, (20, 40), 2, gripper=False, seed=1)


@pytest.fixture(scope="module")
def subject(episodes):
    return subject_of(episodes)


def executed(subject, replay, probes=(), seed=0):
    bench = Bench(subject, replay, {}, probes, seed)
    for position, recorded, decoded in decoded_episodes(subject):
        bench.replay_episode(position, recorded, decoded)
    return bench


def test_moves_are_what_a_linear_system_makes_of_errors(subject):
    """Deviations of x' = a x + b u follow the same rule, from 0 on."""
    line = Line(0.8, 0.5)
    bench = executed(subject, line, probes=(0.1,))
    assert [run.name for run in bench.runs] == list(range(8))
    assert bench.groups == ["state"]
    assert bench.repeat == 0
    for run, (_, recorded, decoded) in zip(bench.runs, decoded_episodes(subject), strict=True):
        wrong = decoded.astype(np.float64) - recorded
        x = np.zeros((len(wrong) + 1, 2))
        for h, u in enumerate(wrong):
            x[h + 1] = 0.8 * x[h] + 0.5 * u
        np.testing.assert_allclose(run.deviation["state"], np.linalg.norm(x, axis=1), atol=1e-6)
        assert list(run.moves) == ["quantization", "push of 0.1", "signs of 0.1"]
        np.testing.assert_allclose(run.moves["quantization"].size, np.linalg.norm(wrong, axis=1))
        assert run.exact is run.decoded is None


def short(outcome):
    return outcome._replace(states=outcome.states[:-2])


def holed(outcome):
    states = outcome.states.copy()
    states[5, 1] = np.nan
    return outcome._replace(states=states)


def raised(outcome):
    raise RuntimeError("the solver\ngave up")


BROKEN = {
    "raises": (raised, r"decoded actions: RuntimeError: the solver"),
    "diverges": (holed, r"finite states, got others from row 5 on in 'state'"),
    "beyond numbers": (lambda o: o._replace(states=o.states * 1e300), r"diverge beyond what a number holds"),
    "short": (short, r"expected states \(\d+ or \d+, k\) for \d+ actions"),
    "flat": (lambda o: o._replace(states=o.states[:, 0]), r"expected states"),
    "another width": (lambda o: o._replace(states=o.states[:, :1]), r"as of the exact actions, got"),
    "another group": (lambda o: o._replace(states={"arm": o.states}), r"expected states of \['state'\], got \['arm'\]"),
    "no group": (lambda o: o._replace(states={}), r"got \[\]"),
    "words": (lambda o: o._replace(states=[["a", "b"]]), r"states of numbers"),
    "ragged": (lambda o: o._replace(states=[[1.0], [1.0, 2.0]]), r"states of numbers"),
    "no outcome": (lambda o: o.states, r"expected an Outcome, got ndarray"),
    "nothing": (lambda o: None, r"expected an Outcome, got NoneType"),
    "score of words": (lambda o: o._replace(score="good"), r"expected a score or None, got str"),
    "score of nothing": (lambda o: o._replace(score=math.nan), r"finite score or None, got nan"),
}


@pytest.mark.parametrize("spoil", BROKEN)
def test_what_cannot_be_used_is_said_in_a_line(subject, spoil):
    spoiler, reason = BROKEN[spoil]
    bench = executed(subject, Breaking(3, spoiler))
    assert [run.name for run in bench.runs] == [0, 1, 2, 4, 5, 6, 7]
    (failed,) = bench.failed
    assert failed["episode"] == 3
    assert re.search(reason, failed["reason"])
    assert "\n" not in failed["reason"]


def test_the_first_episode_may_fail_as_well(subject):
    bench = executed(subject, Breaking(0, BROKEN["another group"][0]))
    assert len(bench.runs) == 7
    assert bench.failed == [{"episode": 0, "reason": "decoded actions: expected states of ['state'], got ['arm']"}]


def test_an_exact_replay_that_fails_is_told_apart(subject):
    def replay(name, actions):
        if name == 0:
            raise KeyError("no such start")
        return Line()(name, actions)

    assert executed(subject, replay).failed == [{"episode": 0, "reason": "exact actions: KeyError: 'no such start'"}]


def test_an_interrupt_is_no_failure_of_an_episode(subject):
    def replay(name, actions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executed(subject, replay)


def test_a_callback_cannot_change_the_data(subject):
    before = [a.copy() for a in subject.episodes.actions]

    def replay(name, actions):
        actions *= 2
        return Line()(name, actions)

    executed(subject, replay)
    for a, b in zip(before, subject.episodes.actions, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mode", ["previous", "state"])
def test_relative_actions_are_executed_absolute(episodes, mode):
    relative = Relative(mode)
    sample = ChunkSample().add(episodes, HORIZON, 1, relative)
    tokenizer = BinningTokenizer(bins=4096, range="minmax").fit(sample)
    subject = subject_of(episodes, tokenizer=tokenizer)
    seen = list(decoded_episodes(subject))
    assert [position for position, *_ in seen] == list(range(8))
    for position, recorded, decoded in seen:
        np.testing.assert_array_equal(recorded, episodes.actions[position])
        np.testing.assert_allclose(decoded, recorded, atol=0.01)
        assert decoded.dtype == np.float32


def test_steps_that_were_not_recorded_stay_as_they_are(episodes):
    pads = [np.zeros(n, np.bool_) for n in episodes.lengths]
    pads[1][-9:] = True
    padded = Episodes(episodes.actions, action_is_pad=pads)
    _, recorded, decoded = list(decoded_episodes(subject_of(padded, bins=4)))[1]
    np.testing.assert_array_equal(recorded[-9:], decoded[-9:])
    assert (recorded[:-9] != decoded[:-9]).all(1).mean() > 0.9
