"""What is no policy is told so, by whatever is measured of it first."""

import numpy as np
import pytest
import torch

from action_tokenizers import ActionShapeError, ActionValueError, Episodes, FASTTokenizer
from action_tokenizers.diagnostics.policy import check_normalised, checked, drawn
from action_tokenizers.diagnostics.variation import ESTIMATORS, policy_measures
from tests.fakes.policies import Gaussian, Mute, bins, walk


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

    @pytest.mark.parametrize(
        "logits",
        [
            lambda z: 2 * z,  # without the temperature
            lambda z: np.roll(z, 1, axis=1),
        ],
    )
    def test_logits_of_another_law(self, logits):
        def method(policy):
            right = policy.logits
            return lambda states, prefix: logits(right(states, prefix))

        subject, states, policy = self.broken()
        policy.spread = 0.2
        policy.logits = method(policy)
        with pytest.raises(ActionValueError, match=r"sum of log_softmax\(logits\).*state row 0, .* of 4 rows"):
            policy_measures(subject, states, policy)

    def test_no_policy_at_all(self):
        subject, states = walk()
        with pytest.raises(ActionValueError, match=r"log_prob.*got Subject"):
            policy_measures(subject, states, subject)


class TestNormalisation:
    """Of four ids out of 512 no row is drawn twice, so that draws alone show no missing constant."""

    states = np.array([[0.0], [100.0]], np.float32)

    @staticmethod
    def shifted(by):
        tokenizer = bins(512, horizon=4)
        policy = Gaussian(tokenizer, spread=0.5, steps=4)
        right = policy.log_prob
        policy.log_prob = lambda states, ids: right(states, ids) - by
        return tokenizer, policy

    @pytest.mark.parametrize("by", [5.0, 0.5])
    def test_logits_show_a_missing_constant(self, by):
        tokenizer, policy = self.shifted(by)
        with pytest.raises(ActionValueError, match=r"sum of log_softmax\(logits\) over the ids.*\(2 of 2 rows\)"):
            check_normalised(checked(policy, tokenizer), self.states)

    def test_rounding_of_half_precision_is_none(self):
        tokenizer, policy = self.shifted(0.0)
        right = policy.logits
        policy.logits = lambda states, prefix: torch.from_numpy(right(states, prefix)).bfloat16()
        assert check_normalised(checked(policy, tokenizer), self.states)

    def test_without_logits_it_goes_unseen(self):
        tokenizer, policy = self.shifted(5.0)
        assert not check_normalised(checked(Mute(policy), tokenizer), self.states)

    def test_without_logits_ids_that_repeat_show_it(self):
        tokenizer = bins(8, horizon=4)
        policy = Mute(Gaussian(tokenizer, spread=0.02, steps=4))
        assert check_normalised(checked(policy, tokenizer), self.states)
        right = policy.log_prob
        policy.log_prob = lambda states, ids: right(states, ids) - 5
        with pytest.raises(ActionValueError, match="drawn"):
            check_normalised(checked(policy, tokenizer), self.states)

    def test_without_logits_one_id_shows_it(self):
        tokenizer = bins(8)
        assert check_normalised(checked(Mute(Gaussian(tokenizer)), tokenizer), self.states)


class Ending:
    """Draws an id again with probability .8, else ends, in rows of at most `most`; the id is any of 50."""

    def __init__(self, pad, most, whose_end):
        self.pad, self.most, self.whose_end = pad, most, whose_end

    def sample(self, states, *, seed):
        random = np.random.default_rng(seed)
        lengths = np.minimum(random.geometric(0.2, len(states)), self.most)
        ids = random.integers(0, 50, (len(states), lengths.max()))
        return np.where(np.arange(lengths.max()) < lengths[:, None], ids, self.pad)

    def log_prob(self, states, ids):
        lengths = (ids != self.pad).sum(1)
        ends = lengths < (self.most if self.whose_end == "all" else ids.shape[1])
        return lengths * np.log(1 / 50) + (lengths - 1) * np.log(0.8) + ends * np.log(0.2)

    def logits(self, states, prefix):
        z = np.full((len(states), self.pad + 1), -np.inf)
        z[:, :50] = np.log(0.8 / 50 if prefix.shape[1] else 1 / 50)
        z[:, self.pad] = np.log(0.2) if prefix.shape[1] else -np.inf
        return z


class Telling:
    """The first id, 0 to 2, tells how many follow it; of what follows the last there are no logits."""

    def __init__(self, pad):
        self.pad = pad

    def sample(self, states, *, seed):
        random = np.random.default_rng(seed)
        ids = random.integers(0, 100, (len(states), 3))
        ids[:, 0] = random.integers(0, 3, len(states))
        return np.where(np.arange(3) <= ids[:, :1], ids, self.pad)

    def log_prob(self, states, ids):
        return np.log(1 / 3) + ids[:, 0] * np.log(1 / 100)

    def logits(self, states, prefix):
        if prefix.shape[1] and (prefix.shape[1] > prefix[:, 0]).any():
            raise IndexError("the chunk is over")
        z = np.full((len(states), self.pad + 1), -np.inf)
        z[:, : 100 if prefix.shape[1] else 3] = 0
        return z


@pytest.fixture(scope="module")
def fast():
    random = np.random.default_rng(0)
    actions = [np.cumsum(random.normal(0, 0.1, (24, 2)), axis=0).astype(np.float32) for _ in range(8)]
    return FASTTokenizer(horizon=6, vocab_size=128).fit(Episodes(actions))


class TestEndsOfChunks:
    """Rows of different lengths are normalised in more than one way."""

    states = np.zeros((4, 1), np.float32)

    @pytest.mark.parametrize("whose_end", ["all", "all but the longest"])
    def test_an_end_that_is_drawn(self, fast, whose_end):
        policy = Ending(fast.pad_id, fast.max_tokens_for(6, 2), whose_end)
        assert check_normalised(checked(policy, fast, horizon=6, action_dim=2), self.states)

    def test_an_end_that_the_ids_tell(self, fast):
        policy = Telling(fast.pad_id)
        assert check_normalised(checked(policy, fast, horizon=6, action_dim=2), self.states)

    def test_what_was_drawn(self, fast):
        """The first pad, where the end is drawn; one more where every chunk of the batch ends at its last column."""
        policy = Ending(fast.pad_id, fast.max_tokens_for(6, 2), "all")
        guarded = checked(policy, fast, horizon=6, action_dim=2)
        rows = np.array([[3, 7], [4, policy.pad]])
        ids, counted = drawn(guarded, self.states[:2], rows)
        assert ids.tolist() == [[3, 7, policy.pad], [4, policy.pad, policy.pad]]
        assert counted.tolist() == [[True] * 3, [True, True, False]]
        policy.whose_end = "all but the longest"
        ids, counted = drawn(guarded, self.states[:2], rows)
        assert (ids.tolist(), counted.all()) == (rows.tolist(), True)
        telling = checked(Telling(fast.pad_id), fast, horizon=6, action_dim=2)
        rows = np.array([[1, 7], [0, policy.pad]])
        ids, counted = drawn(telling, self.states[:2], rows)
        assert ids.tolist() == rows.tolist()
        assert counted.tolist() == [[True, True], [True, False]]

    def test_of_what_follows_the_end_nothing_need_be_said(self, fast):
        """Also where rounding leaves it open whether the end was drawn."""
        policy = Telling(fast.pad_id)
        right = policy.log_prob
        policy.log_prob = lambda states, ids: right(states, ids) - 0.05
        telling = checked(policy, fast, horizon=6, action_dim=2)
        rows = np.array([[1, 7], [0, policy.pad]])
        assert drawn(telling, self.states[:2], rows)[1].tolist() == [[True, True], [True, False]]
        policy.logits = lambda states, prefix: 1 / 0
        with pytest.raises(ActionValueError, match="ZeroDivisionError"):
            drawn(telling, self.states[:2], rows)

    def test_a_missing_constant(self, fast):
        policy = Ending(fast.pad_id, fast.max_tokens_for(6, 2), "all")
        right = policy.log_prob
        policy.log_prob = lambda states, ids: right(states, ids) - 0.6  # too little for draws to show
        with pytest.raises(ActionValueError, match="sum of log_softmax"):
            check_normalised(checked(policy, fast, horizon=6, action_dim=2), self.states)


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
