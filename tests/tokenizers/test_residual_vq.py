import numpy as np
import pytest

from action_tokenizers import ResidualVQTokenizer
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.errors import ActionTokenizerError, TokenError
from action_tokenizers.testing import check_tokenizer
from tests.fakes.damage import (
    accept_allowed,
    accept_brute_force,
    accept_damage,
    accept_repair,
    recorded,
    residual_vq_layout,
)
from tests.fakes.workers import encode_in_threads, encode_in_workers

ACTIONS = smooth_chunks(80, 6, 3, seed=1)
PARAMS = {
    "identity": {},
    "pca": {"latent": "pca"},
    "pca of 5 components": {"latent": "pca", "latent_dim": 5},
    "pca of 90 % of the variance": {"latent": "pca", "latent_dim": 0.9},
    "one level": {"levels": 1},
}


@pytest.fixture(scope="module")
def demo():
    return recorded(16)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_contract(params):
    check_tokenizer(ResidualVQTokenizer(**{"levels": 3, "codebook_size": 12, **params}), ACTIONS)


@pytest.mark.parametrize("latent", ["identity", "pca"])
@pytest.mark.parametrize("constant", [True, False])
def test_fewer_distinct_chunks_than_codewords_are_exact(latent, constant):
    actions = np.tile(smooth_chunks(1 if constant else 3, 4, 2, gripper=False), (30, 1, 1))
    tokenizer = ResidualVQTokenizer(levels=3, codebook_size=8, latent=latent, latent_dim=None, range="minmax")
    np.testing.assert_allclose(tokenizer.fit(actions).quantize(actions), actions, atol=0.1 if latent == "pca" else 1e-6)
    assert tokenizer.encode(actions).shape == (len(actions), 3)
    check_tokenizer(ResidualVQTokenizer(levels=2, codebook_size=8, latent=latent), actions)


def test_ids_are_a_level_each():
    tokenizer = ResidualVQTokenizer(levels=3, codebook_size=16).fit(ACTIONS)
    ids = tokenizer.encode(ACTIONS)
    assert tokenizer.vocab_size == 48
    assert tokenizer.pad_id is None
    np.testing.assert_array_equal(ids // 16, np.tile([0, 1, 2], (len(ids), 1)))


def test_each_level_takes_the_nearest_codeword_of_what_is_left():
    tokenizer = ResidualVQTokenizer(levels=3, codebook_size=16, range="unit").fit(ACTIONS)
    state = {name: tensor.double().numpy() for name, tensor in tokenizer.state_dict().items()}
    left = ACTIONS.reshape(len(ACTIONS), -1) - state["mean"]
    for level, ids in enumerate(tokenizer.encode(ACTIONS).T - 16 * np.arange(3)[:, None]):
        distances = np.linalg.norm(left[:, None] - state["codebooks"][level], axis=-1)
        np.testing.assert_allclose(distances[np.arange(len(left)), ids], distances.min(1), atol=1e-6)
        left -= state["codebooks"][level][ids]


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_every_level_helps_on_held_out_chunks(params, demo):
    train, held_out = demo
    tokenizer = ResidualVQTokenizer(**{"levels": 4, "codebook_size": 32, **params}).fit(train)
    ids = tokenizer.encode(held_out)
    errors = [float(((tokenizer.decode_prefix(ids[:, :m]) - held_out) ** 2).mean()) for m in range(ids.shape[1] + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.25 * errors[0]
    mean = tokenizer.decode_prefix(np.empty((1, 0), np.int64))[0]
    low, high = tokenizer.range.low[0].numpy(), tokenizer.range.high[0].numpy()
    np.testing.assert_allclose(mean, train.clip(low, high).astype(np.float64).mean(0), atol=1e-6)


def test_a_prefix_of_another_chunk_is_refused():
    tokenizer = ResidualVQTokenizer(levels=3, codebook_size=16).fit(ACTIONS)
    for prefix in ([16], [0, 0], [0, 32], [0, 16, 32, 0]):
        with pytest.raises(TokenError, match=r"position|more after"):
            tokenizer.decode_prefix(prefix)


@pytest.mark.parametrize(
    "params",
    [{name: value} for name in ("levels", "codebook_size") for value in (0, -1, 2.5, True, None, "x")]
    + [{"latent": value} for value in (None, "PCA", 3)]
    + [{"latent": "pca", "latent_dim": value} for value in (0, -1, True, 19, 1000, 2.5, "a", np.nan, np.inf)]
    + [{"seed": value} for value in (-1, None, "a", 2.5)],
    ids=str,
)
def test_unusable_parameters_are_refused(params):
    tokenizer = ResidualVQTokenizer(**{"levels": 2, "codebook_size": 4, **params})
    with pytest.raises(ActionTokenizerError, match="expected"):
        tokenizer.fit(ACTIONS)
    assert not tokenizer.is_fitted


@pytest.mark.parametrize("params", [{}, {"latent": "pca"}], ids=["identity", "pca"])
def test_damage(params, demo):
    train, held_out = demo
    tokenizer = ResidualVQTokenizer(codebook_size=64, **params).fit(train)
    accept_damage(tokenizer, held_out, residual_vq_layout, 2000)
    accept_repair(tokenizer, train, held_out)
    accept_allowed(tokenizer, held_out[:500], 200)


def test_allowed_is_brute_force():
    tokenizer = ResidualVQTokenizer(levels=3, codebook_size=3).fit(ACTIONS[:, :2])
    assert accept_brute_force(tokenizer, residual_vq_layout, 2) == 27


@pytest.mark.slow
def test_acceptance(demo):
    train, held_out = demo
    tokenizer = ResidualVQTokenizer().fit(train)
    print(accept_damage(tokenizer, held_out, residual_vq_layout, 100_000))
    print(accept_repair(tokenizer, train, held_out))
    accept_allowed(tokenizer, np.tile(np.concatenate([held_out, train]), (2, 1, 1))[:10_000], 10_000)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_and_threads(demo):
    tokenizer = ResidualVQTokenizer(codebook_size=64).fit(demo[0])
    encode_in_workers([tokenizer], demo[1], "fork")
    encode_in_threads(tokenizer, demo[1])
