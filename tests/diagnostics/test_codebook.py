import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, FASTTokenizer, KMeansTokenizer
from action_tokenizers.data import smooth_chunks
from action_tokenizers.diagnostics.codebook import next_token_entropy, shift_overlap, undecodable_rate, usage


@pytest.fixture(scope="module")
def chunks():
    return smooth_chunks(300, 12, 3, seed=0)


def test_usage_counts_ids_without_pads(chunks):
    tokenizer = BinningTokenizer(bins=8, range="minmax").fit(chunks)
    ids = np.array([[0, 1, 1, 7], [0, 0, 5, 5]])
    assert usage(tokenizer, ids, np.array([3, 4])) == 3 / 8


def test_entropy_of_a_deterministic_chain_vanishes_and_of_noise_is_the_uniform_one():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 50)
    lengths = np.full(1000, 16)
    cycle = (np.arange(16) + rng.integers(0, 8, (1000, 1))) % 8
    # 3 bits for the first id of 16, nothing for the others
    assert next_token_entropy(cycle, lengths, group, 8) == pytest.approx(3 / 16, abs=0.01)
    noise = rng.integers(0, 8, (1000, 16))
    assert next_token_entropy(noise, lengths, group, 8) == pytest.approx(3, abs=0.01)


def test_entropy_never_exceeds_the_uniform_one_and_needs_two_episodes():
    rng = np.random.default_rng(1)
    ids = np.concatenate([rng.integers(0, 4, (50, 8)), rng.integers(4, 8, (50, 8))])
    group = np.repeat([0, 1], 50)  # the halves share no id at all
    assert next_token_entropy(ids, np.full(100, 8), group, 8) <= 3 + 1e-9
    assert next_token_entropy(ids, np.full(100, 8), np.zeros(100, int), 8) is None


def test_entropy_ignores_pads():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 8, (400, 10))
    lengths = rng.integers(1, 10, 400)
    group = np.arange(400) % 10
    padded = np.where(np.arange(10) < lengths[:, None], ids, 0)
    other = np.where(np.arange(10) < lengths[:, None], ids, 7)
    assert next_token_entropy(padded, lengths, group, 8) == next_token_entropy(other, lengths, group, 8)


def test_overlap_is_of_multisets():
    ids = np.array([[1, 1, 2, 9], [3, 4, 5, 6]])
    later = np.array([[1, 2, 2], [7, 8, 9]])
    assert shift_overlap(ids[:1], later[:1], pad_id=9) == pytest.approx(2 * 2 / (3 + 3))
    assert shift_overlap(ids[1:], later[1:], pad_id=9) == 0
    assert shift_overlap(ids[:0], later[:0], pad_id=9) is None


def test_undecodable_after_one_wrong_id(chunks):
    rates = {}
    for tokenizer in (KMeansTokenizer(codebook_size=32), FASTTokenizer(vocab_size=256)):
        ids = tokenizer.fit(chunks).encode(chunks)
        lengths = tokenizer.length(ids)
        found = [undecodable_rate(tokenizer, ids, lengths, {"horizon": 12}, "default", seed=0) for _ in range(2)]
        assert found[0] == found[1]
        rates[tokenizer.tokenizer_type] = found[0]
    assert rates["kmeans"] == 0  # every id can stand everywhere
    assert rates["fast"] > 0.2  # another id mostly spans another number of coefficients
