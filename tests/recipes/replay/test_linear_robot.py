"""The made-up robot of the replay study: its demonstrations succeed, and errors stay where it puts them."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "replay"))

import linear_robot


@pytest.fixture(scope="module")
def recorded():
    return linear_robot.record_linear(8, seed=3)


def test_recorded_actions_give_back_the_recording(recorded):
    episodes, replay = recorded
    for name, actions, states in zip(episodes.names, episodes.actions, episodes.states, strict=True):
        outcome = replay(name, actions)
        assert outcome.score == 1
        replayed = np.concatenate([outcome.states["hand"], outcome.states["object"]], 1)[:-1]
        np.testing.assert_allclose(replayed, states, atol=1e-7)
        assert set(actions[:, 3].tolist()) == {-1.0, 1.0}


def test_a_constant_error_adds_up(recorded):
    episodes, replay = recorded
    actions = episodes.actions[0] * np.float32([0.5, 0.5, 0.5, 1])
    moved = actions + np.float32([0.25, 0, 0, 0])
    apart = replay(0, moved).states["hand"] - replay(0, actions).states["hand"]
    np.testing.assert_allclose(apart[:, 0], linear_robot.STEP * 0.25 * np.arange(len(moved) + 1), atol=1e-7)
    assert not apart[:, 1:].any()


def test_an_object_that_is_not_held_stays(recorded):
    episodes, replay = recorded
    open_hand = episodes.actions[0] * np.float32([1, 1, 1, 0])
    outcome = replay(0, open_hand)
    assert outcome.score == 0
    assert np.ptp(outcome.states["object"], axis=0).max() == 0


def test_equal_seeds_give_equal_demonstrations(recorded):
    again, _ = linear_robot.record_linear(8, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(again.actions, recorded[0].actions, strict=True))
    other, _ = linear_robot.record_linear(8, seed=4)
    assert other.source != again.source
    assert not np.array_equal(other.actions[0], again.actions[0])
