"""Tasks: what is learned and what is executed are apart, and experts do what they are asked."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "cloning"
sys.path.insert(0, str(FOLDER))

import cloning_tasks as recipe  # noqa: E402

PUSHT = Path(__file__).resolve().parents[4] / "shared" / "data" / "pusht"


def test_the_made_up_expert_arrives():
    task = recipe.made_up()
    assert len(task.fit) == 60
    assert task.fit.source != task.held_out.source
    for states in task.held_out.states:
        assert np.linalg.norm(states[-1, 2:]) < 0.1
    robot = task.simulator()
    robot.reset(task.starts[0])
    np.testing.assert_array_equal(robot.state(), task.held_out.states[0][0])
    assert robot.step(np.zeros(2))[1] == 0
    robot.place = robot.goal.copy()
    assert robot.step(np.zeros(2))[1] == 1


def test_tasks_are_listed():
    assert list(recipe.tasks(None)) == list(recipe.META_WORLD)
    assert list(recipe.tasks(Path())) == [*recipe.META_WORLD, "pusht"]


def test_meta_world():
    pytest.importorskip("metaworld", reason="needs the extra sim, which CI does not install")
    task = recipe.meta_world("reach-v3")
    state = task.simulator().reset(task.starts[0])
    np.testing.assert_array_equal(state, task.held_out.states[0][0])
    assert len(task.fit) == 100


def test_pusht_angles_are_seen_as_sine_and_cosine():
    pytest.importorskip("gym_pusht", reason="needs the extra sim, which CI does not install")
    if not PUSHT.is_dir():
        pytest.skip("needs the recorded PushT demonstrations, which are not part of the repository")
    task = recipe.pusht(PUSHT)
    assert not set(task.fit.names) & set(task.starts)
    robot = task.simulator()
    state = robot.reset(task.starts[0])
    np.testing.assert_allclose(state, task.held_out.states[0][0], atol=1e-3)
    assert state.shape == (6,)
    assert state[4] ** 2 + state[5] ** 2 == pytest.approx(1)
    after, score = robot.step(task.held_out.actions[0][0])
    np.testing.assert_allclose(after, task.held_out.states[0][1], atol=1e-2)
    assert 0 <= score <= 1
