import numpy as np

from action_tokenizers import BinningTokenizer, ChunkSample, Episodes, Relative
from action_tokenizers.data import smooth_episodes
from action_tokenizers.data.fingerprint import KEPT, fingerprints, recognised


def each(chunks):
    """Fingerprints where every chunk is an episode of its own."""
    return fingerprints(chunks, np.arange(len(chunks)))


def test_the_same_chunks_have_the_same_fingerprints_in_any_order():
    chunks = np.random.default_rng(0).normal(size=(300, 5, 3)).astype(np.float32)
    kept = each(chunks)
    assert len(kept) == KEPT == len(set(kept))
    assert kept == sorted(kept) == each(chunks[::-1])


def test_every_episode_has_one():
    chunks = np.random.default_rng(0).normal(size=(40, 5, 3)).astype(np.float32)
    episode = np.repeat(np.arange(4), 10)
    kept = fingerprints(chunks, episode)
    assert kept == sorted(min(each(chunks[episode == i])) for i in range(4))


def test_every_value_and_its_place_count():
    chunk = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    other = chunk.copy()
    other[0, 2, 1] = np.nextafter(other[0, 2, 1], np.float32(100))
    swapped = chunk[:, [1, 0, 2, 3]]
    turned = chunk[:, :, [1, 0, 2]]
    assert len({tuple(each(c)) for c in (chunk, other, swapped, turned)}) == 4


def test_what_looks_the_same_everywhere_has_none():
    random = np.random.default_rng(0)
    assert each(np.full((9, 6, 2), 0.5, np.float32)) == []
    assert each(random.normal(size=(9, 1, 20)).astype(np.float32)) == []
    assert each(random.integers(-1, 2, (9, 30, 2)).astype(np.float32)) == []  # keys pressed
    assert each(np.empty((0, 6, 2), np.float32)) == []


def test_blocks_do_not_show():
    chunks = np.random.default_rng(1).normal(size=(300, 100, 100)).astype(np.float32)
    assert each(chunks) == sorted({f for c in chunks for f in each(c[None])})[:KEPT]


def test_one_episode_of_many_that_leaks_is_recognised():
    episodes = smooth_episodes(60, seed=6)
    train, test = episodes.split(0.2, seed=0)
    known = BinningTokenizer(horizon=8).fit(train).provenance["fingerprints"]
    assert recognised(known, test, 8, None) == {}
    for leak in (0, 17, 30):
        leaked = Episodes([*test.actions, train.actions[leak]])
        assert set(recognised(known, leaked, 8, None).values()) == {len(test)}


def test_a_fit_is_recognised_in_its_own_episodes_under_another_name_and_not_in_others():
    episodes = smooth_episodes(12, seed=3)
    train, test = episodes.split(0.5, seed=0)
    sample = ChunkSample(horizon=8).add(train, stride=3)
    tokenizer = BinningTokenizer(horizon=8).fit(sample)
    known = tokenizer.provenance["fingerprints"]
    assert recognised(known, test, 8, None) == {}
    renamed = Episodes(train.actions[2:4], source="elsewhere", key="other", names=(70, 71))
    found = recognised(known, renamed, 8, None)
    assert found
    assert set(found.values()) <= {70, 71}


def test_relative_chunks_are_recognised_as_they_were_coded():
    episodes = smooth_episodes(6, seed=4)
    relative = Relative("previous")
    sample = ChunkSample(horizon=8).add(episodes, 8, 1, relative)
    known = fingerprints(sample.actions, sample.episode)
    assert len(recognised(known, episodes, 8, relative)) == len(known)
    assert recognised(known, episodes, 8, None) == {}


def test_an_episode_shorter_than_the_horizon_is_passed_over():
    known = each(np.random.default_rng(0).normal(size=(3, 8, 2)).astype(np.float32))
    assert recognised(known, Episodes([np.ones((3, 2))]), 8, None) == {}


def test_what_is_no_fingerprint_is_passed_over():
    episodes = smooth_episodes(2, seed=5)
    known = each(ChunkSample(horizon=8).add(episodes).actions)[:1]
    assert list(recognised([*known, "no such", "0x12", 7, "f" * 17], episodes, 8, None)) == known
