"""What is no policy is told so, by whatever is measured of it first."""

import numpy as np
import pytest
import torch

from action_tokenizers import ActionShapeError, ActionValueError
from action_tokenizers.diagnostics.variation import ESTIMATORS, policy_measures
from tests.fakes.policies import Gaussian, bins, walk


class TestBadPolicies:
    @staticmethod
    def broken(**methods):
        """A policy over four ids per chunk with some of its methods replaced."""
        tokenizer = bins(8, horizon=4)
        subject, states = walk(length=20, horizon=4, tokenizer=tokenizer)
        policy = Gaussian(tokenizer, spread=0.02, steps=4)
        for name, method in methods.items():
            setattr(policy, name, method(policy))
        return subject, states, policy

    @staticmethod
    def spoil(value):
        def method(policy):
            log_prob = policy.log_prob

            def spoiled(states, ids):
                found = log_prob(states, ids)
                found[len(found) // 2] = value
                return found

            return spoiled

        return method

    def test_a_good_one_first(self):
        assert len(policy_measures(*self.broken())) == len(ESTIMATORS)

    @pytest.mark.parametrize("value", [np.nan, 0.5, np.inf])
    def test_no_log_probabilities(self, value):
        with pytest.raises(ActionValueError, match=r"at most 0.*state row \d+, .* \(1 of .*sum log_softmax"):
            policy_measures(*self.broken(log_prob=self.spoil(value)))

    def test_impossible_draws(self):
        with pytest.raises(ActionValueError, match=r"-inf for state row \d+, .*one law"):
            policy_measures(*self.broken(log_prob=self.spoil(-np.inf)))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda lp, states, n: lp - 1.0, "drawn"),  # probabilities that add up to e**-1
            (lambda lp, states, n: lp / n, "claimed probability"),  # the mean over ids, not the sum
            (lambda lp, states, n: np.log(1e-9) + 0 * lp, "drawn"),  # nothing to do with the draws
        ],
    )
    def test_unnormalised(self, wrong, message):
        def method(policy):
            log_prob = policy.log_prob
            return lambda states, ids: wrong(log_prob(states, ids), states, ids.shape[1])

        with pytest.raises(ActionValueError, match=rf"{message}.*state row \d, \[.*sum log_softmax"):
            policy_measures(*self.broken(log_prob=method))

    def test_draws_of_another_temperature(self):
        def greedy(policy):
            return lambda states, *, seed: np.repeat(policy.step_law(states).argmax(1)[:, None], 4, axis=1)

        subject, states, policy = self.broken(sample=greedy)
        policy.spread = 0.2
        with pytest.raises(ActionValueError, match="temperature and masks"):
            policy_measures(subject, states, policy)

    def test_one_id_is_summed_over_all(self):
        subject, states = walk()
        policy = Gaussian(subject.tokenizer)
        right = policy.log_prob
        policy.log_prob = lambda states, ids: right(states, ids) - 0.05
        with pytest.raises(ActionValueError, match=r"add up to 1 over all 64 ids, got 0\.9512 for state row 0, \["):
            policy_measures(subject, states, policy)

    @pytest.mark.parametrize(
        ("sample", "error", "message"),
        [
            (lambda s: np.zeros((len(s), 3), int), ActionShapeError, "expected 4 ids per chunk"),
            (lambda s: np.zeros((len(s) - 1, 4), int), ActionShapeError, r"ids \(\d+, n\), got \(\d+, 4\)"),
            (lambda s: np.zeros(len(s), int), ActionShapeError, r"got \(\d+,\)"),
            (lambda s: np.zeros((len(s), 4)), ActionValueError, "expected integers from policy.sample, got ndarray"),
            (lambda s: np.full((len(s), 4), 8), ActionValueError, r"0\.\.7.*\[8, 8, 8, 8\] for state row 0"),
            (lambda s: np.full((len(s), 4), -1), ActionValueError, r"0\.\.7"),
            (lambda s: [[1], [2, 3]], ActionShapeError, "rows of different shapes"),
            (lambda s: None, ActionValueError, "NoneType"),
        ],
    )
    def test_no_ids(self, sample, error, message):
        with pytest.raises(error, match=message):
            policy_measures(*self.broken(sample=lambda policy: lambda states, *, seed: sample(states)))

    @pytest.mark.parametrize("shape", ["ids", "column"])
    def test_log_probabilities_of_another_shape(self, shape):
        def method(policy):
            return lambda states, ids: np.zeros(ids.shape if shape == "ids" else (len(ids), 1))

        with pytest.raises(ActionShapeError, match="one number per row of ids"):
            policy_measures(*self.broken(log_prob=method))

    @pytest.mark.parametrize("name", ["sample", "log_prob", "logits"])
    def test_raising(self, name):
        def method(policy):
            def fail(*args, **named):
                raise RuntimeError("no such layer")

            return fail

        with pytest.raises(ActionValueError, match=rf"policy\.{name} to answer.*RuntimeError: no such layer") as told:
            policy_measures(*self.broken(**{name: method}))
        assert isinstance(told.value.__cause__, RuntimeError)

    @pytest.mark.parametrize(
        ("logits", "error"),
        [
            (lambda s: np.full((len(s), 8), np.nan), ActionValueError),
            (lambda s: np.full((len(s), 8), -np.inf), ActionValueError),
            (lambda s: np.zeros((len(s), 9)), ActionShapeError),
        ],
    )
    def test_bad_logits(self, logits, error):
        with pytest.raises(error, match="logits"):
            policy_measures(*self.broken(logits=lambda policy: lambda states, prefix: logits(states)))

    def test_no_policy_at_all(self):
        subject, states = walk()
        with pytest.raises(ActionValueError, match=r"log_prob.*got Subject"):
            policy_measures(subject, states, subject)


def test_torch_comes_and_goes():
    class Torch(Gaussian):
        def sample(self, states, *, seed):
            return torch.from_numpy(super().sample(states, seed=seed))

        def log_prob(self, states, ids):
            return torch.from_numpy(super().log_prob(states, ids)).float()

    subject, states = walk(n_episodes=4)
    plain, torched = Gaussian(subject.tokenizer), Torch(subject.tokenizer)
    assert policy_measures(subject, torch.from_numpy(states), torched)[0].value == pytest.approx(
        policy_measures(subject, states, plain)[0].value, rel=1e-4
    )
