from dataclasses import replace

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, ResidualVQTokenizer
from action_tokenizers.data import smooth_chunks, smooth_episodes
from action_tokenizers.diagnostics.codebook import (
    ESTIMATORS,
    bits,
    entropy,
    next_token_entropy,
    shift_overlap,
    shift_overlap_of,
    tokens,
    undecodable,
    undecodable_rate,
    usage,
    usage_of,
)
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.measure import Kind, bootstrap_t
from action_tokenizers.diagnostics.subject import Subject


@pytest.fixture(scope="module")
def chunks():
    return smooth_chunks(300, 12, 3, seed=0)


@pytest.fixture(scope="module")
def subjects():
    train, test = smooth_episodes(24, length=(30, 60), action_dim=3, seed=0).split(0.5, seed=0)
    fitted = {
        "binning": BinningTokenizer(horizon=8, bins=16),
        "kmeans": KMeansTokenizer(horizon=8, codebook_size=32),
        "residual_vq": ResidualVQTokenizer(horizon=8, levels=3, codebook_size=16),
        "fast": FASTTokenizer(horizon=8, vocab_size=256),
    }
    unit = unit_of(test.actions)
    return {name: Subject.of(tokenizer.fit(train), test, 8, unit) for name, tokenizer in fitted.items()}


NAMES = ["binning", "kmeans", "residual_vq", "fast"]


def by_episode(subject, values):
    return [np.mean(values[subject.episode == i]) for i in np.unique(subject.episode)]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_bits_are_those_of_the_chunks(subjects, name):
    subject = subjects[name]
    found = tokens(subject)
    lengths = np.array([sum(i != subject.tokenizer.pad_id for i in row) for row in subject.ids.tolist()])
    whole = subject.real.all(1)  # a tail is held still, which takes fewer ids than motion
    assert 0 < whole.sum() < len(whole)

    def means(values):
        return [values[whole & (subject.episode == i)].mean() for i in np.unique(subject.episode[whole])]

    assert found.value == pytest.approx(np.mean(means(lengths)))
    assert found.parts == {"p50": np.quantile(lengths[whole], 0.5), "p99": np.quantile(lengths[whole], 0.99)}
    expected = {"binning": 8 * (4 + 4 + 1), "kmeans": 8 * 5, "residual_vq": 3 * 4}
    if name in expected:
        assert bits(subject).value == pytest.approx(expected[name])
        assert bits(subject).interval == pytest.approx((expected[name], expected[name]))
    else:
        low, high = found.interval
        assert low < found.value < high
        assert found.interval == pytest.approx(bootstrap_t(means(lengths)))
        assert bits(subject).value == pytest.approx(
            np.mean(means(subject.tokenizer.bits(subject.ids, **subject.coded.shape)))
        )


def test_usage_and_perplexity_of_known_ids(subjects):
    """Eight of 48 ids, each as often as the others: a perplexity of 8."""
    subject = subjects["residual_vq"]
    n = len(subject) // 4 * 4
    ids = np.stack([np.arange(n) % 4, 16 + np.arange(n) % 4, 16 + np.arange(n) % 4], 1)[:, :2]
    known = replace(subject, ids=ids, lengths=np.full(n, 2))
    found = usage(known)
    assert found.value == usage_of(subject.tokenizer, ids, np.full(n, 2)) == 8 / 48
    assert found.kind is Kind.LOWER
    assert found.parts["perplexity"] == pytest.approx(8)
    assert (found.parts["used"], found.parts["dead"]) == (8, 40)
    assert found.parts["dead_ids"] == [*range(4, 16), *range(20, 48)]
    assert found.parts["ranked"] == {"rank": list(range(1, 9)), "count": [n // 4] * 8}
    assert found.n["ids"] == 2 * n


def test_ranks_are_those_of_the_counts_and_few(subjects):
    subject = subjects["residual_vq"]
    ids = np.repeat(np.arange(48), np.arange(48))[:, None]  # id i occurs i times
    ranked = usage(replace(subject, ids=ids, lengths=np.ones(len(ids), np.int64))).parts["ranked"]
    assert (ranked["rank"][0], ranked["rank"][-1]) == (1, 47)
    assert ranked["count"] == [48 - rank for rank in ranked["rank"]]
    assert sorted(set(ranked["rank"])) == ranked["rank"]


def test_a_pad_is_no_id(subjects):
    subject = subjects["fast"]
    found = usage(subject)
    assert (subject.ids == subject.tokenizer.pad_id).any()
    said = {i for row in subject.ids.tolist() for i in row} - {subject.tokenizer.pad_id}
    assert found.parts["used"] == len(said)
    assert found.parts["used"] + found.parts["dead"] == subject.tokenizer.vocab_size - 1
    assert len(found.parts["dead_ids"]) == min(100, found.parts["dead"])


@pytest.mark.parametrize("name", NAMES)
def test_entropy_of_a_subject_is_bounded_and_told_by_position(subjects, name):
    subject = subjects[name]
    found = entropy(subject)
    v = subject.tokenizer.vocab_size
    assert 0 < found.value <= np.log2(v) + 1e-9
    said = np.arange(subject.ids.shape[1]) < subject.lengths[:, None]
    pooled = np.average(found.parts["per_position"], weights=said.sum(0))
    assert pooled == pytest.approx(next_token_entropy(subject.ids, subject.lengths, subject.episode, v))
    assert found.value == pytest.approx(pooled, rel=0.05)  # episodes weigh alike, whatever their number of ids


def test_the_first_id_of_a_chain_carries_the_entropy(subjects):
    rng = np.random.default_rng(0)
    n = 12 * 200
    cycle = (np.arange(16) + rng.integers(0, 16, (n, 1))) % 16
    chain = replace(subjects["binning"], ids=cycle, lengths=np.full(n, 16), episode=np.repeat(np.arange(12), 200))
    found = entropy(chain)
    assert found.parts["per_position"][0] == pytest.approx(4, abs=0.05)
    assert found.parts["per_position"][1:] == pytest.approx([0] * 15, abs=0.05)
    assert found.value == pytest.approx(4 / 16, abs=0.05)


def test_one_episode_has_no_entropy(subjects):
    subject = subjects["binning"]
    alone = Subject.of(subject.tokenizer, subject.episodes[[0]], 8, subject.unit)
    assert entropy(alone).value is None
    assert "two episodes" in entropy(alone).caveat


@pytest.mark.parametrize("name", NAMES)
def test_overlap_of_a_subject_is_with_the_chunk_one_step_later(subjects, name):
    subject = subjects[name]
    means = []
    for action in subject.episodes.actions:
        firsts = [f for f in range(0, len(action), 8) if f + 8 < len(action)]
        now = subject.tokenizer.encode(np.stack([action[f : f + 8] for f in firsts]))
        # the last one may run one step beyond the end, and repeats it
        later = subject.tokenizer.encode(np.stack([action[f + 1 : f + 9] for f in firsts]))
        pad = subject.tokenizer.pad_id
        shares = []
        for row, next_row in zip(now.tolist(), later.tolist(), strict=True):
            one, two = ([j for j in r if j != pad] for r in (row, next_row))
            shares.append(2 * sum(min(one.count(j), two.count(j)) for j in set(one)) / (len(one) + len(two)))
        means.append(np.mean(shares))
    found = shift_overlap(subject)
    assert found.value == pytest.approx(np.mean(means))
    assert found.interval == pytest.approx(bootstrap_t(means))


def test_no_longer_episode_has_no_later_chunk():
    episodes = smooth_episodes(3, length=(8, 8), action_dim=2)
    found = shift_overlap(Subject.of(BinningTokenizer(horizon=8).fit(episodes), episodes, 8, np.ones(2)))
    assert found.value is None
    assert "longer than a chunk" in found.caveat


def test_undecodable_of_a_subject(subjects):
    for name in NAMES:
        subject = subjects[name]
        found = undecodable(subject, seed=5)
        rate = undecodable_rate(
            subject.tokenizer, subject.ids, subject.lengths, subject.coded.shape, subject.key, seed=5
        )
        assert found.value == pytest.approx(rate, abs=0.05)  # chunks against episodes
        assert found == undecodable(subject, seed=5)
    assert undecodable(subjects["kmeans"]).value == 0
    assert undecodable(subjects["kmeans"]).parts["episodes"]["interval"][1] == pytest.approx(0.265, abs=0.001)
    # another id belongs to another level in two of three cases
    assert undecodable(subjects["residual_vq"]).value == pytest.approx(32 / 47, abs=0.15)


def test_a_wrong_id_of_a_gripper_does_not_decode():
    """Its two values leave 14 of 16 shared ids without a meaning."""
    actions = np.sign(np.random.default_rng(0).normal(size=(20, 40, 2))).astype(np.float32)
    actions[..., 0] = np.linspace(-1, 1, 40)
    episodes = Episodes(list(actions))
    subject = Subject.of(BinningTokenizer(horizon=4, bins=16).fit(episodes), episodes, 4, np.ones(2))
    assert undecodable(subject).value == pytest.approx(14 / 15 / 2, abs=0.1)


def test_usage_counts_ids_without_pads(chunks):
    tokenizer = BinningTokenizer(bins=8, range="minmax").fit(chunks)
    ids = np.array([[0, 1, 1, 7], [0, 0, 5, 5]])
    assert usage_of(tokenizer, ids, np.array([3, 4])) == 3 / 8


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
    assert shift_overlap_of(ids[:1], later[:1], pad_id=9) == pytest.approx(2 * 2 / (3 + 3))
    assert shift_overlap_of(ids[1:], later[1:], pad_id=9) == 0
    assert shift_overlap_of(ids[:0], later[:0], pad_id=9) is None


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


def test_every_row_has_its_function_and_its_test():
    for row in ESTIMATORS:
        assert row.function == f"codebook.{row.name}"
        assert row.name in globals()
        assert row.test.removeprefix("test_codebook.py::") in globals()
