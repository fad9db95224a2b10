"""The rounded DCT against scipy, and its promises: batch invariance, the bound, the inverse."""

import numpy as np
import pytest
import scipy.fft

from action_tokenizers.codecs.dct import coefficient_bound, dct_matrix, dct_round, dct_weights, idct, idct_weights

HORIZONS = [1, 2, 3, 4, 5, 7, 8, 16, 25, 50, 51, 100]


def coefficients_of(z: np.ndarray, scale: float, bound: int | None = None) -> np.ndarray:
    n, t, d = z.shape
    out = np.empty((n, t * d), np.int32)
    dct_round(z, dct_weights(t, scale), coefficient_bound(t, scale) if bound is None else bound, out)
    return out


def chunks_of(seed: int, n: int, t: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, t, d)).astype(np.float32)


@pytest.mark.parametrize("t", HORIZONS)
def test_the_matrix_is_scipys(t):
    expected = scipy.fft.dct(np.eye(t), axis=0, norm="ortho")
    np.testing.assert_allclose(dct_matrix(t), expected, atol=1e-14)


def test_nobody_can_spoil_the_cached_matrix():
    with pytest.raises(ValueError, match="read-only"):
        dct_matrix(4)[0, 0] = 1


@pytest.mark.parametrize("d", [1, 3, 14, 129])
@pytest.mark.parametrize("t", HORIZONS)
def test_rounds_scipys_coefficients(t, d):
    z = chunks_of(t * 1000 + d, 9, t, d)
    for scale in (1.0, 10.0, 37.5):
        exact = scipy.fft.dct(z.astype(np.float64), axis=1, norm="ortho").reshape(9, t * d) * scale
        got = coefficients_of(z, scale)
        assert np.abs(got - exact).max() <= 0.5 + 1e-9
        clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-9  # away from ties there is one right answer
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(got[clear], np.rint(exact[clear]))


def test_ties_round_to_even_as_numpy_does():
    z = np.array([0.25, 0.75, -0.25, 0.5, -0.75, 0.125], np.float32).reshape(-1, 1, 1)
    assert coefficients_of(z, 2.0).ravel().tolist() == [0, 2, 0, 1, -2, 0]


@pytest.mark.parametrize(("t", "d"), [(1, 1), (7, 3), (16, 7), (50, 14), (12, 26), (5, 130)])
def test_a_chunk_alone_gives_what_it_gives_in_a_batch(t, d):
    """Values on a coarse grid, so that ties are frequent and any other order of summation would show."""
    rng = np.random.default_rng(t + d)
    z = (rng.integers(-4, 5, (70, t, d)) / 4).astype(np.float32)
    together = coefficients_of(z, 10.0)
    for i in range(len(z)):
        np.testing.assert_array_equal(coefficients_of(z[i : i + 1], 10.0)[0], together[i])
    np.testing.assert_array_equal(coefficients_of(np.ascontiguousarray(z[13:41]), 10.0), together[13:41])


@pytest.mark.parametrize("scale", [1.0, 10.0, 33.3])
@pytest.mark.parametrize("t", HORIZONS)
def test_the_bound_is_attained_and_never_exceeded(t, scale):
    bound = coefficient_bound(t, scale)
    z = np.random.default_rng(t).choice(np.array([-1, 1], np.float32), (2000, t, 1))
    # the pattern of signs that each frequency likes best
    z[: 2 * t, :, 0] = np.where(np.concatenate([dct_matrix(t), -dct_matrix(t)])[: len(z)] >= 0, 1, -1)
    free = coefficients_of(z, scale, bound=1 << 30)  # not clipped
    assert np.abs(free).max() == bound
    assert coefficients_of(np.ones((1, t, 1), np.float32), scale)[0, 0] == bound


def test_the_bound_grows_with_the_amplitude():
    assert coefficient_bound(25, 10, 5.0) == 250
    assert coefficient_bound(25, 10) == 50
    assert coefficient_bound(2, 10) == 14


def test_coefficients_are_clipped_to_the_bound():
    z = np.ones((1, 4, 2), np.float32)
    out = np.empty((1, 8), np.int32)
    dct_round(np.concatenate([z[..., :1], -z[..., :1]], axis=2), dct_weights(4, 10.0), 7, out)
    assert out.tolist() == [[7, -7, 0, 0, 0, 0, 0, 0]]


def test_rows_are_frequency_major():
    """All dims of frequency 0 come first: a prefix of a chunk is its coarse shape."""
    z = np.zeros((1, 4, 3), np.float32)
    z[0, :, 1] = 0.5
    assert coefficients_of(z, 10.0).reshape(4, 3).tolist() == [[0, 10, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("t", HORIZONS)
def test_the_inverse_is_scipys(t):
    rng = np.random.default_rng(t)
    coefficients = rng.integers(-30, 31, (8, t * 3)).astype(np.int32)
    coefficients[rng.random(coefficients.shape) < 0.5] = 0
    out = np.empty((8, t, 3), np.float32)
    idct(coefficients, idct_weights(t), 10.0, out)
    expected = scipy.fft.idct(coefficients.reshape(8, t, 3) / 10.0, axis=1, norm="ortho")
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("t", HORIZONS)
def test_the_round_trip_errs_by_half_a_step_at_most(t):
    """Orthonormal: the squared error over a chunk is at most t d / (2 scale)^2."""
    z = chunks_of(t, 50, t, 2)
    out = np.empty_like(z)
    idct(coefficients_of(z, 10.0), idct_weights(t), 10.0, out)
    assert ((out - z) ** 2).sum(axis=1).max() <= t / 400 + 1e-5
    fine = np.empty_like(z)
    idct(coefficients_of(z, 1e5), idct_weights(t), 1e5, fine)
    np.testing.assert_allclose(fine, z, atol=1e-4)
