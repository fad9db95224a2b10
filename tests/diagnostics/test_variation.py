"""Policies with known laws: what is measured of them is what they are."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy.special import erf, expit, softmax

from action_tokenizers import Episodes, FASTTokenizer
from action_tokenizers.diagnostics.coupling import exact_tv
from action_tokenizers.diagnostics.measure import Kind
from action_tokenizers.diagnostics.probe import MULTIPLES, SIGMAS, Probe
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.diagnostics.variation import ESTIMATORS, STEEPEST, policy_measures
from tests.fakes.policies import STATE_SCALE, Deterministic, Gaussian, Listed, Mute, bins, walk


def by_name(*args, **named):
    return {measure.name: measure for measure in policy_measures(*args, **named)}


def test_gaussian_policy_over_bins():
    """One id per chunk: total variation and jump are exact at every pair, and the mean is known."""
    subject, states = walk()
    policy = Gaussian(subject.tokenizer)
    found = by_name(subject, states, policy)["policy_tv"]
    probe = Probe.of(subject, states, policy)
    scale = float(states.std()) / STATE_SCALE
    for i, ring in enumerate(probe.rings):
        shift = np.abs(ring.others - probe.here)[:, 0] / STATE_SCALE
        np.testing.assert_allclose(ring.distance, shift / scale, rtol=1e-3)
        most = erf(shift / (2 * math.sqrt(2) * 0.1))
        # 64 bins of .03 hide next to nothing of a spread of .1; what leaves the range is one bin
        assert 0.97 * most.mean() <= found.parts["mean"][i] <= most.mean() + 1e-6
        assert found.parts["max"][i] <= most.max() + 1e-6
    assert found.value == found.parts["mean"][0] > 0
    assert found.interval[0] < found.value < found.interval[1]
    assert found.kind is Kind.CONSISTENT
    assert found.parts["exact"] is True
    assert found.n == {"episodes": 12, "pairs": 128, "draws": 32}
    slope = STEEPEST / 0.1 * scale
    assert found.parts["kappa_1_steepest"] == pytest.approx(slope, rel=0.05)
    assert 0.8 * slope < found.parts["kappa_1"] <= slope * 1.001
    low, high = found.parts["kappa_1_interval"]
    assert low <= found.parts["kappa_1"] <= high
    assert found.parts["neighbours"]["mean"] < 0.1  # 20 other states to each, on a line


def test_chunks_of_several_ids_are_estimated():
    """Four steps alike: as far apart as Gaussians of twice the shift."""
    tokenizer = bins(horizon=4)
    subject, states = walk(length=20, horizon=4, tokenizer=tokenizer)
    policy = Gaussian(tokenizer, steps=4)
    found = by_name(subject, states, policy)
    probe = Probe.of(subject, states, policy)
    tv = found["policy_tv"]
    assert tv.parts["exact"] is False
    for i, ring in enumerate(probe.rings):
        shift = np.abs(ring.others - probe.here)[:, 0] / STATE_SCALE
        exact = erf(2 * shift / (2 * math.sqrt(2) * 0.1))
        assert tv.parts["mean"][i] == pytest.approx(exact.mean(), abs=0.03)
        assert tv.parts["max"][i] < exact.max() - 0.01  # the lower end of a second look, not the largest estimate
    assert tv.parts["max"][2] > 0.3
    jump = found["policy_jump"]
    assert jump.kind is Kind.UPPER
    assert np.all(np.array(jump.parts["share"]) <= np.array(tv.parts["mean"])[:, None] + 0.03)
    # with shared random numbers the actions shift as the means do: less than .06, three mean errors of .02
    assert jump.value == 0
    assert jump.parts["coupling"][1] == ["same seed"] * 3


def test_a_policy_that_ignores_the_seed_is_coupled_maximally():
    tokenizer = bins(horizon=4)
    subject, states = walk(length=20, horizon=4, tokenizer=tokenizer)
    policy = Gaussian(tokenizer, steps=4)
    draw, calls = policy.sample, itertools.count()
    policy.sample = lambda states, *, seed: draw(states, seed=next(calls))
    found = by_name(subject, states, policy)
    jump = found["policy_jump"].parts
    assert jump["coupling"][1] == ["maximal"] * len(MULTIPLES)
    assert jump["share"][1][0] <= found["policy_tv"].parts["mean"][1] + 0.03
    # independent draws would differ nearly always
    assert jump["share"][1][0] < 0.2


def arctan_policy(tokenizer, noise=0.0):
    subject, states = walk(tokenizer=tokenizer, noise=noise)
    return subject, states, Deterministic(tokenizer, lambda x: np.arctan(x / STATE_SCALE)[:, None])


def test_deterministic_policy_over_bins_never_jumps():
    subject, states, policy = arctan_policy(bins(20))
    found = by_name(subject, states, policy)
    # bins of 1/10: their mean error is 1/40, five of which are more than one bin
    jump = found["policy_jump"]
    assert jump.kind is Kind.CONSISTENT
    assert jump.value == 0
    # none of twelve episodes shows one: that there are none it does not say
    assert jump.interval == jump.parts["interval"][0][1] == pytest.approx((0, 0.2646), abs=1e-4)
    assert jump.parts["threshold"] == pytest.approx([m / 40 for m in MULTIPLES], rel=0.05)
    assert jump.parts["threshold"][0] < 1 / 10  # three are less: there a flip is a jump
    tv = found["policy_tv"].parts["mean"]
    assert [shares[0] for shares in jump.parts["share"]] == pytest.approx(tv)
    assert 0 < tv[0] < tv[2] < tv[4]
    assert jump.parts["share"][4][1] > 0.5  # a whole standard deviation is far
    assert jump.parts["neighbours"]["share"][1] == 0


def test_certificate_is_above_the_total_variation():
    tokenizer = bins(16, horizon=4)
    subject, states = walk(length=20, horizon=4, tokenizer=tokenizer)
    # logits that are linear in the state: the certificate is not much too large
    weights = np.linspace(-2, 2, 16)

    class Linear(Gaussian):
        def step_law(self, states):
            return softmax(states[:, :1] / STATE_SCALE * weights, axis=1)

    policy = Linear(tokenizer, steps=4)
    found = by_name(subject, states, policy)
    certificate, tv = found["policy_certificate"], found["policy_tv"]
    assert certificate.kind is Kind.UPPER
    for bound, mean in zip(certificate.parts["mean"], tv.parts["mean"], strict=True):
        assert mean <= bound
    assert certificate.value < 6 * tv.value
    # span(z - z') / 4 of each of four ids: 4 |x - x'| 4 / 4
    distance, scale = certificate.parts["distance"][0], float(states.std()) / STATE_SCALE
    assert certificate.value == pytest.approx(4 * distance * scale, rel=0.05)
    subject, states, plain = arctan_policy(bins())
    absent = by_name(subject, states, plain)["policy_certificate"]
    assert absent.value is None
    assert "Not shown" in absent.caveat


class Stopping:
    """Says id 0 at least once, and before each further one stops with the chance expit(x): all it draws are ends."""

    def __init__(self, tokenizer):
        self.pad, self.most = tokenizer.pad_id, tokenizer.max_tokens_for(6, 2)

    def law(self, states):
        """Of the lengths 1..most, `(b, most)`."""
        stops = expit(states[:, :1].astype(float))
        ended = (1 - stops) ** np.arange(self.most)
        return np.concatenate([stops * ended[:, :-1], ended[:, -1:]], axis=1)

    def sample(self, states, *, seed):
        u = np.random.default_rng(seed).random((len(states), 1))
        lengths = 1 + (self.law(states).cumsum(1)[:, :-1] < u).sum(1)
        return np.where(np.arange(lengths.max()) < lengths[:, None], 0, self.pad)

    def log_prob(self, states, ids):
        lengths = (ids != self.pad).sum(1)
        return np.log(self.law(states)[np.arange(len(ids)), lengths - 1])

    def logits(self, states, prefix):
        z = np.full((len(states), self.pad + 1), -np.inf)
        z[:, 0] = 0
        if prefix.shape[1]:
            z[:, self.pad] = states[:, 0]
        return z


def test_certificate_counts_the_end_that_is_drawn():
    subject, states = fast_subject()
    policy = Stopping(subject.tokenizer)
    found = by_name(subject, states, policy)["policy_certificate"]
    probe = Probe.of(subject, states, policy)
    lengths = (probe.own[:: probe.draws] != policy.pad).sum(1)
    assert lengths.min() == 1
    # of every chunk the end and each id but the first, unless it is as long as can be
    decisions = np.minimum(lengths, policy.most - 1)
    for ring, bound in zip(probe.rings, found.parts["sum"], strict=True):
        apart = np.abs(ring.others[:, 0].astype(float) - probe.here[:, 0])
        assert bound == pytest.approx(probe.per_episode(decisions * np.tanh(apart / 4)).mean(), rel=1e-5)
        exact = exact_tv(policy.law(probe.here), policy.law(ring.others)).mean()
        assert exact < bound < 4 * exact


class Sharp(Stopping):
    """Stops surely (all but 1 in 8,000) within `reach` of a middle, where the recorded states are, and never beyond."""

    def within(self, states):
        return np.where(np.abs(states[:, 0].astype(float) - self.middle) < self.reach, 9.0, -9.0)

    def law(self, states):
        stops = expit(self.within(states))[:, None]
        ended = (1 - stops) ** np.arange(self.most)
        return np.concatenate([stops * ended[:, :-1], ended[:, -1:]], axis=1)

    def logits(self, states, prefix):
        z = super().logits(states, prefix)
        if prefix.shape[1]:
            z[:, self.pad] = self.within(states)
        return z


def test_certificate_counts_an_end_that_is_sure_where_it_is_drawn():
    """Sure ends leave no trace in the log-probabilities of the drawn rows, and yet are what changes elsewhere."""
    subject, states = fast_subject()
    policy = Sharp(subject.tokenizer)
    low, high = states[:, 0].min(), states[:, 0].max()
    policy.middle, policy.reach = (low + high) / 2, (high - low) / 2 * 1.001
    found = by_name(subject, states, policy)["policy_certificate"]
    probe = Probe.of(subject, states, policy)
    exact = [exact_tv(policy.law(probe.here), policy.law(ring.others)).mean() for ring in probe.rings]
    assert exact[-1] > 0.1
    assert all(tv <= bound + 1e-9 for tv, bound in zip(exact, found.parts["sum"], strict=True))


def test_price_of_smoothing():
    """A deterministic u = x moves as its state does: E|sigma xi| = sigma sqrt(2 / pi)."""
    tokenizer = bins(512)
    subject, states = walk(n_episodes=20, tokenizer=tokenizer, noise=0.0)
    policy = Deterministic(tokenizer, lambda x: (x / STATE_SCALE)[:, None])
    found = policy_measures(subject, states, policy, pairs=400)[3]
    assert found.name == "smoothed_execution"
    scale = float(states.std()) / STATE_SCALE
    for sigma, price in list(zip(SIGMAS, found.parts["price"], strict=True))[2:4]:
        assert price == pytest.approx(sigma * scale * math.sqrt(2 / math.pi), rel=0.15)
    assert found.value == found.parts["price"][SIGMAS.index(0.1)]
    assert found.interval[0] < 0.1 * scale * math.sqrt(2 / math.pi) < found.interval[1]
    assert found.parts["kappa_1"] == pytest.approx([0.39894 / sigma for sigma in SIGMAS], rel=1e-4)
    # the recorded action is x: all that the policy errs by is the noise
    assert found.parts["error_to_recorded_without"] < 0.002
    assert found.parts["error_to_recorded"] == pytest.approx(found.parts["price"], abs=0.002)


class Careless:
    """Picks the expert's id with probability .9, else any other."""

    def __init__(self, tokenizer, right=0.9):
        self.tokenizer, self.right = tokenizer, right

    def law(self, states):
        v = self.tokenizer.vocab_size
        law = np.full((len(states), v), (1 - self.right) / (v - 1))
        best = self.tokenizer.encode((states / STATE_SCALE)[:, None])
        np.put_along_axis(law, best, self.right, axis=1)
        return law

    def sample(self, states, *, seed):
        u = np.random.default_rng(seed).random(len(states))
        return (self.law(states).cumsum(1) < u[:, None]).sum(1, keepdims=True).clip(max=self.tokenizer.vocab_size - 1)

    def log_prob(self, states, ids):
        with np.errstate(divide="ignore"):
            return np.log(np.take_along_axis(self.law(states), ids, axis=1)[:, 0])


def test_statistical_term_of_a_known_policy():
    subject, states = walk(length=10, noise=0.0, n_episodes=15)
    found = by_name(subject, states, Careless(subject.tokenizer))
    term, bound = found["statistical_term"], found["statistical_bound"]
    assert term.kind is Kind.UNBIASED
    assert term.value == pytest.approx(1 - 0.9**10)
    assert term.value - term.interval[0] == pytest.approx(math.sqrt(math.log(40) / 30))
    assert term.interval[1] == 1
    for key in ("chunk", "step"):
        assert term.parts[f"tv_per_{key}"] == pytest.approx(0.1)
        assert term.parts[f"nll_per_{key}"] == pytest.approx(-math.log(0.9))
    assert len(term.parts["nll_per_episode"]) == term.n["episodes"] == 15
    kl = -10 * math.log(0.9)
    assert bound.kind is Kind.UPPER
    assert bound.value == pytest.approx(min(math.sqrt(kl / 2), math.sqrt(1 - math.exp(-kl))))
    assert bound.value >= term.value


def test_statistical_term_counts_whole_chunks_and_survives_impossible_ids():
    tokenizer = bins(horizon=4)
    subject, states = walk(length=10, horizon=4, tokenizer=tokenizer, noise=0.0)
    assert len(subject) == 12 * 3
    never = Deterministic(tokenizer, lambda x: np.zeros((len(x), 4, 1)))
    found = by_name(subject, states, never)
    term, bound = found["statistical_term"], found["statistical_bound"]
    assert term.n == {"episodes": 12, "chunks": 24}
    assert term.value == bound.value == 1
    assert bound.interval is None
    assert "probability 0 to 24 recorded chunks" in term.caveat
    json.dumps([measure.to_json() for measure in found.values()], allow_nan=False)


def fast_subject():
    random = np.random.default_rng(0)
    actions = [np.cumsum(random.normal(0, 0.1, (24, 2)), axis=0).astype(np.float32) for _ in range(8)]
    tokenizer = FASTTokenizer(horizon=6, vocab_size=128).fit(Episodes(actions))
    subject = Subject.of(tokenizer, Episodes(actions), 6, np.ones(2))
    return subject, random.normal(size=(len(subject), 3)).astype(np.float32)


def test_rows_of_different_lengths():
    """FAST: a policy that chooses one of seven recorded chunks, so that its total variation is that of the choice."""
    subject, states = fast_subject()
    weights = np.random.default_rng(1).normal(size=(3, 7))
    policy = Listed(subject.ids[:7], lambda states: states @ weights)
    assert len(set(subject.lengths[:7])) > 1
    found = by_name(subject, states, policy)
    probe = Probe.of(subject, states, policy)
    for i, ring in enumerate(probe.rings):
        exact = exact_tv(policy.law(probe.here), policy.law(ring.others)).mean()
        assert found["policy_tv"].parts["mean"][i] == pytest.approx(exact, abs=0.02)
    assert found["policy_jump"].parts["decodable"] == [1.0] * len(SIGMAS)
    assert found["policy_jump"].value <= found["policy_tv"].value + 0.01


def test_rows_that_do_not_decode_are_jumps():
    subject, states = fast_subject()
    rows = np.stack([subject.ids[0], np.full_like(subject.ids[0], subject.tokenizer.pad_id)])
    policy = Listed(rows, lambda states: np.stack([states[:, 0], 0 * states[:, 0]], 1) * 5)
    found = by_name(subject, states, policy)
    jump = found["policy_jump"]
    assert 0 < min(jump.parts["decodable"]) < 0.8
    assert "Undecodable ids count as a jump" in jump.caveat
    # no threshold forgives them: as far apart as the laws
    few = found["policy_tv"].parts["mean"][1]
    assert 0 < 0.7 * few < jump.parts["share"][1][0]  # rows that no draw could replace are not taken for equal
    assert jump.parts["share"][4] == pytest.approx([found["policy_tv"].parts["mean"][4]] * 3, abs=0.03)
    assert found["smoothed_execution"].parts["price"] == [0.0] * len(SIGMAS)


def test_equal_seeds_give_equal_measures():
    tokenizer = bins(horizon=4)
    subject, states = walk(length=20, horizon=4, tokenizer=tokenizer)
    policy = Gaussian(tokenizer, steps=4)
    first, again, other = (policy_measures(subject, states, policy, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [measure.name for measure in first] == [row.name for row in ESTIMATORS]
    json.dumps([measure.to_json() for measure in first], allow_nan=False)


def test_a_normalisation_that_nobody_could_check_is_told():
    tokenizer = bins(512, horizon=4)
    subject, states = walk(length=20, horizon=4, tokenizer=tokenizer)
    policy = Mute(Gaussian(tokenizer, spread=0.5, steps=4))
    right = policy.log_prob
    policy.log_prob = lambda states, ids: right(states, ids) - 5
    found = by_name(subject, states, policy, pairs=24)
    for name in ("statistical_term", "statistical_bound"):
        assert "normalisation could not be checked" in found[name].caveat
    # without logits there is no certificate that could rest on it
    assert found["policy_certificate"].value is None
    shown = by_name(subject, states, Gaussian(tokenizer, spread=0.5, steps=4), pairs=24)
    assert not any("normalisation" in measure.caveat for measure in shown.values())


def test_chunks_that_are_all_cut_off_tell_nothing_of_ids():
    tokenizer = bins(64, horizon=4)
    whole, states = walk(length=8, horizon=4, tokenizer=tokenizer)
    masks = [np.arange(8) % 4 == 3] * 12
    subject = Subject.of(tokenizer, Episodes(whole.episodes.actions, action_is_pad=masks), 4, np.ones(1))
    found = by_name(subject, states, Gaussian(tokenizer, steps=4))
    for name in ("statistical_term", "statistical_bound"):
        assert (found[name].value, found[name].interval) == (None, None)
        assert found[name].n == {"episodes": 0, "chunks": 0}
        assert "every chunk is cut off" in found[name].caveat
    assert found["policy_tv"].value is not None


def test_two_episodes_do_not_decide_that_a_policy_never_jumps():
    tokenizer = bins(64)
    subject, states = walk(n_episodes=2, tokenizer=tokenizer)
    still = by_name(subject, states, Deterministic(tokenizer, lambda x: np.zeros((len(x), 1, 1))))
    for name in ("policy_tv", "policy_jump"):
        assert still[name].value == 0
        assert still[name].interval == pytest.approx((0, 0.842), abs=1e-3)
        assert "Clopper-Pearson" in still[name].method
    price = still["smoothed_execution"]
    assert (price.value, price.interval, price.method) == (0, None, None)
    assert "Fewer than five episodes that are all equal" in price.caveat


def test_one_episode_has_no_interval():
    subject, states = walk(n_episodes=1)
    found = by_name(subject, states, Gaussian(subject.tokenizer))
    for name in ("policy_tv", "policy_jump", "policy_certificate", "smoothed_execution", "statistical_bound"):
        assert found[name].value is not None
        assert found[name].interval is None
        assert "Fewer than two episodes" in found[name].caveat
    assert "neighbours" not in found["policy_tv"].parts
    low, high = found["statistical_term"].interval
    assert high - low > 0.5


def test_states_that_never_vary_show_nothing():
    subject, states = walk()
    found = by_name(subject, np.ones_like(states), Gaussian(subject.tokenizer))
    for name in ("policy_tv", "policy_jump", "policy_certificate", "smoothed_execution"):
        assert found[name].value is None
        assert "do not vary" in found[name].caveat
    assert found["statistical_term"].value is not None
