"""Ranges against numpy: every strategy, per dim, per key, and the dims that hold few values."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from action_tokenizers import ranges
from action_tokenizers.errors import ActionShapeError, ActionValueError
from action_tokenizers.ranges import STRATEGIES, Range, fit_range


def frames(seed: int = 0, n: int = 4000, d: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (n, d)) * np.geomspace(0.1, 500, d) + np.arange(d)).astype(np.float32)


def fit(strategy: Any, **data: np.ndarray) -> Range:
    data = data or {"default": frames()}
    low = {key: values.min(axis=0) for key, values in data.items()}
    return fit_range(strategy, data, low, {key: values.max(axis=0) for key, values in data.items()})


def expected(name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = values.astype(np.float64)
    match name:
        case "quantile":
            return np.quantile(wide, 0.01, axis=0), np.quantile(wide, 0.99, axis=0)
        case "minmax":
            return wide.min(axis=0), wide.max(axis=0)
        case "meanstd":
            return wide.mean(axis=0) - 4 * wide.std(axis=0), wide.mean(axis=0) + 4 * wide.std(axis=0)
        case _:
            return -np.ones(values.shape[1]), np.ones(values.shape[1])


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_what_numpy_says(name):
    fitted = fit(name)
    low, high = expected(name, frames())
    np.testing.assert_allclose(fitted.low[0].numpy(), low, rtol=2e-6)
    np.testing.assert_allclose(fitted.high[0].numpy(), high, rtol=2e-6)
    assert fitted.keys == ("default",)
    assert fitted.low.dtype == torch.float32


def test_one_strategy_per_dim():
    names = ["unit", "minmax", "quantile"]
    fitted = fit(names)
    for j, name in enumerate(names):
        low, high = expected(name, frames())
        np.testing.assert_allclose(fitted.low[0, j], low[j], rtol=2e-6)
        np.testing.assert_allclose(fitted.high[0, j], high[j], rtol=2e-6)


def test_every_key_has_a_row_and_keys_are_sorted():
    a, b = frames(1), frames(2, n=100) * 9
    fitted = fit("quantile", zebra=a, ant=b)
    assert fitted.keys == ("ant", "zebra")
    for row, values in enumerate((b, a)):
        low, high = expected("quantile", values)
        np.testing.assert_allclose(fitted.low[row].numpy(), low, rtol=1e-5)
        np.testing.assert_allclose(fitted.high[row].numpy(), high, rtol=1e-5)


def test_extremes_come_from_all_data_even_where_frames_are_a_sample():
    values = frames()
    low, high = values.min(axis=0) - 5, values.max(axis=0) + 5
    fitted = fit_range("minmax", {"k": values}, {"k": low}, {"k": high})
    np.testing.assert_array_equal(fitted.low[0].numpy(), low)
    np.testing.assert_array_equal(fitted.high[0].numpy(), high)


def test_quantiles_read_a_bounded_number_of_frames(monkeypatch):
    monkeypatch.setattr(ranges, "MOST_ROWS", 500)
    fitted = fit("quantile")
    np.testing.assert_allclose(fitted.low[0].numpy(), expected("quantile", frames()[:500])[0], rtol=2e-6)


# ---- dims that hold few values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quantile", "minmax", "meanstd"])
@pytest.mark.parametrize("share", [0.5, 0.2, 0.005, 0.00025])
def test_both_values_of_a_gripper_survive(name, share):
    """Open in 99.975 % of the frames: quantiles and deviations alone would cut the closed value off."""
    values = frames(3, d=2)
    values[:, 1] = 0.08
    values[: max(1, int(share * len(values))), 1] = 0.0
    fitted = fit(name, default=values)
    assert fitted.low[0, 1].item() == 0.0
    assert fitted.high[0, 1].item() == np.float32(0.08)
    there = torch.from_numpy(values)
    torch.testing.assert_close(fitted.from_unit(fitted.to_unit(there))[:, 1], there[:, 1], rtol=0, atol=0)
    assert not fitted.outside(there)[:, 1].any()


def test_a_dim_that_rarely_moves_spans_all_it_does():
    """Three values, one of them in 99.5 % of the frames: both quantiles are that one."""
    values = frames(4, d=1)
    values[:, 0] = 1.0
    values[:10, 0], values[10:20, 0] = -2.0, 5.0
    fitted = fit("quantile", default=values)
    assert (fitted.low.item(), fitted.high.item()) == (-2.0, 5.0)


@pytest.mark.parametrize("name", ["quantile", "minmax", "meanstd"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_a_constant_dim_comes_back_exactly(name, value):
    values = frames(5)
    values[:, 1] = value
    fitted = fit(name, default=values)
    there = torch.from_numpy(values)
    z = fitted.to_unit(there)
    assert z[:, 1].tolist() == [0.0] * len(values)
    assert torch.equal(fitted.from_unit(z)[:, 1], there[:, 1])


def test_unit_trusts_the_caller():
    values = np.full((10, 2), 0.25, np.float32)
    values[3, 0] = 0.5
    fitted = fit("unit", default=values)
    assert fitted.low.tolist() == [[-1.0, -1.0]]
    assert fitted.high.tolist() == [[1.0, 1.0]]
    assert fitted.to_unit(torch.from_numpy(values)).tolist() == values.tolist()


def test_meanstd_may_reach_further_than_the_data():
    fitted = fit("meanstd")
    assert bool((fitted.low[0] < torch.from_numpy(frames().min(axis=0))).all())


# ---- a Range given ----------------------------------------------------------------------------------------------


def test_a_given_range_is_taken():
    given = Range([0.0, 1.0, 2.0], [1.0, 5.0, 2.0])
    fitted = fit(given)
    assert (fitted.low.tolist(), fitted.high.tolist()) == (given.low.tolist(), given.high.tolist())
    assert fitted is not given  # the parameter stays as it was given


def test_a_range_of_one_row_serves_the_only_key_there_is():
    assert fit(Range([0.0] * 3, [1.0] * 3), robot=frames()).keys == ("robot",)


def test_a_range_may_know_more_keys_than_the_data():
    given = Range(torch.zeros(3, 3), torch.ones(3, 3), ("a", "b", "c"))
    assert fit(given, b=frames()).keys == ("a", "b", "c")


def test_a_range_that_does_not_fit_the_data_is_refused():
    with pytest.raises(ActionShapeError, match="action_dim 3"):
        fit(Range([0.0], [1.0]))
    with pytest.raises(ActionShapeError, match=r"\['a', 'b'\]"):
        fit(Range(torch.zeros(2, 3), torch.ones(2, 3), ("a", "c")), a=frames(), b=frames())
    with pytest.raises(ActionShapeError, match="keys"):
        fit(Range([0.0] * 3, [1.0] * 3), a=frames(), b=frames())


# ---- the Range itself -------------------------------------------------------------------------------------------


def test_maps_with_the_row_of_the_key():
    r = Range([[0.0], [10.0]], [[2.0], [30.0]], ("a", "b"))
    x = torch.tensor([[1.0], [15.0], [99.0]])
    assert r.to_unit(x, "a").tolist() == [[0.0], [1.0], [1.0]]
    assert r.to_unit(x, "b").tolist() == [[-1.0], [-0.5], [1.0]]
    assert r.from_unit(torch.tensor([[0.5]]), "b").tolist() == [[25.0]]
    assert r.outside(x, "a").tolist() == [[False], [True], [True]]
    assert r.outside(x, "b").tolist() == [[True], [False], [True]]
    assert r.action_dim == 1


def test_the_ends_are_inside():
    r = Range([0.0], [2.0])
    assert r.outside(torch.tensor([[0.0], [2.0], [-1e-6], [2.000001]]))[:, 0].tolist() == [False, False, True, True]


def test_no_key_means_the_only_one():
    one = Range([0.0], [1.0], ("arm",))
    assert one.index(None) == one.index("arm") == 0
    two = Range([[0.0], [0.0]], [[1.0], [1.0]], ("arm", "hand"))
    assert two.index("hand") == 1
    with pytest.raises(ActionShapeError, match=r"\['arm', 'hand'\], got no key"):
        two.index(None)
    for r in (one, two):
        with pytest.raises(ActionShapeError, match="got key 'leg'"):
            r.index("leg")


def test_json_round_trip_is_exact():
    values = frames(6, d=4)
    r = fit("quantile", a=values, b=values / 3)
    again = Range.from_json(r.to_json())
    assert again.keys == r.keys
    assert torch.equal(again.low, r.low)
    assert torch.equal(again.high, r.high)


def test_does_not_share_memory_with_what_it_was_given():
    low = torch.zeros(2)
    r = Range(low, torch.ones(2))
    low += 7
    assert r.low.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("low", "high", "keys", "error"),
    [
        ([0.0], [1.0, 2.0], ("a",), ActionShapeError),
        ([0.0], [1.0], ("a", "b"), ActionShapeError),
        (0.0, 1.0, ("a",), ActionShapeError),
        ([[[0.0]]], [[[1.0]]], ("a",), ActionShapeError),
        ([[0.0], [0.0]], [[1.0], [1.0]], ("a", "a"), ActionValueError),
        ([1.0], [0.0], ("a",), ActionValueError),
        ([float("nan")], [0.0], ("a",), ActionValueError),
        ([0.0], [float("nan")], ("a",), ActionValueError),
        ([0.0], [float("inf")], ("a",), ActionValueError),
        ([0.0], [1e39], ("a",), ActionValueError),
    ],
)
def test_refuses_what_is_no_range(low, high, keys, error):
    with pytest.raises(error):
        Range(low, high, keys)


@pytest.mark.parametrize(
    ("strategy", "error", "says"),
    [
        ("quantiles", ActionValueError, "quantile"),
        (["minmax", "minmax", "nonsense"], ActionValueError, "nonsense"),
        (["minmax", None, "minmax"], ActionValueError, "None"),
        (["minmax"], ActionShapeError, "one per dim"),
        (["minmax"] * 4, ActionShapeError, "got 4"),
    ],
)
def test_refuses_unknown_strategies_and_wrong_numbers_of_them(strategy, error, says):
    with pytest.raises(error, match=says):
        fit(strategy)


def test_bounds_are_the_rows_of_a_key():
    fitted = Range([[0.0, -1.0], [2.0, 3.0]], [[1.0, 1.0], [2.0, 5.0]], ["a", "b"])
    low, high = fitted.bounds("b")
    assert low.tolist() == [2.0, 3.0]
    assert high.tolist() == [2.0, 5.0]
    with pytest.raises(ActionShapeError, match="no key"):
        fitted.bounds()
    fitted.load_state_dict({"low": fitted.low - 1, "high": fitted.high + 1})
    assert fitted.bounds("a")[0].tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_bounds_follow_their_own_tensors(copied):
    fitted = Range([0.0], [1.0])
    assert fitted.bounds()[1].tolist() == [1.0]
    other = copied(fitted)
    with torch.no_grad():
        other.high.fill_(2)
    assert (fitted.bounds()[1].item(), other.bounds()[1].item()) == (1, 2)
    other.high = torch.tensor([[3.0]])
    assert other.bounds()[1].item() == 3
    other.load_state_dict({"low": torch.tensor([[0.0]]), "high": torch.tensor([[4.0]])}, assign=True)
    assert other.bounds()[1].item() == 4
