"""Orthonormal DCT-II along time, rounded to integers, and its inverse.

The sums run in a fixed order in float64, so the coefficients of a chunk do not depend on the batch it came in
(a blocked matrix product may round a tie the other way when the batch size changes).
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.kernel import kernel

__all__ = ["coefficient_bound", "dct_matrix", "dct_round", "dct_weights", "idct", "idct_weights"]

_Array = npt.NDArray[Any]


@lru_cache(maxsize=64)
def dct_matrix(horizon: int) -> npt.NDArray[np.float64]:
    """Return the orthonormal DCT-II as a `(t, t)` float64 matrix, row = frequency.

    Example:
        >>> np.allclose(dct_matrix(8) @ dct_matrix(8).T, np.eye(8))
        True
    """
    k, n = np.arange(horizon)[:, None], np.arange(horizon)[None, :]
    matrix: npt.NDArray[np.float64] = np.sqrt(2 / horizon) * np.cos(np.pi * (2 * n + 1) * k / (2 * horizon))
    matrix[0] /= np.sqrt(2)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=256)
def coefficient_bound(horizon: int, scale: float, amplitude: float = 1.0) -> int:
    """Return the largest |rounded coefficient| that a chunk within ±`amplitude` can have.

    The constant chunk attains it at frequency 0: amplitude * scale * sqrt(t). No other frequency exceeds it.
    """
    return int(np.rint(amplitude * scale * np.sqrt(horizon)))


@lru_cache(maxsize=64)
def dct_weights(horizon: int, scale: float) -> npt.NDArray[np.float64]:
    """Return scale * DCT-II as `dct_round` takes it: the first half of time, filled up with zeros, `(t + 2, h + 3)`."""
    middle = horizon - horizon // 2
    weights = np.zeros((horizon + 2, middle + 3))
    weights[:horizon, :middle] = dct_matrix(horizon)[:, :middle] * scale
    weights.setflags(write=False)
    return weights


@lru_cache(maxsize=64)
def idct_weights(horizon: int) -> npt.NDArray[np.float64]:
    """Return the DCT-II with rows filled up with zeros, `(t, >= t)`, as many as vector instructions like."""
    block = 8 if horizon <= 8 else 16 if horizon <= 16 else 32
    weights = np.zeros((horizon, -(-horizon // block) * block))
    weights[:, :horizon] = dct_matrix(horizon)
    weights.setflags(write=False)
    return weights


@kernel
def dct_round(z: _Array, weights: _Array, bound: int, out: _Array) -> None:
    """Fill `out (n, t * d)` int32 with rint(scale * DCT(z)), frequency-major: all dims of frequency 0 first.

    `z (n, t, d)` float32 or float64, `weights` as `dct_weights` gives them; ties round to even, as the published FAST
    processor does.
    """
    n, t, d = z.shape
    half, middle = t // 2, t - t // 2
    # chunks side by side make rows long enough for vector instructions, and still fit the cache
    beside = max(1, min(n, 128 // d))
    most = (beside * d + 31) // 32 * 32 if beside * d > 16 else 16
    folded = np.zeros((2, middle + 3, most), np.float64)
    row = np.empty((2, most), np.float64)
    low, high = np.float64(-bound), np.float64(bound)
    for i in range(0, n, beside):
        c = min(beside, n - i)
        width = min(most, (c * d + 31) // 32 * 32)
        # the cosines are even in time about the middle for even k and odd for odd k: half the products
        for e in range(c):
            for m in range(half):
                for j in range(d):
                    a, b = np.float64(z[i + e, m, j]), np.float64(z[i + e, t - 1 - m, j])
                    folded[0, m, e * d + j] = a + b
                    folded[1, m, e * d + j] = a - b
            if middle > half:
                for j in range(d):
                    folded[0, half, e * d + j] = z[i + e, half, j]
        for k in range(t):
            if k % 4 > 1:
                continue  # done with k - 2: two frequencies share what is folded
            r, s = row[0, :width], row[1, :width]
            r[:] = 0.0
            s[:] = 0.0
            for m in range(0, middle, 4):  # four steps at a time: a row is read and written a quarter as often
                f0, f1 = folded[k % 2, m, :width], folded[k % 2, m + 1, :width]
                f2, f3 = folded[k % 2, m + 2, :width], folded[k % 2, m + 3, :width]
                u0, u1, u2, u3 = weights[k, m], weights[k, m + 1], weights[k, m + 2], weights[k, m + 3]
                v0, v1, v2, v3 = weights[k + 2, m], weights[k + 2, m + 1], weights[k + 2, m + 2], weights[k + 2, m + 3]
                for j in range(width):
                    w, x, y, last = f0[j], f1[j], f2[j], f3[j]
                    r[j] += (u0 * w + u1 * x) + (u2 * y + u3 * last)
                    s[j] += (v0 * w + v1 * x) + (v2 * y + v3 * last)
            for q in range(2):
                if k + 2 * q < t:
                    values = row[q]
                    for j in range(width):
                        values[j] = min(high, max(low, np.rint(values[j])))
                    for e in range(c):
                        for j in range(d):
                            out[i + e, (k + 2 * q) * d + j] = np.int32(values[e * d + j])


@kernel
def idct(coefficients: _Array, weights: _Array, scale: float, out: _Array) -> None:
    """Fill `out (n, t, d)` float32 from `coefficients (n, t * d)` int32; zero coefficients cost nothing.

    `weights` as `idct_weights` gives them.
    """
    n, t, d = out.shape
    width = weights.shape[1]
    chunk = np.empty((d, width), np.float64)
    for i in range(n):
        chunk[:] = 0.0
        for k in range(t):
            for j in range(d):
                value = coefficients[i, k * d + j]
                if value != 0:
                    amplitude = value / scale
                    for m in range(width):
                        chunk[j, m] += amplitude * weights[k, m]
        for m in range(t):
            for j in range(d):
                out[i, m, j] = np.float32(chunk[j, m])
