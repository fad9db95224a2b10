"""Regression: one answer per state, the mean where demonstrations differ."""

import json

import numpy as np
import pytest

from action_tokenizers import ActionShapeError, ActionValueError, Episodes, FormatError
from action_tokenizers.cloning.regression import RegressionPolicy, regress


def episodes(actions_of, n=20, t=15, seed=0):
    states = np.random.default_rng(seed).uniform(-1, 1, (n, t, 2)).astype(np.float32)
    return Episodes([actions_of(s).astype(np.float32) for s in states], states=[*states])


def test_a_function_of_the_state_is_learned():
    data = episodes(lambda s: 30 + 10 * s[:, :1] * s[:, 1:])
    policy = regress(data, 1, steps=400, width=64, learning_rate=5e-3)
    states = np.concatenate(data.states)
    error = np.abs(policy.act(states)[:, 0] - np.concatenate(data.actions)).mean()
    assert error < 1.0  # of a spread of 20


def test_two_modes_become_their_mean():
    rng = np.random.default_rng(0)
    data = episodes(lambda s: rng.choice([-1.0, 1.0], (len(s), 1)), n=80)
    answers = regress(data, 1, steps=150, width=32).act(np.zeros((1, 2)))
    assert abs(answers.item()) < 0.3


def test_padded_steps_teach_nothing():
    data = episodes(lambda s: np.arange(len(s))[:, None] % 2, n=10, t=4)
    first = regress(data, 4, steps=3, width=8)
    padded = Episodes(
        [np.concatenate([a, a + 99])[:5] for a in data.actions],
        states=[np.concatenate([s, s])[:5] for s in data.states],
        action_is_pad=[np.arange(5) > 3] * 10,
    )
    second = regress(padded, 4, steps=3, width=8)
    assert second.action_mean.item() == pytest.approx(first.action_mean.item())
    assert second.action_mean.item() < 1


def test_plans_are_what_it_answers():
    policy = RegressionPolicy(2, 3, 4, execute=2)
    states = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    plan = policy.plan(states, seed=3)
    assert np.array_equal(plan.actions, policy.act(states)[:, :2])
    assert plan.steps.tolist() == [2] * 5
    assert not plan.diverged.any()


def test_equal_seeds_give_equal_weights():
    data = episodes(lambda s: s)
    one, again, other = (regress(data, 2, steps=3, width=8, seed=seed) for seed in (0, 0, 1))
    states = np.zeros((1, 2))
    assert np.array_equal(one.act(states), again.act(states))
    assert not np.array_equal(one.act(states), other.act(states))


def test_it_comes_back_from_disk(tmp_path):
    policy = regress(episodes(lambda s: s), 2, steps=3, width=8)
    policy.save_pretrained(tmp_path)
    states = np.ones((2, 2))
    assert np.array_equal(RegressionPolicy.from_pretrained(tmp_path).act(states), policy.act(states))
    config = json.loads((tmp_path / "regression.json").read_text())
    (tmp_path / "regression.json").write_text(json.dumps({**config, "sizes": {"horizon": 1}}))
    with pytest.raises(FormatError, match="sizes of a RegressionPolicy"):
        RegressionPolicy.from_pretrained(tmp_path)


def test_bad_input():
    with pytest.raises(ActionValueError, match="expected width"):
        RegressionPolicy(2, 3, 4, width=0)
    with pytest.raises(ActionValueError, match=r"execute in 1\.\.4"):
        RegressionPolicy(2, 3, 4, execute=5)
    policy = RegressionPolicy(2, 3, 4)
    with pytest.raises(ActionShapeError, match=r"states \(b, 2\)"):
        policy.act(np.zeros((1, 3)))
    with pytest.raises(ActionValueError, match="finite states"):
        policy.act(np.full((1, 2), np.inf))
    with pytest.raises(ActionValueError, match="with states"):
        regress(Episodes([np.zeros((5, 1))]), 2)
