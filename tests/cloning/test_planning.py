"""Plans: what is executed from a state on, with and without a model, and what is never executed."""

import warnings

import numpy as np
import pytest

from action_tokenizers import (
    ActionShapeError,
    ActionValueError,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    Relative,
)
from action_tokenizers.cloning.expert import QuantizedExpert
from action_tokenizers.cloning.planning import Planner
from action_tokenizers.diagnostics.known import Trap, binning_control

STATES = np.array([[0.5], [-0.25], [0.0]], np.float32)


def tokenizer(horizon=2):
    ramp = np.linspace(-1, 1, 64)[:, None]
    return BinningTokenizer(horizon=horizon, bins=256, range="unit").fit([ramp])


def opposed(states):
    """Two steps that drive the state to 0: half of it each."""
    return -np.repeat(states[:, None], 2, axis=1) / 2


class Sum:
    """x' = x + u, and what it was asked."""

    def __init__(self):
        self.asked = []

    def foresee(self, states, actions, *, seed):
        self.asked.append((states.copy(), actions.copy(), seed))
        return states + actions


def planner(**given):
    return Planner(QuantizedExpert(tokenizer(), opposed), tokenizer(), **given)


class TestOrdinary:
    def test_one_call_gives_the_decoded_chunk(self):
        plan = planner().plan(STATES)
        np.testing.assert_allclose(plan.actions, opposed(STATES), atol=0.005)
        assert plan.steps.tolist() == [2, 2, 2]
        assert plan.asks == 1
        assert not plan.diverged.any()
        assert not plan.undecodable.any()

    def test_only_the_first_steps_are_executed(self):
        plan = planner(execute=1).plan(STATES)
        assert plan.actions.shape == (3, 1, 1)
        assert plan.steps.tolist() == [1, 1, 1]

    def test_a_sub_horizon_of_one_never_asks_the_model(self):
        model = Sum()
        with_model, without = planner(model=model).plan(STATES), planner().plan(STATES)
        assert model.asked == []
        assert np.array_equal(with_model.actions, without.actions)

    def test_relative_actions_are_made_absolute(self):
        states = np.random.default_rng(0).uniform(-1, 1, (8, 6, 1)).astype(np.float32)
        episodes = Episodes([*(states + 0.25)], states=[*states])
        relative = BinningTokenizer(horizon=1).fit(ChunkSample().add(episodes, 1, 1, relative=Relative("state")))
        policy = QuantizedExpert(relative, lambda x: x[:, None] + 0.25)
        np.testing.assert_allclose(Planner(policy, relative).plan(STATES).actions[:, 0], STATES + 0.25, atol=0.01)


class TestWithAModel:
    def test_the_policy_is_asked_in_foreseen_states(self):
        seen = []

        def expert(states):
            seen.append(states.copy())
            return opposed(states)

        plan = Planner(QuantizedExpert(tokenizer(), expert), tokenizer(), execute=1, model=Sum(), sub_horizon=3).plan(
            STATES
        )
        # every call halves what is left
        for call, states in enumerate(seen):
            np.testing.assert_allclose(states, STATES / 2**call, atol=0.01)
        np.testing.assert_allclose(plan.actions[..., 0], -STATES / 2 ** np.arange(1, 4), atol=0.01)
        assert plan.steps.tolist() == [3, 3, 3]
        assert plan.asks == 3

    def test_the_model_moves_step_by_step_and_not_after_the_last_call(self):
        model = Sum()
        plan = planner(model=model, sub_horizon=2).plan(STATES)
        assert len(model.asked) == 2  # the two steps of the first chunk
        np.testing.assert_array_equal(model.asked[1][0], STATES + plan.actions[:, 0])
        assert len({seed for *_, seed in model.asked}) == 2

    def test_equal_seeds_give_equal_plans(self):
        class Noisy(Sum):
            def foresee(self, states, actions, *, seed):
                return states + actions + np.random.default_rng(seed).normal(size=states.shape) / 10

        one, again, other = (planner(model=Noisy(), sub_horizon=3).plan(STATES, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one.actions, again.actions)
        assert not np.array_equal(one.actions, other.actions)

    def test_on_the_trap_the_regret_falls_to_order_epsilon(self):
        """Theorem 7 on the trap of Theorem 6, H = 769: .1108 with an exact model, .6044 without."""
        trap = Trap(2**-5)

        class Exact:
            def foresee(self, states, actions, *, seed):
                return trap.step(np.float64(states), trap.expert(np.float64(states)))

        def regret(policy_of, **given):
            codec = policy_of
            planner = Planner(QuantizedExpert(codec, lambda x: trap.expert(x)[:, None]), codec, **given)
            x, lost = trap.start(64), []
            while len(lost) < trap.horizon:
                plan = planner.plan(x[:, None])
                assert not plan.diverged.any()
                for u in plan.actions[..., 0].T[: trap.horizon - len(lost)]:
                    lost.append(np.abs(u - trap.expert(x)).mean())
                    x = trap.step(x, u)
            return float(np.mean(lost))

        class Plain:
            """Where the decoded action leads, errors and all."""

            def foresee(self, states, actions, *, seed):
                return trap.step(np.float64(states), np.float64(actions))

        codec = trap.tokenizer(horizon=1)
        # a simulator foresees what happens anyhow
        assert regret(codec, model=Plain(), sub_horizon=trap.horizon) == pytest.approx(0.60444, rel=0.02)
        assert regret(codec) == pytest.approx(0.60444, rel=0.02)
        assert regret(codec, model=Exact(), sub_horizon=trap.horizon) == pytest.approx(0.11081, rel=0.02)
        assert regret(binning_control(2**-4, horizon=1)) == pytest.approx(0.01950, rel=0.05)


class TestDivergence:
    class Wild:
        """Leaves the numbers, or the known, in the first state only."""

        def __init__(self, value):
            self.value = value

        def foresee(self, states, actions, *, seed):
            return np.where(states > 0.4, self.value, states + actions)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
    def test_the_plan_is_cut_and_ordinary_execution_remains(self, value):
        wild = planner(model=self.Wild(value), sub_horizon=3, limits=[[-2.0], [2.0]])
        with pytest.warns(UserWarning, match="left what it knows in 1 of 3"):
            plan = wild.plan(STATES)
        assert plan.diverged.tolist() == [True, False, False]
        assert plan.steps.tolist() == [2, 6, 6]
        np.testing.assert_allclose(plan.actions[0, :2], opposed(STATES[:1])[0], atol=0.005)
        assert np.isnan(plan.actions[0, 2:]).all()
        assert np.isfinite(plan.actions[1:]).all()

    def test_limits_come_from_the_model(self):
        model = self.Wild(7.0)
        model.limits = np.array([[-9.0], [9.0]])
        assert not planner(model=model, sub_horizon=2).plan(STATES).diverged.any()
        model.limits = np.array([[-1.0], [1.0]])
        with pytest.warns(UserWarning, match="1 of 3"):
            assert planner(model=model, sub_horizon=2).plan(STATES).diverged.tolist() == [True, False, False]

    def test_all_may_diverge(self):
        class Lost:
            def foresee(self, states, actions, *, seed):
                return np.full_like(states, np.nan)

        with pytest.warns(UserWarning, match="3 of 3"):
            plan = planner(model=Lost(), sub_horizon=4).plan(STATES)
        assert plan.steps.tolist() == [2, 2, 2]
        assert plan.asks == 1

    def test_a_model_that_raises(self):
        class Raising:
            def foresee(self, states, actions, *, seed):
                raise RuntimeError("no convergence")

        with pytest.warns(UserWarning, match=r"3 of 3 .*RuntimeError: no convergence"):
            plan = planner(model=Raising(), sub_horizon=3).plan(STATES)
        assert plan.steps.tolist() == [2, 2, 2]

    def test_what_left_is_not_asked_about_again(self):
        seen = []

        class Early:
            """Leaves the known in the first of the two steps of a chunk."""

            def foresee(self, states, actions, *, seed):
                seen.append(states[:, 0].tolist())
                return np.where(states > 0.4, np.nan, states)

        with pytest.warns(UserWarning, match="1 of 3"):
            planner(model=Early(), sub_horizon=2).plan(STATES)
        assert np.isfinite(seen).all()

    def test_rows_draw_the_same_whatever_becomes_of_the_others(self):
        class Drawing:
            def __init__(self, bad):
                self.bad = bad

            def foresee(self, states, actions, *, seed):
                after = states + np.random.default_rng(seed).normal(size=states.shape) / 10
                after[self.bad] = np.nan
                return after

        whole = planner(model=Drawing([]), sub_horizon=4).plan(STATES, seed=1)
        with pytest.warns(UserWarning, match="1 of 3"):
            cut = planner(model=Drawing([0]), sub_horizon=4).plan(STATES, seed=1)
        assert np.array_equal(cut.actions[1:], whole.actions[1:])

    def test_a_good_model_warns_of_nothing(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            planner(model=Sum(), sub_horizon=3).plan(STATES)


class Broken:
    """Ids that do not decode in states above a threshold."""

    def __init__(self, codec, above):
        self.codec, self.above = codec, above

    def sample(self, states, *, seed):
        ids = self.codec.encode(np.zeros((len(states), 4, 1), np.float32))
        ids[states[:, 0] > self.above] = self.codec.pad_id
        return ids

    def log_prob(self, states, ids):
        return np.zeros(len(states))


class TestUndecodable:
    codec = FASTTokenizer(horizon=4, vocab_size=32, range="unit").fit(
        np.random.default_rng(0).uniform(-1, 1, (50, 4, 1)).astype(np.float32)
    )

    def test_nothing_is_executed(self):
        plan = Planner(Broken(self.codec, 0.4), self.codec).plan(STATES)
        assert plan.steps.tolist() == [0, 4, 4]
        assert plan.undecodable.tolist() == [True, False, False]

    def test_a_plan_ends_before_them(self):
        class Rising:
            def foresee(self, states, actions, *, seed):
                return states + 0.2

        broken = Planner(Broken(self.codec, 0.6), self.codec, execute=1, model=Rising(), sub_horizon=4)
        plan = broken.plan(STATES)
        assert plan.steps.tolist() == [1, 4, 4]
        assert plan.undecodable.tolist() == [True, False, False]


class TestBadInput:
    def test_parts_that_do_not_fit(self):
        with pytest.raises(ActionShapeError, match="fit it with one"):
            Planner(QuantizedExpert(BinningTokenizer().fit([np.zeros((5, 1))]), opposed))
        with pytest.raises(ActionValueError, match=r"execute in 1\.\.2.*got 3"):
            planner(execute=3)
        with pytest.raises(ActionValueError, match="sub_horizon an integer >= 1, got 0"):
            planner(sub_horizon=0)
        with pytest.raises(ActionValueError, match=r"expected a model.*got NoneType"):
            planner(sub_horizon=2)
        with pytest.raises(ActionValueError, match="expected a policy with sample"):
            Planner(object(), tokenizer())
        with pytest.raises(ActionValueError, match="expected an ActionTokenizer, got str"):
            Planner(object(), "a folder")
        two = Sum()
        two.action_dim = 2
        with pytest.raises(ActionShapeError, match="1 action dims, got 2"):
            planner(model=two, sub_horizon=2)

    def test_relative_to_the_action_before(self):
        episodes = Episodes([np.linspace(0, 1, 20)[:, None]])
        chunks = ChunkSample().add(episodes, 1, 1, relative=Relative("previous"))
        codec = BinningTokenizer(horizon=1).fit(chunks)
        with pytest.raises(ActionValueError, match="which a state does not tell"):
            Planner(QuantizedExpert(codec, opposed), codec)

    def test_policies_of_another_tokenizer(self):
        expert = QuantizedExpert(tokenizer(), opposed)
        assert Planner(expert).tokenizer is expert.tokenizer
        shifted = BinningTokenizer(horizon=2, bins=256, range="minmax").fit([np.linspace(-2, 2, 64)[:, None]])
        with pytest.raises(ActionShapeError, match="the policy's own tokenizer"):
            Planner(expert, shifted)
        with pytest.raises(ActionValueError, match="expected tokenizer="):
            Planner(Broken(tokenizer(), 1.0))

    def test_keys(self):
        one, ten = (Episodes([k * np.linspace(-1, 1, 20)[:, None]], key=str(k)) for k in (1, 10))
        both = BinningTokenizer(horizon=2, range="minmax").fit([one, ten])
        with pytest.raises(ActionShapeError, match=r"key= among \['1', '10'\], got None"):
            Planner(QuantizedExpert(both, opposed, key="10"))
        policy = QuantizedExpert(both, lambda x: 10 * opposed(x), key="10")
        np.testing.assert_allclose(Planner(policy, key="10").plan(STATES).actions, 10 * opposed(STATES), atol=0.05)

    def test_widths(self):
        model = Sum()
        model.state_dim = 2
        policy = QuantizedExpert(tokenizer(), opposed)
        with pytest.raises(ActionShapeError, match=r"states \(b, 2\), got shape \(3, 1\)"):
            Planner(policy, model=model).plan(STATES)
        policy.state_dim = 1
        with pytest.raises(ActionShapeError, match="one state_dim, got"):
            Planner(policy, model=model)
        with pytest.raises(ActionShapeError, match=r"limits \(2, 1\)"):
            Planner(policy, limits=[1.0, 2.0])

    def test_answers(self):
        class Wide:
            def foresee(self, states, actions, *, seed):
                return np.concatenate([states, states], 1)

        with pytest.raises(ActionShapeError, match=r"model.foresee to return states \(3, 1\), got \(3, 2\)"):
            planner(model=Wide(), sub_horizon=2).plan(STATES)
        with pytest.raises(ActionShapeError, match=r"states \(b, ds\)"):
            planner().plan(STATES[0])
