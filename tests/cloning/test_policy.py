"""A policy's law: it adds up to 1, what it draws decodes, and it comes back from disk as it was."""

import itertools
import json

import numpy as np
import pytest
import torch

from action_tokenizers import (
    ActionShapeError,
    ActionValueError,
    BinningTokenizer,
    Episodes,
    FASTTokenizer,
    FormatError,
    KMeansTokenizer,
    NotFittedError,
    ResidualVQTokenizer,
    TokenError,
)
from action_tokenizers.cloning.policy import TransformerPolicy
from action_tokenizers.diagnostics.policy import LogitPolicy, check_normalised, checked

STATES = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)


def walks(n=12, t=20, d=2):
    return np.cumsum(np.random.default_rng(0).normal(size=(n, t, d)), 1).astype(np.float32) / 4


def policy_of(tokenizer, **sizes):
    """Weights at random, but not near 0, so that laws differ from even ones."""
    policy = TransformerPolicy(tokenizer, 3, width=16, layers=1, heads=2, seed=1, **sizes).eval()
    with torch.no_grad():
        policy.network.out[1].weight.mul_(8)
    return policy


@pytest.fixture(
    params=[
        BinningTokenizer(horizon=2, bins=5),
        FASTTokenizer(horizon=4, vocab_size=48, scale=2),
        KMeansTokenizer(horizon=2, codebook_size=6, scope="chunk"),
        ResidualVQTokenizer(horizon=2, levels=3, codebook_size=4),
    ],
    ids=lambda tokenizer: type(tokenizer).__name__,
)
def policy(request):
    horizon = request.param.get_params()["horizon"]
    return policy_of(request.param.fit(walks(t=horizon * 5).reshape(-1, horizon, 2)))


def test_what_it_draws_decodes_and_is_possible(policy):
    ids = policy.sample(STATES, seed=2)
    assert ids.dtype == np.int64
    policy.tokenizer.decode(ids)  # strict
    assert np.isfinite(policy.log_prob(STATES, ids)).all()
    policy.tokenizer.decode(policy.greedy(STATES))


def test_the_audit_takes_it(policy):
    guarded = checked(policy, policy.tokenizer)
    assert isinstance(policy, LogitPolicy)
    assert check_normalised(guarded, STATES[:2], draws=64)


def test_equal_seeds_give_equal_ids(policy):
    assert np.array_equal(policy.sample(STATES, seed=4), policy.sample(STATES, seed=4))
    many = np.repeat(STATES, 20, axis=0)
    assert not np.array_equal(policy.sample(many, seed=4), policy.sample(many, seed=5))
    before = torch.get_rng_state()
    policy.sample(STATES, seed=4)
    TransformerPolicy(policy.tokenizer, 3)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):  # another default device than that of the policy
        assert np.array_equal(policy.sample(STATES, seed=4), policy.sample(STATES, seed=4))


def test_probabilities_of_all_chunks_add_up_to_one():
    policy = policy_of(BinningTokenizer(horizon=2, bins=3).fit(walks(t=10).reshape(-1, 2, 2)))
    every = np.array(list(itertools.product(range(3), repeat=4)))
    for state in STATES[:2]:
        p = np.exp(policy.log_prob(np.repeat(state[None], len(every), 0), every))
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert p.max() > 2 * p.min()


def test_probabilities_are_those_of_the_draws():
    policy = policy_of(KMeansTokenizer(horizon=2, codebook_size=6, scope="chunk").fit(walks().reshape(-1, 2, 2)))
    state = np.repeat(STATES[:1], 20_000, 0)
    drawn = np.bincount(policy.sample(state, seed=0)[:, 0], minlength=6) / len(state)
    claimed = np.exp(policy.log_prob(state[:6], np.arange(6)[:, None]))
    np.testing.assert_allclose(drawn, claimed, atol=4 * np.sqrt(0.25 / len(state)))


def test_logits_are_the_law_of_one_id_more(policy):
    ids = policy.sample(STATES, seed=3)
    total = np.zeros(len(STATES))
    for p in range(ids.shape[1]):
        going = ids[:, p] != (-1 if policy.tokenizer.pad_id is None else policy.tokenizer.pad_id)
        z = policy.logits(STATES[going], ids[going, :p])
        log_p = z - np.logaddexp.reduce(z, 1, keepdims=True)
        total[going] += np.take_along_axis(log_p, ids[going, p : p + 1], 1)[:, 0]
    np.testing.assert_allclose(policy.log_prob(STATES, ids), total, atol=1e-5)


def test_what_is_no_chunk_is_impossible(policy):
    ids = policy.sample(STATES, seed=3)
    if ids.shape[1] > 1:
        assert np.isneginf(policy.log_prob(STATES, ids[:, :-1])[policy.tokenizer.length(ids) == ids.shape[1]]).all()
    for bad in (-1, policy.tokenizer.vocab_size, 10**6):
        for place in (0, -1):
            wrong = ids.copy()
            wrong[:, place] = bad
            assert np.isneginf(policy.log_prob(STATES, wrong)).all()


def test_temperature_changes_law_and_draws_alike(policy):
    cold = policy.greedy(STATES)
    frozen, hot = policy.at(0), policy.at(5.0)
    assert policy.temperature == 1
    assert frozen.network is policy.network
    assert np.array_equal(frozen.sample(STATES, seed=9), cold)
    assert frozen.log_prob(STATES, cold).tolist() == [0.0] * len(STATES)
    assert (hot.log_prob(STATES, cold) < policy.log_prob(STATES, cold) - 1e-3).all()
    first = np.empty((len(STATES), 0), np.int64)
    np.testing.assert_allclose(hot.logits(STATES, first) * 5, policy.logits(STATES, first))
    assert (frozen.logits(STATES, first) > -np.inf).sum(1).tolist() == [1] * len(STATES)
    for bad in (-3, np.nan, np.inf, True, "1"):
        with pytest.raises(ActionValueError, match="temperature a finite number >= 0"):
            policy.at(bad)


def test_states_are_seen_in_their_own_scale(policy):
    policy.know_states(STATES * 1000 + 5)
    np.testing.assert_allclose(policy.state_mean, STATES.mean(0) * 1000 + 5, rtol=1e-3)
    np.testing.assert_allclose(policy.state_scale, STATES.std(0) * 1000, rtol=1e-4)
    # what never moved in the demonstrations may move a little when deployed, and that is not far
    constant = np.full((4, 3), 0.6, np.float32)
    policy.know_states(constant)
    assert policy.state_scale.tolist() == [1, 1, 1]
    ids = policy.greedy(constant)
    np.testing.assert_allclose(policy.log_prob(constant + 1e-3, ids), policy.log_prob(constant, ids), atol=0.1)


class TestOnDisk:
    def test_it_comes_back_as_it_was(self, policy, tmp_path):
        policy.know_states(STATES)
        policy.temperature = 0.5
        policy.save_pretrained(tmp_path / "policy")
        again = TransformerPolicy.from_pretrained(tmp_path / "policy")
        ids = policy.sample(STATES, seed=7)
        assert np.array_equal(again.sample(STATES, seed=7), ids)
        assert np.array_equal(again.log_prob(STATES, ids), policy.log_prob(STATES, ids))
        assert type(again.tokenizer) is type(policy.tokenizer)
        again.save_pretrained(tmp_path / "again")
        for file in ("policy.json", "policy.safetensors", "tokenizer/model.safetensors"):
            assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "policy" / file).read_bytes()

    @pytest.fixture
    def saved(self, tmp_path):
        tokenizer = BinningTokenizer(horizon=2, bins=5).fit(walks(t=10).reshape(-1, 2, 2))
        policy_of(tokenizer).save_pretrained(tmp_path)
        return tmp_path

    def test_another_tokenizer_is_noticed(self, saved):
        BinningTokenizer(horizon=2, bins=5).fit(2 * walks(t=10).reshape(-1, 2, 2)).save_pretrained(saved / "tokenizer")
        with pytest.raises(FormatError, match="its ids mean something else"):
            TransformerPolicy.from_pretrained(saved)

    def test_damage_is_noticed(self, saved):
        config = json.loads((saved / "policy.json").read_text())
        weights = (saved / "policy.safetensors").read_bytes()

        def refuses(match):
            with pytest.raises(FormatError, match=match):
                TransformerPolicy.from_pretrained(saved)

        for key, value, match in (
            ("format_version", 9, "upgrade"),
            ("sizes", {"state_dim": 4}, "tensors that the sizes"),
            ("sizes", {"depth": 4}, "sizes of a policy"),
            ("extra", 1, "expected the keys"),
        ):
            (saved / "policy.json").write_text(json.dumps({**config, key: value}))
            refuses(match)
        (saved / "policy.json").write_text(json.dumps(config))
        (saved / "policy.safetensors").write_bytes(weights[:-100])
        refuses("policy.safetensors")
        (saved / "policy.safetensors").unlink()
        refuses("policy.safetensors")


class TestBadInput:
    def test_tokenizers_that_no_policy_can_have(self):
        with pytest.raises(NotFittedError):
            TransformerPolicy(BinningTokenizer(), 3)
        with pytest.raises(ActionShapeError, match="fit it with horizon="):
            TransformerPolicy(BinningTokenizer().fit([*walks()]), 3)
        two = BinningTokenizer(horizon=2).fit([Episodes([*walks()], key="a"), Episodes([*walks()], key="b")])
        with pytest.raises(ActionShapeError, match=r"one key, got \['a', 'b'\]"):
            TransformerPolicy(two, 3)

    def test_sizes(self):
        tokenizer = BinningTokenizer(horizon=2).fit([*walks()])
        for sizes in ({"width": 0}, {"layers": True}, {"heads": 3}, {"width": 6, "heads": 4}):
            with pytest.raises(ActionValueError, match="expected"):
                TransformerPolicy(tokenizer, 3, **sizes)

    def test_states_and_ids(self, policy):
        ids = policy.greedy(STATES)
        with pytest.raises(ActionShapeError, match=r"states \(b, 3\), got \(6, 2\)"):
            policy.sample(STATES[:, :2], seed=0)
        with pytest.raises(ActionValueError, match="row 2, dim 1"):
            policy.sample(np.where(np.arange(18).reshape(6, 3) == 7, np.nan, STATES), seed=0)
        with pytest.raises(ActionShapeError, match=r"expected integer ids \(6, n\)"):
            policy.log_prob(STATES, ids[:3])
        with pytest.raises(ActionShapeError, match="expected integer ids"):
            policy.log_prob(STATES, ids.astype(np.float32))
        with pytest.raises(TokenError, match="got -1 in row 0 at 0"):
            policy_of(BinningTokenizer(horizon=2, bins=3).fit([*walks()])).logits(STATES, np.full((6, 1), -1))
        with pytest.raises(ActionShapeError, match="n <="):
            policy.logits(STATES, np.zeros((6, policy.tokenizer.max_tokens), np.int64))
