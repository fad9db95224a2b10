import numpy as np
import pytest
import torch

from action_tokenizers.data import ChunkSample, Episodes, smooth_chunks, smooth_episodes
from action_tokenizers.errors import ActionShapeError, ActionValueError

CHUNKS = smooth_chunks(30, 8, 3)


def in_given_order(sample: ChunkSample) -> np.ndarray:
    return sample.actions[np.lexsort((sample.start, sample.episode))]


@pytest.mark.parametrize(
    "data",
    [CHUNKS, torch.from_numpy(CHUNKS), CHUNKS.astype(np.float64), [CHUNKS[:20], CHUNKS[20:]]],
    ids=["numpy", "torch", "float64", "list"],
)
def test_ready_chunks_are_taken_as_they_are(data):
    sample = ChunkSample.of(data)
    np.testing.assert_array_equal(in_given_order(sample), CHUNKS)
    assert sample.key_names == ("default",)
    assert sorted(sample.episode) == list(range(30))
    assert not sample.start.any()


def test_a_generator_is_consumed_lazily():
    taken = []

    def stream():
        for begin in (0, 10, 20):
            taken.append(begin)
            yield CHUNKS[begin : begin + 10]

    generator = stream()
    assert not taken
    assert ChunkSample.of(generator).digest() == ChunkSample.of(CHUNKS).digest()
    assert taken == [0, 10, 20]


def test_a_list_of_matrices_is_episodes():
    lengths = (10, 5, 12)
    sample = ChunkSample.of([np.ones((n, 2)) * n for n in lengths], horizon=8)
    assert sample.count == {"default": 3 + 5}
    assert sample.skipped == 1
    assert sorted(set(sample.episode.tolist())) == [0, 2]
    with pytest.raises(ActionShapeError, match="give horizon="):
        ChunkSample.of([np.ones((10, 2))])


def test_episodes_and_samples_mix():
    a, b = smooth_episodes(3, key="a"), smooth_episodes(4, key="b", seed=1)
    mixed = ChunkSample.of([a, ChunkSample(horizon=20).add(b)])
    assert mixed.digest() == ChunkSample.of([b, a]).digest()
    assert mixed.horizon == 20
    assert ChunkSample.of(a, horizon=5).horizon == 5


def test_a_sample_comes_back_as_it_is():
    sample = ChunkSample.of(CHUNKS)
    assert ChunkSample.of(sample, horizon=8) is sample
    with pytest.raises(ActionShapeError, match="horizon 9, got one of 8"):
        ChunkSample.of(sample, horizon=9)


def test_the_asked_horizon_must_be_the_chunks():
    with pytest.raises(ActionShapeError, match="horizon 4 as in this sample, got 8"):
        ChunkSample.of(CHUNKS, horizon=4)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (lambda bad: bad, "chunk 4, step 2, dim 1"),
        (lambda bad: list(bad), "episode 4, frame 2, dim 1"),
    ],
)
def test_bad_values_are_named(data, place):
    bad = CHUNKS.copy()
    bad[4, 2, 1] = np.inf
    with pytest.raises(ActionValueError, match=place):
        ChunkSample.of(data(bad), horizon=8)


@pytest.mark.parametrize("data", ["some/path", 3, {"a": CHUNKS}, None])
def test_other_things_are_refused(data):
    with pytest.raises(ActionValueError, match=r"Episodes\.load\(path\)"):
        ChunkSample.of(data)


@pytest.mark.parametrize("data", [CHUNKS[0], CHUNKS[None], [CHUNKS[0, 0]]])
def test_other_shapes_are_refused(data):
    with pytest.raises(ActionShapeError, match=r"\(n, t, d\)"):
        ChunkSample.of(data, horizon=8)


def test_no_chunk_at_all_says_why():
    with pytest.raises(ActionShapeError, match="got 3 episodes, the longest of 20"):
        ChunkSample.of(smooth_episodes(3, length=(20, 20)), horizon=21)
    for data in ([], CHUNKS[:0], iter(())):
        with pytest.raises(ActionValueError, match="at least one chunk"):
            ChunkSample.of(data)


def test_rules_are_passed_on():
    sample = ChunkSample.of(Episodes([*CHUNKS], key="k"), horizon=4, k=7, seed=2, weights={"k": 2.0})
    assert (len(sample), sample.seed, sample.weights) == (7, 2, {"k": 2.0})
