"""Nearest codeword of many vectors, and codebooks by k-means."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["fit_codebook", "nearest"]

# distances are computed for this many (vector, codeword) pairs at a time
BLOCK = 1 << 21
# k-means sees at most this many vectors, or ROWS_PER_CODEWORD per codeword where that is more
LEAST_ROWS, ROWS_PER_CODEWORD = 8192, 64
ITERATIONS = 50


def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest codeword (Euclidean; the first of equals), `(n,)` int64.

    A matrix product finds the candidates. Where rounding could decide between several, they are compared exactly
    in float64, so that a vector gets the same codeword in every batch.

    Args:
        vectors: `(n, d)` float.
        codebook: `(k, d)` float32.

    Example:
        >>> nearest(torch.tensor([[0.2], [0.9]]), torch.tensor([[0.0], [1.0]])).tolist()
        [0, 1]
    """
    k = len(codebook)
    out = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    norms = codebook.square().sum(1)
    reach = norms.max().sqrt()
    for start in range(0, len(vectors), max(1, BLOCK // k)):
        block = vectors[start : start + max(1, BLOCK // k)]
        scores = torch.addmm(norms, block.to(codebook.dtype), codebook.T, alpha=-2)
        best, index = scores.min(1)
        # float32 rounding of a score: a few ulps of the largest term in it
        margin = 4e-6 * (block.to(codebook.dtype).norm(dim=1) + reach).square()
        close = scores <= (best + margin)[:, None]
        for row in (close.sum(1) > 1).nonzero()[:, 0].tolist():
            candidates = close[row].nonzero()[:, 0]
            distance = (codebook[candidates].double() - block[row].double()).square().sum(1)
            index[row] = candidates[distance.argmin()]
        out[start : start + len(block)] = index
    return out


def fit_codebook(vectors: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """Return at most `k` codewords `(<= k, d)` float32 by k-means (Lloyd from k-means++, scikit-learn).

    Where `k` or fewer distinct vectors exist they are the codebook. One thread, so that equal data give equal
    bytes on any machine.

    Args:
        vectors: `(n, d)` float32 in random order (a head of them is used where there are many).
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    data: npt.NDArray[Any] = vectors[: max(LEAST_ROWS, ROWS_PER_CODEWORD * k)].float().contiguous().numpy()
    distinct = np.unique(data, axis=0)
    if len(distinct) <= k:
        return torch.from_numpy(distinct)
    with threadpool_limits(1):
        fitted = KMeans(k, n_init=1, max_iter=ITERATIONS, random_state=seed).fit(data)
    return torch.from_numpy(np.unique(fitted.cluster_centers_.astype(np.float32), axis=0))
