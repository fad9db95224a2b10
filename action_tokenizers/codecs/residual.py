"""Residual quantization: each level codes what the levels before it left over."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.affine import action_of
from action_tokenizers.codecs.kernel import kernel
from action_tokenizers.codecs.nearest import build_books, nearest, nearest_levels

__all__ = ["decode_levels", "residual_decode", "residual_encode"]

_Array = npt.NDArray[Any]


def residual_encode(vectors: torch.Tensor, codebooks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the codeword of each level, `(n, levels)` int64, chosen greedily from the first level on.

    Args:
        vectors: `(n, l)` float64.
        codebooks: per level `(k_i, l)` float32.

    Example:
        >>> books = [torch.tensor([[0.0], [1.0]]), torch.tensor([[-0.25], [0.25]])]
        >>> residual_encode(torch.tensor([[0.8]], dtype=torch.float64), books).tolist()
        [[1, 0]]
    """
    if vectors.device.type == "cpu":
        return nearest_levels(vectors, build_books(codebooks))
    left = vectors.clone()
    codes = torch.empty(len(vectors), len(codebooks), dtype=torch.int64, device=vectors.device)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(left, codebook)
        left -= codebook[codes[:, level]]
    return codes


def residual_decode(codes: torch.Tensor, codebooks: Sequence[torch.Tensor], kept: torch.Tensor) -> torch.Tensor:
    """Return the sum of the first `kept (n,)` levels' codewords, `(n, l)` float64; a missing level adds zero."""
    total = torch.zeros(len(codes), codebooks[0].shape[1], dtype=torch.float64, device=codes.device)
    for level, codebook in enumerate(codebooks[: codes.shape[1]]):
        said = kept > level
        total += torch.where(said[:, None], codebook[torch.where(said, codes[:, level], 0)].double(), 0.0)
    return total


@kernel
def decode_levels(
    words: _Array, sizes: _Array, mean: _Array, first: _Array, low: _Array, high: _Array, ids: _Array, out: _Array
) -> bool:
    """Fill `out (n, t, d)` float32 with actions, and say whether each row of `ids (n, levels)` is exactly one chunk.

    To the bit `residual_decode`, the mean and `affine.from_unit` after one another. Where an id may not stand where it
    does, `out` is not complete.

    Args:
        words: `(levels, k, t * d)` float32.
        sizes: `(levels,)` codewords of each.
        mean: `(t * d,)` float64, added to their sum.
        first: `(levels,)` id of each level's first codeword.
        low: `(d,)` float32.
        high: `(d,)` float32.
        ids: int64.
        out: takes the actions.
    """
    n, t, d = out.shape
    total = np.empty(t * d, np.float64)
    for i in range(n):
        total[:] = 0.0
        for level in range(len(sizes)):
            code = ids[i, level] - first[level]
            if code < 0 or code >= sizes[level]:
                return False
            for p in range(t * d):
                total[p] += np.float64(words[level, code, p])
        for m in range(t):
            for j in range(d):
                z = np.float32(total[m * d + j] + mean[m * d + j])
                out[i, m, j] = action_of(np.float64(z), np.float64(low[j]), np.float64(high[j]))
    return True
