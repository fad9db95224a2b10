"""Closed loop on a made-up robot: budgets, scores, pairing, and robots that fail alone."""

import numpy as np
import pytest

from action_tokenizers import ActionShapeError, ActionValueError
from action_tokenizers.cloning.planning import Plan
from action_tokenizers.cloning.rollout import UNDECODABLE, rollout


class Line:
    """x' = x + u from x = start; done at 0, the score says how much of the way is made."""

    def reset(self, start):
        self.x = self.first = float(start)
        return np.array([self.x])

    def step(self, action):
        self.x += float(action[0])
        return np.array([self.x]), 1 - min(1.0, abs(self.x / self.first)) if self.first else 1.0


class Towards:
    """Plans `ahead` unit steps towards 0, and remembers states and seeds."""

    def __init__(self, ahead=3, cut=None):
        self.ahead, self.cut, self.asked = ahead, cut, []

    def plan(self, states, *, seed):
        self.asked.append((states[:, 0].tolist(), seed))
        actions = np.repeat(-np.sign(states)[:, None], self.ahead, axis=1).astype(np.float32)
        steps = np.full(len(states), self.ahead)
        none = np.zeros(len(states), np.bool_)
        if self.cut is not None:
            steps[states[:, 0] > self.cut] = 0
        return Plan(actions, steps, 1, states[:, 0] > 8, none)


def test_robots_that_are_done_leave_and_the_rest_goes_on():
    planner = Towards(ahead=3)
    done = rollout(planner, Line, [2, 7, -3], steps=20)
    assert done.scores.tolist() == [1, 1, 1]
    assert done.steps.tolist() == [2, 7, 3]
    assert done.looks.tolist() == [1, 3, 1]
    # a robot that is done keeps its row
    assert [states for states, _ in planner.asked] == [[2, 7, -3], [0, 4, 0], [0, 1, 0]]
    assert done.asks.tolist() == [1, 3, 1]
    assert len({seed for _, seed in planner.asked}) == 3
    assert done.stopped == (None, None, None)


@pytest.mark.parametrize("budget", [1, 5, 6])
def test_no_step_beyond_the_budget_whether_horizons_divide_or_not(budget):
    done = rollout(Towards(ahead=3), Line, [10, 12], steps=budget)
    assert done.steps.tolist() == [budget, budget]
    np.testing.assert_allclose(done.scores, [budget / 10, budget / 12])


def test_the_best_score_counts():
    class Past(Towards):
        def plan(self, states, *, seed):
            return Plan(np.ones((len(states), 4, 1), np.float32), np.array([4]), 1, *[np.zeros(1, np.bool_)] * 2)

    done = rollout(Past(), Line, [-3.4], steps=8)
    assert done.scores[0] == pytest.approx(1 - 0.4 / 3.4)


def test_ids_that_do_not_decode_stop_a_robot_where_it_is():
    done = rollout(Towards(cut=5), Line, [6, 4], steps=20)
    assert done.stopped == (UNDECODABLE, None)
    assert done.steps.tolist() == [0, 4]
    assert done.scores.tolist() == [0, 1]


def test_a_robot_draws_the_same_in_any_company():
    class Drunk:
        def plan(self, states, *, seed):
            actions = np.random.default_rng(seed).normal(size=(len(states), 2, 1)).astype(np.float32)
            none = np.zeros(len(states), np.bool_)
            return Plan(actions, np.full(len(states), 2), 1, none, none)

    seen = []

    class Watched(Line):
        def step(self, action):
            if self.first == 9:
                seen.append(float(action[0]))
            return super().step(action)

    walks = []
    for others in ([0.001], [50.0]):  # one that is done at once, and one that never is
        seen.clear()
        rollout(Drunk(), Watched, [9, *others], steps=12)
        walks.append(list(seen))
    assert walks[0] == walks[1]


def test_plans_cut_by_the_model_are_counted():
    assert rollout(Towards(ahead=2), Line, [11, 3], steps=4).diverged.tolist() == [2, 0]


def test_a_simulator_that_fails_ends_its_rollout_alone():
    class Fragile(Line):
        def step(self, action):
            state, score = super().step(action)
            if self.first == 5 and self.x < 4:
                raise RuntimeError("a joint broke")
            if self.first == 6 and self.x < 4:
                return state * np.nan, score
            return state, score

    done = rollout(Towards(), Fragile, [5, 6, 7], steps=20)
    assert done.stopped[0] == "RuntimeError: a joint broke"
    assert "finite state (ds,) from the simulator at step 2" in done.stopped[1]
    assert done.stopped[2] is None
    assert done.scores[2] == 1


def test_progress_is_told():
    told = []
    rollout(Towards(ahead=2), Line, [2, 4], steps=10, progress=lambda *done: told.append(done))
    assert told == [("rollout", 12, 20), ("rollout", 20, 20)]


def test_bad_input():
    with pytest.raises(ActionValueError, match="starts and steps"):
        rollout(Towards(), Line, [], steps=3)
    with pytest.raises(ActionValueError, match="starts and steps"):
        rollout(Towards(), Line, [1], steps=0)

    class Short(Towards):
        def plan(self, states, *, seed):
            return super().plan(states[:1], seed=seed)

    with pytest.raises(ActionShapeError, match="each of 2 states, got 1"):
        rollout(Short(), Line, [1, 2], steps=3)

    class Flat(Line):
        def reset(self, start):
            return 1.0

    with pytest.raises(ActionValueError, match="the start 1"):
        rollout(Towards(), Flat, [1], steps=3)
