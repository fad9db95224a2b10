"""Transition models: maximum likelihood finds the motion and its noise; what they learn from is what is executed."""

import json

import numpy as np
import pytest
import torch

from action_tokenizers import (
    ActionShapeError,
    ActionValueError,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FormatError,
    Relative,
)
from action_tokenizers.cloning.model import GaussianModel, Steps, TransitionModel, executed_steps, fit_model

A = np.array([[0.9, 0.2], [-0.1, 0.8]], np.float32)
B = np.array([[0.5], [1.0]], np.float32)


def moved(n, noise, seed=0):
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(n, 2)).astype(np.float32), rng.normal(size=(n, 1)).astype(np.float32)
    after = states @ A.T + actions @ B.T + noise * rng.normal(size=(n, 2))
    return Steps(states, actions, after.astype(np.float32))


def test_a_linear_motion_is_found():
    model = fit_model(moved(2000, 0.0), steps=100, width=0)
    new = moved(200, 0.0, seed=1)
    assert np.abs(model.step(new.states, new.actions, seed=0) - new.after).max() < 0.02


def test_the_noise_is_found():
    model = fit_model(moved(4000, 0.3), steps=100, width=0)
    new = moved(4000, 0.3, seed=1)
    residual = model.step(new.states, new.actions, seed=0) - (new.states @ A.T + new.actions @ B.T)
    np.testing.assert_allclose(residual.std(0), 0.3, rtol=0.1)


def test_a_bend_is_found_by_hidden_layers():
    rng = np.random.default_rng(0)
    x, u = rng.uniform(-2, 2, (2, 3000, 1)).astype(np.float32)
    steps = Steps(x, u, np.sin(2 * x) + u**2)
    found = [fit_model(steps, steps=500, width=width).step(x, u, seed=0) for width in (0, 64)]
    error = [np.sqrt(np.mean((each - steps.after) ** 2)) for each in found]
    assert error[1] < 0.2 * error[0]


def test_members_disagree_where_nothing_was_seen():
    model = fit_model(moved(500, 0.05), steps=200, width=32, members=3)
    inside, outside = (model.disagreement(scale * A[:1], scale * B[:1]) for scale in (0.5, 30))
    assert outside[0] > 5 * inside[0]
    single = fit_model(moved(500, 0.05), steps=5)
    assert single.disagreement(A[:1], B[:1]).tolist() == [0.0]


def test_equal_seeds_give_equal_states():
    model = fit_model(moved(500, 0.3), steps=20, members=2)
    assert isinstance(model, TransitionModel)
    new = moved(50, 0)
    one, again, other = (model.step(new.states, new.actions, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    second = fit_model(moved(500, 0.3), steps=20, members=2)
    assert np.array_equal(second.step(new.states, new.actions, seed=1), one)


def test_limits_reach_half_a_span_beyond_the_recorded():
    model = GaussianModel(1, 1)
    model.know(Steps(np.array([[0.0], [2]], np.float32), np.zeros((2, 1), np.float32), np.array([[1.0], [4]])))
    assert model.limits.tolist() == [[-2.0], [6.0]]


class TestExecutedSteps:
    def test_actions_are_decoded_and_states_recorded(self):
        rng = np.random.default_rng(0)
        actions, states = rng.uniform(-1, 1, (3, 10, 1)), rng.normal(size=(3, 10, 2))
        episodes = Episodes([*actions], states=[*states])
        tokenizer = BinningTokenizer(horizon=4, bins=4, range="unit").fit(episodes)
        steps = executed_steps(tokenizer, episodes, execute=1)
        assert len(steps.states) == 27  # the last step of an episode leads nowhere
        np.testing.assert_array_equal(steps.states, np.concatenate([s[:-1] for s in episodes.states]))
        np.testing.assert_array_equal(steps.after, np.concatenate([s[1:] for s in episodes.states]))
        decoded = tokenizer.quantize(np.concatenate(episodes.actions).reshape(-1, 1, 1).repeat(4, 1))[:, 0]
        np.testing.assert_allclose(steps.actions, decoded.reshape(3, 10, 1)[:, :-1].reshape(-1, 1), atol=1e-6)

    def test_every_executed_place_in_a_chunk_is_met(self):
        actions = np.arange(12, dtype=np.float32)[:, None]
        episodes = Episodes([actions], states=[actions])
        tokenizer = BinningTokenizer(horizon=4, bins=256, range="minmax").fit(episodes)
        steps = executed_steps(tokenizer, episodes)
        turns = np.arange(12) % 4
        wanted = (np.arange(12) + turns)[np.arange(12) + turns < 11]
        assert steps.states[:, 0].tolist() == wanted.tolist()
        np.testing.assert_allclose(steps.actions[:, 0], wanted, atol=0.03)
        assert np.array_equal(steps.after, steps.states + 1)

    def test_relative_actions_are_made_absolute(self):
        states = np.random.default_rng(0).uniform(-1, 1, (4, 8, 1)).astype(np.float32)
        episodes = Episodes([*(states + 0.25)], states=[*states])
        tokenizer = BinningTokenizer(horizon=1).fit(ChunkSample().add(episodes, 1, 1, relative=Relative("state")))
        steps = executed_steps(tokenizer, episodes)
        np.testing.assert_allclose(steps.actions, steps.states + 0.25, atol=0.01)

    def test_bad_input(self):
        episodes = Episodes([np.zeros((5, 1))], states=[np.zeros((5, 1))])
        tokenizer = BinningTokenizer(horizon=4).fit([np.linspace(0, 1, 8)[:, None]])
        with pytest.raises(ActionValueError, match=r"execute in 1\.\.4"):
            executed_steps(tokenizer, episodes, execute=5)
        with pytest.raises(ActionValueError, match="with states"):
            executed_steps(tokenizer, Episodes([np.zeros((5, 1))]))
        with pytest.raises(ActionShapeError, match="1 dims, got 2"):
            executed_steps(tokenizer, Episodes([np.zeros((5, 2))], states=[np.zeros((5, 1))]))
        with pytest.raises(ActionValueError, match="at least 2 steps"):
            executed_steps(tokenizer, Episodes([np.zeros((1, 1))], states=[np.zeros((1, 1))]))


class TestOnDisk:
    def test_it_comes_back_as_it_was(self, tmp_path):
        model = fit_model(moved(200, 0.1), steps=5, members=2, width=8)
        model.save_pretrained(tmp_path)
        again = GaussianModel.from_pretrained(tmp_path)
        new = moved(20, 0)
        assert np.array_equal(again.step(new.states, new.actions, seed=3), model.step(new.states, new.actions, seed=3))
        assert torch.equal(again.limits, model.limits)

    def test_damage_is_noticed(self, tmp_path):
        GaussianModel(2, 1).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "model.json").read_text())
        for sizes, match in (({"state_dim": 3, "action_dim": 1}, "tensors"), ({"depth": 1}, "sizes of a model")):
            (tmp_path / "model.json").write_text(json.dumps({**config, "sizes": sizes}))
            with pytest.raises(FormatError, match=match):
                GaussianModel.from_pretrained(tmp_path)
        broken = GaussianModel(2, 1)
        broken.residual.fill_(torch.nan)
        broken.save_pretrained(tmp_path)
        with pytest.raises(FormatError, match=r"NaN or inf in \['residual'\]"):
            GaussianModel.from_pretrained(tmp_path)


def test_bad_sizes_and_shapes():
    with pytest.raises(ActionValueError, match="expected members an integer >= 1"):
        GaussianModel(2, 1, members=0)
    with pytest.raises(ActionValueError, match="expected steps"):
        fit_model(moved(10, 0), steps=0)
    model = GaussianModel(2, 1)
    with pytest.raises(ActionShapeError, match=r"states \(b, 2\)"):
        model.step(np.zeros((3, 1)), np.zeros((3, 1)), seed=0)
    with pytest.raises(ActionShapeError, match=r"actions \(b, 1\)"):
        model.step(np.zeros((3, 2)), np.zeros((3, 2)), seed=0)
