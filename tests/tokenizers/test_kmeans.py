import numpy as np
import pytest

from action_tokenizers import KMeansTokenizer
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.errors import ActionTokenizerError, NotFittedError
from action_tokenizers.testing import check_tokenizer
from tests.fakes.damage import (
    accept_allowed,
    accept_brute_force,
    accept_damage,
    accept_repair,
    kmeans_layout,
    recorded,
)
from tests.fakes.workers import encode_in_threads, encode_in_workers

ACTIONS = smooth_chunks(80, 6, 3, seed=1)
PARAMS = {
    "step": {},
    "chunk": {"scope": "chunk"},
    "step and groups": {"groups": [[2, 0], [1]]},
    "chunk and groups": {"scope": "chunk", "groups": [[0, 1], [2]]},
}


@pytest.fixture(scope="module")
def demo():
    return recorded(16)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_contract(params):
    check_tokenizer(KMeansTokenizer(codebook_size=16, **params), ACTIONS)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_fewer_distinct_vectors_than_codewords_are_exact(params):
    actions = np.tile(smooth_chunks(3, 2, 3, gripper=False), (20, 1, 1))
    tokenizer = KMeansTokenizer(codebook_size=64, range="minmax", **params).fit(actions)
    per_group = {"step": 6, "chunk": 3}[tokenizer.get_params()["scope"]]
    assert tokenizer.vocab_size == per_group * (2 if "groups" in params else 1)
    np.testing.assert_allclose(tokenizer.quantize(actions), actions, atol=1e-6)
    check_tokenizer(KMeansTokenizer(codebook_size=64, **params), actions)


def test_ids_run_step_by_step_then_group_by_group():
    tokenizer = KMeansTokenizer(codebook_size=8, groups=[[0], [1, 2]]).fit(ACTIONS)
    alone = [
        KMeansTokenizer(codebook_size=8).fit(ACTIONS[..., :1]).encode(ACTIONS[..., :1]),
        KMeansTokenizer(codebook_size=8).fit(ACTIONS[..., 1:]).encode(ACTIONS[..., 1:]),
    ]
    np.testing.assert_array_equal(tokenizer.encode(ACTIONS).reshape(80, 6, 2), np.stack(alone, -1) + np.array([0, 8]))


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_the_nearest_codeword_is_chosen(params):
    tokenizer = KMeansTokenizer(codebook_size=16, **params).fit(ACTIONS)
    units = (smooth_chunks(40, 6, 3, seed=2) - tokenizer.range.low.numpy()) / (
        tokenizer.range.high - tokenizer.range.low
    ).numpy() * 2 - 1
    units = units.clip(-1, 1)
    ids = tokenizer.encode(smooth_chunks(40, 6, 3, seed=2))
    groups = params.get("groups", [[0, 1, 2]])
    places = 1 if params.get("scope") == "chunk" else 6
    first = 0
    for g, dims in enumerate(groups):
        codebook = tokenizer.state_dict()[f"codebook_{g}"].numpy().astype(np.float64)
        vectors = units[:, :, dims].reshape(40 * places, 1, -1)
        distances = np.linalg.norm(vectors - codebook, axis=-1)
        chosen = distances[np.arange(len(distances)), ids.reshape(40 * places, len(groups))[:, g] - first]
        np.testing.assert_allclose(chosen, distances.min(1), atol=1e-6)
        first += len(codebook)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_listed_codewords_are_what_the_ids_decode_to(params):
    tokenizer = KMeansTokenizer(codebook_size=16, range="minmax", **params).fit(ACTIONS)
    low, high = tokenizer.range.low[0].numpy(), tokenizer.range.high[0].numpy()
    groups = tokenizer.codewords()
    assert [dims for dims, _ in groups] == params.get("groups", [[0, 1, 2]])
    steps = 6 if params.get("scope") == "chunk" else 1
    ids = tokenizer.encode(ACTIONS).reshape(80, 6 // steps, len(groups))
    decoded = tokenizer.decode(tokenizer.encode(ACTIONS))
    first = 0
    for g, (dims, words) in enumerate(groups):
        assert words.shape == (len(words), steps, len(dims))
        said = words[ids[:, :, g] - first].numpy().reshape(80, 6, len(dims))
        actions = low[dims] + (said + 1) / 2 * (high - low)[dims]
        np.testing.assert_allclose(decoded[:, :, dims], actions, atol=1e-5)
        first += len(words)
    assert first == tokenizer.vocab_size


def test_listed_codewords_are_a_copy():
    tokenizer = KMeansTokenizer(codebook_size=16).fit(ACTIONS)
    before = tokenizer.quantize(ACTIONS)
    tokenizer.codewords()[0][1].zero_()
    np.testing.assert_array_equal(tokenizer.quantize(ACTIONS), before)


def test_there_are_no_codewords_before_the_fit():
    with pytest.raises(NotFittedError):
        KMeansTokenizer().codewords()


def test_a_refit_with_fewer_groups_can_be_saved(tmp_path):
    tokenizer = KMeansTokenizer(codebook_size=8, groups=[[0], [1, 2]]).fit(ACTIONS)
    tokenizer.set_params(groups=None).fit(ACTIONS)
    loaded = KMeansTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "refitted"))
    np.testing.assert_array_equal(loaded.encode(ACTIONS), tokenizer.encode(ACTIONS))


def test_more_codewords_err_less():
    actions = smooth_chunks(300, 8, 3)
    for scope in ("step", "chunk"):
        tokenizers = [KMeansTokenizer(codebook_size=k, scope=scope).fit(actions) for k in (1, 4, 16, 64)]
        errors = [float(((tokenizer.quantize(actions) - actions) ** 2).mean()) for tokenizer in tokenizers]
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "params",
    [{"codebook_size": value} for value in (0, -1, 2.5, True, None, "x")]
    + [{"scope": value} for value in (None, "Step", 3)]
    + [{"groups": value} for value in ([[0]], [[0, 1], [1, 2]], [[0, 1], [2, 3]], [[0, 1], [-1]], [], [0, 1, 2], 3)]
    + [{"groups": [[0, 1, 2], []]}]
    + [{"seed": value} for value in (-1, None, "a", 2.5)],
    ids=str,
)
def test_unusable_parameters_are_refused(params):
    tokenizer = KMeansTokenizer(**{"codebook_size": 4, **params})
    with pytest.raises(ActionTokenizerError, match="expected"):
        tokenizer.fit(ACTIONS)
    assert not tokenizer.is_fitted


def test_numpy_numbers_are_numbers():
    tokenizer = KMeansTokenizer(codebook_size=np.int64(4), seed=np.int64(0)).fit(ACTIONS)
    np.testing.assert_array_equal(
        tokenizer.encode(ACTIONS), KMeansTokenizer(codebook_size=4).fit(ACTIONS).encode(ACTIONS)
    )


@pytest.mark.parametrize("params", [{}, {"scope": "chunk", "groups": [[0], [1], [2], [3]]}], ids=["step", "chunk"])
def test_damage(params, demo):
    train, held_out = demo
    tokenizer = KMeansTokenizer(codebook_size=64, **params).fit(train)
    accept_damage(tokenizer, held_out, kmeans_layout, 2000)
    accept_repair(tokenizer, train, held_out)
    accept_allowed(tokenizer, held_out[:500], 200)


def test_damage_with_an_open_horizon(demo):
    tokenizer = KMeansTokenizer(codebook_size=64, groups=[[0, 1, 2], [3]]).fit(list(demo[0][:200]))
    accept_damage(tokenizer, demo[1], kmeans_layout, 1000)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_allowed_is_brute_force(params):
    tokenizer = KMeansTokenizer(codebook_size=3, **params)
    found = accept_brute_force(tokenizer.fit(ACTIONS[:, :2]), kmeans_layout, 2)
    assert found == 3 ** ((1 if "scope" in params else 2) * (2 if "groups" in params else 1))


@pytest.mark.slow
def test_acceptance(demo):
    train, held_out = demo
    tokenizer = KMeansTokenizer().fit(train)
    print(accept_damage(tokenizer, held_out, kmeans_layout, 100_000))
    print(accept_repair(tokenizer, train, held_out))
    accept_allowed(tokenizer, np.tile(np.concatenate([held_out, train]), (2, 1, 1))[:10_000], 10_000)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_and_threads(demo):
    tokenizer = KMeansTokenizer(codebook_size=64).fit(demo[0])
    encode_in_workers([tokenizer], demo[1], "fork")
    encode_in_threads(tokenizer, demo[1])
