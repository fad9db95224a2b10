import numpy as np
import pytest

from action_tokenizers.diagnostics.error import (
    border_jump,
    drift,
    error_split,
    gripper_flips,
    hold_bias,
    two_valued,
    unit_of,
)


def test_unit_is_half_the_span_and_1_for_a_constant_dim():
    a = np.array([[0.0, 5.0, -1.0], [4.0, 5.0, 0.0]], np.float32)
    b = np.array([[-4.0, 5.0, 1.0]], np.float32)
    assert unit_of([a, b]).tolist() == [4.0, 1.0, 1.0]


def test_error_splits_into_clipping_and_cells():
    clipping = np.zeros((4, 1))
    clipping[0, 0] = -0.5
    total = clipping.copy()
    total[3, 0] = 0.1
    split = error_split(total, clipping)
    assert split["mse"] == pytest.approx((0.25 + 0.01) / 4)
    assert split["clip_mse"] == pytest.approx(0.25 / 4)
    assert split["cell_mse"] == pytest.approx(0.01 / 4)
    assert split["max"] == 0.5
    assert split["mse_per_dim"] == [split["mse"]]


def brute_drift(error, window):
    w = min(window, len(error))
    return max(np.linalg.norm(error[i : i + w].mean(0)) for i in range(len(error) - w + 1))


def test_drift_is_the_largest_windowed_mean_error():
    rng = np.random.default_rng(0)
    errors = [rng.normal(size=(n, 3)) for n in (5, 16, 17, 80)]
    found = drift(errors, window=16)
    assert found["drift"] == pytest.approx(np.mean([brute_drift(e, 16) for e in errors]))
    per_dim = [np.mean([brute_drift(e[:, [j]], 16) for e in errors]) for j in range(3)]
    assert found["drift_per_dim"] == pytest.approx(per_dim)


def test_drift_sees_the_sign_of_the_error():
    alternating = np.tile([[0.1], [-0.1]], (20, 1))
    assert drift([alternating])["drift"] < 1e-12
    assert drift([np.abs(alternating)])["drift"] == pytest.approx(0.1)


def test_hold_bias_looks_only_at_stretches_that_hold_still():
    action = np.array([[0.0, 0.0]] * 8 + [[1.0, i] for i in range(1, 8)])
    error = np.full((15, 2), 0.25)
    error[8:] = 9.0
    error[:4, 0] = -0.25  # cancels over the stretch: mean, not mean of magnitudes
    assert hold_bias([action], [error]) == [0.0, 0.25]
    assert hold_bias([action[8:]], [error[8:]]) == [None, None]  # seven steps are one too few


def test_gripper_flips_count_decoded_sides():
    action = np.array([[0.0, 3.0], [1.0, 4.0], [1.0, 5.0], [0.0, 3.5]])
    dims = two_valued([action.astype(np.float32)])
    assert dims == [0]
    error = np.array([[0.4, 0.0], [-0.6, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert gripper_flips([action], [error], dims) == 0.25
    assert gripper_flips([action], [error], []) is None


def test_border_jump_is_the_change_of_error_across_borders():
    error = np.zeros((7, 2))
    error[3:6] = [3.0, 4.0]
    assert border_jump([error], 3) == pytest.approx(5.0)  # borders at 3 and 6, nothing inside
    assert border_jump([error[:3]], 3) is None
    assert border_jump([error], 1) is None  # all borders


def test_border_jump_leaves_ordinary_noise_out():
    noise = np.random.default_rng(0).normal(size=(4000, 2))
    assert abs(border_jump([noise], 8)) < 0.1  # a step changes by 1.8 on average, border or not
