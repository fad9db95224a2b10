import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes
from action_tokenizers.data.synthetic import smooth_chunks
from action_tokenizers.errors import ActionTokenizerError
from action_tokenizers.testing import check_tokenizer
from tests.fakes.damage import (
    accept_allowed,
    accept_brute_force,
    accept_damage,
    accept_repair,
    binning_layout,
    recorded,
)
from tests.fakes.workers import encode_in_threads, encode_in_workers

STRATEGIES = BinningTokenizer.STRATEGIES
ACTIONS = smooth_chunks(80, 6, 3, seed=1)


@pytest.fixture(scope="module")
def demo():
    return recorded(16)


@pytest.mark.parametrize("shared_ids", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_contract(strategy, shared_ids):
    check_tokenizer(BinningTokenizer(bins=16, strategy=strategy, shared_ids=shared_ids), ACTIONS)


@pytest.mark.parametrize(
    "params",
    [{"bins": [2, 300, 5], "shared_ids": False}, {"bins": [7, 2, 3], "range": ["unit", "meanstd", "minmax"]}],
    ids=["own ids", "shared ids"],
)
def test_contract_with_bins_per_dim(params):
    check_tokenizer(BinningTokenizer(**params), smooth_chunks(80, 6, 3, seed=1, gripper=False))


def test_id_layout_is_step_by_step_then_dim_by_dim():
    actions = smooth_chunks(50, 4, 3, gripper=False)
    shared = BinningTokenizer(bins=[4, 8, 16]).fit(actions)
    own = BinningTokenizer(bins=[4, 8, 16], shared_ids=False).fit(actions)
    assert (shared.vocab_size, own.vocab_size) == (16, 28)
    expected = shared.encode(actions).reshape(50, 4, 3) + np.array([0, 4, 12])
    np.testing.assert_array_equal(own.encode(actions), expected.reshape(50, 12))


def test_uniform_cells_are_those_of_openvla_and_rt1():
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 5, 2)).astype(np.float32)
    tokenizer = BinningTokenizer(bins=256, range="unit").fit(actions)
    expected = np.clip(np.digitize(actions.astype(np.float64), np.linspace(-1, 1, 257)) - 1, 0, 255)
    np.testing.assert_array_equal(tokenizer.encode(actions), expected.reshape(100, -1))
    assert np.abs(tokenizer.quantize(actions) - actions).max() <= 1 / 256 + 1e-7


def test_quantile_cells_hold_equal_mass():
    values = np.random.default_rng(0).standard_normal((4000, 2, 1)).astype(np.float32)
    ids = BinningTokenizer(bins=10, strategy="quantile", range="minmax").fit(values).encode(values)
    assert np.abs(np.bincount(ids.ravel(), minlength=10) / ids.size - 0.1).max() < 0.015


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_bins_err_less(strategy):
    actions = smooth_chunks(300, 8, 3, gripper=False)
    errors = [
        float(
            (
                (BinningTokenizer(bins=k, strategy=strategy, range="minmax").fit(actions).quantize(actions) - actions)
                ** 2
            ).mean()
        )
        for k in (2, 8, 32, 128)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


def with_few_valued_dims() -> np.ndarray:
    """Chunks whose dims are: smooth, constant, two-valued, a gripper at one value in 99.7 % of the frames."""
    random = np.random.default_rng(0)
    actions = smooth_chunks(500, 8, 4, gripper=False)
    actions[..., 1] = 0.1
    actions[..., 2] = np.where(random.random((500, 8)) < 0.4, -0.3, 0.7)
    rare = np.zeros(4000, bool)
    rare[random.permutation(4000)[:12]] = True
    actions[..., 3] = np.where(rare.reshape(500, 8), 0.08, 0.0)
    return actions


@pytest.mark.parametrize("asked", ["quantile", "minmax", "meanstd", "unit"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_constants_and_grippers_survive_exactly(strategy, asked):
    actions = with_few_valued_dims()
    tokenizer = BinningTokenizer(bins=32, strategy=strategy, range=asked).fit(actions)
    np.testing.assert_array_equal(tokenizer.quantize(actions)[..., 1:], actions[..., 1:])
    assert [len(centres) for centres in tokenizer.scalar_cells().centres[1:]] == [1, 2, 2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gripper_survives_exactly_beside_a_robot_that_never_moves_it(strategy):
    actions = with_few_valued_dims()
    still = actions.copy()
    still[..., 2:] = 0.25
    tokenizer = BinningTokenizer(bins=32, strategy=strategy, horizon=8)
    tokenizer.fit([Episodes(list(actions), key="moves"), Episodes(list(still), key="still")])
    for key, chunks in {"moves": actions, "still": still}.items():
        np.testing.assert_array_equal(tokenizer.quantize(chunks, key=key)[..., 1:], chunks[..., 1:])


def test_values_one_ulp_apart_stay_apart():
    low, high = np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))
    for first in (low, high, -low, -high):  # the midpoint rounds down for some and up for others
        second = np.nextafter(first, np.float32(1))
        actions = np.where(np.arange(40).reshape(10, 4, 1) % 2, first, second)
        tokenizer = BinningTokenizer(range="unit").fit(actions)
        np.testing.assert_array_equal(tokenizer.quantize(actions), actions)


def test_every_id_encodes_to_itself():
    actions = smooth_chunks(300, 8, 3, gripper=False)
    for strategy in STRATEGIES:
        for asked in ("quantile", "unit"):
            tokenizer = BinningTokenizer(bins=64, strategy=strategy, range=asked).fit(actions)
            bins = [len(centres) for centres in tokenizer.scalar_cells().centres]
            ids = np.stack([np.arange(64 * 8).reshape(64, 8) % k for k in bins], -1).reshape(64, -1)
            np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


@pytest.mark.parametrize(
    "params",
    [{"bins": value} for value in (1, 0, -3, 2.5, 4.0, True, None, "x", [2, 2], [2, 2, 1], [2, 2, 2.5], [2, 2, "a"])]
    + [{"strategy": value} for value in (None, "Uniform", 3)]
    + [{"strategy": "mu_law", "mu": value} for value in (0, -1, None, np.nan, np.inf)],
    ids=str,
)
def test_unusable_parameters_are_refused(params):
    tokenizer = BinningTokenizer(**params)
    with pytest.raises(ActionTokenizerError, match="expected"):
        tokenizer.fit(ACTIONS)
    assert not tokenizer.is_fitted


@pytest.mark.parametrize("bins", [np.int64(4), np.array([4, 4, 4]), (4, 4, 4)], ids=repr)
def test_numpy_numbers_are_numbers(bins):
    ids = BinningTokenizer(bins=bins).fit(ACTIONS).encode(ACTIONS)
    np.testing.assert_array_equal(ids, BinningTokenizer(bins=4).fit(ACTIONS).encode(ACTIONS))


@pytest.mark.parametrize("params", [{}, {"shared_ids": False, "strategy": "quantile"}], ids=["shared", "own"])
def test_damage(params, demo):
    train, held_out = demo
    tokenizer = BinningTokenizer(bins=64, **params).fit(train)
    accept_damage(tokenizer, held_out, binning_layout, 2000)
    accept_repair(tokenizer, train, held_out)
    accept_allowed(tokenizer, held_out[:500], 200)


def test_damage_with_an_open_horizon(demo):
    tokenizer = BinningTokenizer(bins=64).fit(list(demo[0][:200]))
    accept_damage(tokenizer, demo[1], binning_layout, 1000)


@pytest.mark.parametrize("shared_ids", [True, False])
def test_allowed_is_brute_force(shared_ids):
    actions = smooth_chunks(50, 2, 2, gripper=False)
    tokenizer = BinningTokenizer(bins=[2, 3], shared_ids=shared_ids)
    assert accept_brute_force(tokenizer.fit(actions), binning_layout, 2) == 36
    assert accept_brute_force(tokenizer.fit(list(actions)), binning_layout, 2) == 36


@pytest.mark.slow
def test_acceptance(demo):
    train, held_out = demo
    tokenizer = BinningTokenizer().fit(train)
    print(accept_damage(tokenizer, held_out, binning_layout, 100_000))
    print(accept_repair(tokenizer, train, held_out))
    accept_allowed(tokenizer, np.tile(np.concatenate([held_out, train]), (2, 1, 1))[:10_000], 10_000)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_and_threads(demo):
    tokenizer = BinningTokenizer().fit(demo[0])
    encode_in_workers([tokenizer], demo[1], "fork")
    encode_in_threads(tokenizer, demo[1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_levels_than_bins_are_refused_not_blurred(strategy):
    """A gripper that one robot moves and another does not is -1, 0 and 1; two cells cannot hold it."""
    moving = with_few_valued_dims()
    still = moving.copy()
    still[..., 2:] = 0.25
    data = [Episodes(list(moving), key="moves", source="a"), Episodes(list(still), key="still", source="b")]
    with pytest.raises(ActionTokenizerError, match="bins >= 3"):
        BinningTokenizer(bins=[32, 2, 2, 2], strategy=strategy, horizon=8).fit(data)
