"""Orthonormal DCT-II along time, rounded to integers, and its inverse.

The sums run in a fixed order in float64, so the coefficients of a chunk do not depend on the batch it came in
(a blocked matrix product may round a tie the other way when the batch size changes).
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.codecs.kernel import kernel

__all__ = ["coefficient_bound", "dct_matrix", "dct_round", "idct"]

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


def coefficient_bound(horizon: int, scale: float, amplitude: float = 1.0) -> int:
    """Return the largest |rounded coefficient| that a chunk within ±`amplitude` can have.

    The constant chunk attains it at frequency 0: amplitude * scale * sqrt(t). No other frequency exceeds it.
    """
    return int(np.rint(amplitude * scale * np.sqrt(horizon)))


@kernel
def dct_round(z: _Array, matrix: _Array, scale: float, bound: int, out: _Array) -> None:
    """Fill `out (n, t * d)` int32 with rint(scale * DCT(z)), frequency-major: all dims of frequency 0 first.

    `z (n, t, d)` float32; ties round to even, as the published FAST processor does.
    """
    n, t, d = z.shape
    half, middle = t // 2, t - t // 2
    # chunks side by side make rows long enough for vector instructions, and still fit the cache
    beside = max(1, 128 // d)
    even = np.zeros((middle + 3, beside * d), np.float64)
    odd = np.zeros((middle + 3, beside * d), np.float64)
    weights = np.zeros((t, middle + 3), np.float64)
    weights[:, :middle] = matrix[:, :middle] * scale
    row = np.empty(beside * d, np.float64)
    for i in range(0, n, beside):
        c = min(beside, n - i)
        # the cosines are even in time about the middle for even k and odd for odd k: half the products
        for e in range(c):
            for m in range(half):
                for j in range(d):
                    a, b = np.float64(z[i + e, m, j]), np.float64(z[i + e, t - 1 - m, j])
                    even[m, e * d + j] = a + b
                    odd[m, e * d + j] = a - b
            if middle > half:
                for j in range(d):
                    even[half, e * d + j] = z[i + e, half, j]
        for k in range(t):
            folded = even if k % 2 == 0 else odd
            row[:] = 0.0
            for m in range(0, middle, 4):  # four steps at a time: a row is read and written a quarter as often
                w0, w1 = weights[k, m], weights[k, m + 1]
                w2, w3 = weights[k, m + 2], weights[k, m + 3]
                for j in range(beside * d):
                    row[j] += (w0 * folded[m, j] + w1 * folded[m + 1, j]) + (
                        w2 * folded[m + 2, j] + w3 * folded[m + 3, j]
                    )
            for e in range(c):
                for j in range(d):
                    value = np.int32(np.rint(row[e * d + j]))
                    out[i + e, k * d + j] = min(bound, max(-bound, value))


@kernel
def idct(coefficients: _Array, matrix: _Array, scale: float, out: _Array) -> None:
    """Fill `out (n, t, d)` float32 from `coefficients (n, t * d)` int32; zero coefficients cost nothing."""
    n, t, d = out.shape
    chunk = np.empty((t, d), np.float64)
    for i in range(n):
        chunk[:] = 0.0
        for k in range(t):
            for j in range(d):
                value = coefficients[i, k * d + j]
                if value != 0:
                    amplitude = value / scale
                    for m in range(t):
                        chunk[m, j] += amplitude * matrix[k, m]
        for m in range(t):
            for j in range(d):
                out[i, m, j] = np.float32(chunk[m, j])
