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
    FASTTokenizer,
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
    assert np.abs(model.foresee(new.states, new.actions, seed=0) - new.after).max() < 0.02


def test_the_noise_is_found():
    model = fit_model(moved(4000, 0.3), steps=100, width=0)
    new = moved(4000, 0.3, seed=1)
    residual = model.foresee(new.states, new.actions, seed=0) - (new.states @ A.T + new.actions @ B.T)
    np.testing.assert_allclose(residual.std(0), 0.3, rtol=0.1)


def test_a_bend_is_found_by_hidden_layers():
    rng = np.random.default_rng(0)
    x, u = rng.uniform(-2, 2, (2, 3000, 1)).astype(np.float32)
    steps = Steps(x, u, np.sin(2 * x) + u**2)
    found = [fit_model(steps, steps=500, width=width).foresee(x, u, seed=0) for width in (0, 64)]
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
    one, again, other = (model.foresee(new.states, new.actions, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    second = fit_model(moved(500, 0.3), steps=20, members=2)
    assert np.array_equal(second.foresee(new.states, new.actions, seed=1), one)


def test_a_row_foresees_the_same_in_any_company():
    model = fit_model(moved(200, 0.3), steps=5, members=3)
    new = moved(40, 0)
    whole = model.foresee(new.states, new.actions, seed=4)
    for n in (1, 3, 17):
        few = model.foresee(new.states[:n], new.actions[:n], seed=4)
        np.testing.assert_allclose(few, whole[:n], atol=1e-5)


def test_the_loss_is_minus_the_log_density():
    from scipy.stats import norm

    data = moved(300, 0.3)
    model = fit_model(data, steps=30, width=8)
    x, u, after = (torch.from_numpy(part)[None] for part in data)
    mean, spread = (part.detach().numpy()[0] for part in model(x, u))
    scale = model.residual.numpy()
    density = norm.logpdf(data.after - data.states, mean * scale, np.exp(spread) * scale).sum(1)
    constant = np.log(2 * np.pi) + np.log(scale).sum()  # two dims
    np.testing.assert_allclose(model.nats(x, u, after).detach()[0] + constant, -density, atol=1e-3)


def test_a_dim_that_never_moved_may_move_a_little():
    data = moved(300, 0.05)
    still = np.full((300, 1), 0.6, np.float32)
    model = fit_model(Steps(np.hstack([data.states, still]), data.actions, np.hstack([data.after, still])), steps=40)
    states = np.hstack([data.states[:20], still[:20] + 0.01]).astype(np.float32)
    found = model.foresee(states, data.actions[:20], seed=0)
    low, high = model.limits.numpy()
    assert ((found >= low) & (found <= high)).all()
    assert np.abs(found[:, 2] - 0.61).max() < 0.05
    np.testing.assert_allclose(found[:, :2], data.after[:20], atol=0.5)


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
        decoded = tokenizer.quantize(np.concatenate(episodes.actions).reshape(-1, 1, 1).repeat(4, 1))[:, 0]
        for execute in (1, 2, 3, None):
            steps = executed_steps(tokenizer, episodes, execute)
            # every step once, but for the last of an episode, which leads nowhere
            np.testing.assert_array_equal(steps.states, np.concatenate([s[:-1] for s in episodes.states]))
            np.testing.assert_array_equal(steps.after, np.concatenate([s[1:] for s in episodes.states]))
            np.testing.assert_allclose(steps.actions, decoded.reshape(3, 10, 1)[:, :-1].reshape(-1, 1), atol=1e-6)

    def test_a_step_is_decoded_with_the_chunk_it_is_executed_in(self):
        """FAST smears a jump over its chunk: what is decoded for a step tells which chunk it was in."""
        actions = np.repeat([-0.5, 0.5], 6)[:, None].astype(np.float32)
        episodes = Episodes([actions], states=[actions])
        tokenizer = FASTTokenizer(horizon=4, scale=1, vocab_size=32, range="unit").fit(episodes)
        steps = executed_steps(tokenizer, episodes, execute=2)
        wanted = [tokenizer.quantize(actions[None, i : i + 4])[0, :2] for i in (0, 2, 4, 6, 8)]
        np.testing.assert_allclose(steps.actions[:10], np.concatenate(wanted), atol=1e-6)

    def test_padded_steps_are_left_out(self):
        actions = np.arange(12, dtype=np.float32)[:, None]
        episodes = Episodes([actions], states=[actions], action_is_pad=[np.arange(12) > 8])
        tokenizer = BinningTokenizer(horizon=4, bins=256, range="minmax").fit(episodes)
        assert executed_steps(tokenizer, episodes).states[:, 0].tolist() == list(range(9))

    def test_the_key_decides_the_range(self):
        one, ten = (Episodes([k * np.linspace(-1, 1, 20)[:, None]], key=str(k)) for k in (1, 10))
        tokenizer = BinningTokenizer(horizon=1, range="minmax").fit([one, ten])
        data = Episodes([10 * np.linspace(-1, 1, 20)[:, None]], states=[np.zeros((20, 1))])
        assert np.abs(executed_steps(tokenizer, data, key="10").actions).max() > 9
        assert np.abs(executed_steps(tokenizer, data, key="1").actions).max() < 1.1

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
        assert np.array_equal(
            again.foresee(new.states, new.actions, seed=3), model.foresee(new.states, new.actions, seed=3)
        )
        assert torch.equal(again.limits, model.limits)

    def test_damage_is_noticed(self, tmp_path):
        GaussianModel(2, 1).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "model.json").read_text())
        for sizes, match in (
            ({"state_dim": 3, "action_dim": 1}, "tensors"),
            ({"depth": 1}, "sizes of a GaussianModel"),
        ):
            (tmp_path / "model.json").write_text(json.dumps({**config, "sizes": sizes}))
            with pytest.raises(FormatError, match=match):
                GaussianModel.from_pretrained(tmp_path)
        broken = GaussianModel(2, 1)
        broken.residual.fill_(torch.nan)
        broken.save_pretrained(tmp_path)
        with pytest.raises(FormatError, match=r"NaN or inf in \['residual'\]"):
            GaussianModel.from_pretrained(tmp_path)


def test_steps_that_do_not_belong_together():
    good = moved(10, 0)
    with pytest.raises(ActionShapeError, match=r"states \(n, ds\), actions \(n, d\)"):
        fit_model(Steps(good.states, good.actions[:5], good.after))
    with pytest.raises(ActionValueError, match="finite after"):
        fit_model(Steps(good.states, good.actions, good.after * np.nan))
    with pytest.raises(ActionValueError, match=r"finite loss.*learning_rate 1e\+30; lower it"):
        fit_model(good, steps=20, learning_rate=1e30)


def test_bad_sizes_and_shapes():
    with pytest.raises(ActionValueError, match="expected members an integer >= 1"):
        GaussianModel(2, 1, members=0)
    with pytest.raises(ActionValueError, match="expected steps"):
        fit_model(moved(10, 0), steps=0)
    model = GaussianModel(2, 1)
    with pytest.raises(ActionShapeError, match=r"states \(b, 2\)"):
        model.foresee(np.zeros((3, 1)), np.zeros((3, 1)), seed=0)
    with pytest.raises(ActionShapeError, match=r"actions \(b, 1\)"):
        model.foresee(np.zeros((3, 2)), np.zeros((3, 2)), seed=0)
