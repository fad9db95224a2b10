"""Nearest codeword of many vectors, and codebooks by k-means."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.kernel import kernel
from action_tokenizers.codecs.threads import over_rows

__all__ = ["MOST_SEED", "fit_codebook", "nearest"]

_Array = npt.NDArray[Any]

# distances are computed for this many (vector, codeword) pairs at a time
BLOCK = 1 << 21
# k-means sees at most this many vectors, or ROWS_PER_CODEWORD per codeword where that is more
LEAST_ROWS, ROWS_PER_CODEWORD = 8192, 64
ITERATIONS = 50
# scikit-learn takes seeds of 32 bits; levels add to them
MOST_SEED = (1 << 31) - 1


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
    out = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    # about their middle vectors and codewords are short, and so are the rounding errors of their products
    middle = codebook.double().mean(0)
    near = (codebook.double() - middle).float()
    norms = near.square().sum(1)
    reach = norms.max().sqrt()
    rows = max(1, BLOCK // len(codebook))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows]
        short = (block.double() - middle).float()
        scores = torch.addmm(norms, short, near.T, alpha=-2)
        # a few float32 ulps of the largest term in a score
        margin = 4e-6 * (short.norm(dim=1) + reach).square()
        out[start : start + len(block)] = _pick(scores, margin, block, codebook)
    return out


def _pick(scores: torch.Tensor, margin: torch.Tensor, vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the codeword of least score `(n, k)`; within `margin (n,)` of it, the truly nearest one."""
    if scores.device.type == "cpu":
        index = torch.empty(len(scores), dtype=torch.int64, device="cpu")
        s, m, x, c, out = (a.contiguous().numpy() for a in (scores, margin, vectors, codebook, index))
        over_rows(lambda i, j: _pick_rows(s[i:j], m[i:j], x[i:j], c, out[i:j]), len(s), least=512)
        return index
    best, index = scores.min(1)
    close = scores <= (best + margin)[:, None]
    for row in (close.sum(1) > 1).nonzero()[:, 0].tolist():
        candidates = close[row].nonzero()[:, 0]
        distances = (codebook[candidates].double() - vectors[row].double()).square().sum(1)
        index[row] = candidates[distances.argmin()]
    return index


@kernel
def _pick_rows(scores: _Array, margin: _Array, vectors: _Array, codebook: _Array, out: _Array) -> None:
    for i in range(len(scores)):
        best = 0
        for k in range(1, scores.shape[1]):
            if scores[i, k] < scores[i, best]:
                best = k
        limit = scores[i, best] + margin[i]
        close = 0
        for k in range(scores.shape[1]):
            close += scores[i, k] <= limit
        out[i] = best
        if close == 1:
            continue
        least = np.inf
        for k in range(scores.shape[1]):
            if scores[i, k] <= limit:
                total = 0.0
                for j in range(vectors.shape[1]):
                    total += (np.float64(vectors[i, j]) - np.float64(codebook[k, j])) ** 2
                if total < least:
                    least = total
                    out[i] = k


def fit_codebook(vectors: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """Return at most `k` codewords `(<= k, d)` float32 by k-means (Lloyd from k-means++, scikit-learn).

    Where `k` or fewer distinct vectors exist they are the codebook. One thread, so that equal data give equal
    bytes on any machine.

    Args:
        vectors: `(n, d)` float32; a random draw of them is used where there are many.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # neighbouring rows may be neighbouring steps of few chunks: draw over all of them
    drawn = np.random.default_rng(seed).permutation(len(vectors))[: max(LEAST_ROWS, ROWS_PER_CODEWORD * k)]
    data: _Array = vectors.float().numpy()[np.sort(drawn)]
    distinct = np.unique(data, axis=0)
    if len(distinct) <= k:
        return torch.from_numpy(distinct)
    with threadpool_limits(1), warnings.catch_warnings():
        # nearly equal vectors give fewer codewords than asked: the codebook's length says so
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(k, n_init=1, max_iter=ITERATIONS, random_state=seed).fit(data)
    return torch.from_numpy(np.unique(fitted.cluster_centers_.astype(np.float32), axis=0))
