"""Nearest codeword of many vectors, and codebooks by k-means."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.affine import action_of
from action_tokenizers.codecs.kernel import inner_kernel, kernel, loose_kernel
from action_tokenizers.codecs.threads import over_rows
from action_tokenizers.errors import ActionValueError

__all__ = ["MOST_SEED", "Books", "build_books", "decode_words", "fit_codebook", "nearest", "nearest_levels"]

_Array = npt.NDArray[Any]

# distances are computed for this many (vector, codeword) pairs at a time
BLOCK = 1 << 21
ULP = 2.0**-24  # what rounding changes a float32 by at most, as a share of it
TINY = 2.0**-126  # the least float32 of all digits
_PRECISION_LOCK = threading.Lock()
# the kernel: vectors that meet a codebook while it is in cache, vectors and dims at a time, and codewords in a vector
ROWS, BESIDE, STEP, WIDTH = 64, 8, 4, 32
# k-means sees at most this many vectors, or ROWS_PER_CODEWORD per codeword where that is more
LEAST_ROWS, ROWS_PER_CODEWORD = 8192, 64
ITERATIONS = 50
# scikit-learn takes seeds of 32 bits; levels add to them
MOST_SEED = (1 << 31) - 1


class Books(NamedTuple):
    """Codebooks as arrays for the kernel, one per level; rows and columns are filled up for vector instructions."""

    words: npt.NDArray[np.float32]  # (levels, k, d) as they are
    sizes: npt.NDArray[np.int64]  # (levels,) codewords of each
    middle: npt.NDArray[np.float64]  # (levels, d) their mean
    near: npt.NDArray[np.float32]  # (levels, d + , k +) -2 (codeword - middle), transposed
    norms: npt.NDArray[np.float32]  # (levels, k +) |codeword - middle|²; infinite where there is none
    reach: npt.NDArray[np.float32]  # (levels,) the largest |codeword - middle|


def build_books(codebooks: Sequence[torch.Tensor]) -> Books:
    """Prepare codebooks `(k_i, d)` float32 of one d for `nearest_levels`.

    Raises:
        ActionValueError: Codewords that are not finite, or whose squares are not.
    """
    sizes, d = np.array([len(book) for book in codebooks]), codebooks[0].shape[1]
    levels, rows, columns = len(sizes), -(-d // STEP) * STEP, -(-int(sizes.max()) // WIDTH) * WIDTH
    words, middle = np.zeros((levels, int(sizes.max()), d), np.float32), np.zeros((levels, d))
    reach = np.zeros(levels, np.float32)
    near, norms = np.zeros((levels, rows, columns), np.float32), np.full((levels, columns), np.inf, np.float32)
    for level, (book, k) in enumerate(zip(codebooks, sizes, strict=True)):
        words[level, :k] = book.detach().cpu().numpy()
        # about their middle vectors and codewords are short, and so are the rounding errors of their products
        with np.errstate(over="ignore", invalid="ignore"):
            middle[level] = words[level, :k].mean(0, dtype=np.float64)
            short = (words[level, :k] - middle[level]).astype(np.float32)
            near[level, :d, :k] = -2 * short.T
            squares = np.square(short, dtype=np.float64).sum(1)
            norms[level, :k], reach[level] = squares, np.sqrt(squares.max())
        if not np.isfinite(norms[level, :k]).all():
            raise _endless(level)
    return Books(words, sizes, middle, near, norms, reach)


def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest codeword (Euclidean; the first of equals), `(n,)` int64.

    Products find the candidates. Where rounding could decide between several, they are compared exactly in float64,
    so that a vector gets the same codeword in every batch.

    Args:
        vectors: `(n, d)` float32 or float64.
        codebook: `(k, d)` float32.

    Example:
        >>> nearest(torch.tensor([[0.2], [0.9]]), torch.tensor([[0.0], [1.0]])).tolist()
        [0, 1]
    """
    if vectors.device.type == "cpu":
        return nearest_levels(vectors, build_books([codebook]))[:, 0]
    return _nearest_on_device(vectors, codebook)


def _endless(level: int) -> ActionValueError:
    return ActionValueError(
        f"expected codewords of finite length in float32, got others in codebook {level}: did training diverge?"
    )


def _rounding(terms: int) -> tuple[float, float]:
    """Return what rounding adds to the difference of two scores at most: a share of |c|² + 2 |c| |vector|, and a rest.

    Every partial sum of |c|² - 2 c · vector, whatever the order, is at most that for the longest codeword c, and so
    each of the `terms` sums of a score adds an ulp of it; all products together add another, |c|², which was summed in
    float64, one, and the codeword and the vector, rounded before, two. The last factor is for ulps of ulps. The rest is
    for numbers too small to have all their digits, or those that are taken for zeros.
    """
    return 2 * ULP * (terms + 8) * (1 + 4 * ULP * terms), 4 * TINY * (terms + 8)


def _nearest_on_device(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return what `nearest` does, by torch operations alone."""
    out = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    middle = codebook.double().mean(0)
    near = (codebook.double() - middle).float()
    squares = near.double().square().sum(1)
    norms, reach = squares.float(), squares.max().sqrt().float()
    if not bool(torch.isfinite(norms).all()):
        raise _endless(0)
    rows = max(1, BLOCK // len(codebook))
    share, rest = _rounding(codebook.shape[1])
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows]
        short = (block.double() - middle).float()
        with _full_precision():
            scores = torch.addmm(norms, short, near.T, alpha=-2)
        margin = share * (reach * (reach + 2 * short.norm(dim=1))) + rest
        out[start : start + len(block)] = _pick(scores, margin, block, codebook)
    return out


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 products on accelerators, also where TF32 is asked for, which rounds more than `_rounding`.

    torch knows this setting only for the whole process: for a moment, products of other threads are exact too.
    """
    matmul: Any = torch.backends.cuda.matmul
    with _PRECISION_LOCK:  # else one thread restores while another computes
        try:
            old = torch.get_float32_matmul_precision()
        except RuntimeError:  # set by the newer interface of torch >= 2.9, with which the older one does not mix
            newer = matmul.fp32_precision
            matmul.fp32_precision = "ieee"
            try:
                yield
            finally:
                matmul.fp32_precision = newer
            return
        if old == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(old)


def _pick(scores: torch.Tensor, margin: torch.Tensor, vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the codeword of least score `(n, k)`; within `margin (n,)` of it, the truly nearest one.

    A margin without end, which is that of vectors so long that scores may be NaN, leaves none out.
    """
    best, index = scores.min(1)
    close = ~(scores > (best + margin)[:, None])
    several = (close.sum(1) > 1).nonzero()[:, 0]
    # a block holds no more numbers than the scores do
    for rows in torch.split(several, max(1, BLOCK // codebook.numel())):
        distances = (codebook.double() - vectors[rows].double()[:, None]).square().sum(-1)
        index[rows] = distances.masked_fill(~close[rows], torch.inf).argmin(1)
    return index


def nearest_levels(
    vectors: torch.Tensor,
    books: Books,
    *,
    mean: npt.NDArray[np.float64] | None = None,
    first: npt.NDArray[np.int64] | None = None,
) -> torch.Tensor:
    """Return the codeword of each level, nearest to what the levels before it left over, `(n, levels)` int64.

    Args:
        vectors: `(n, d)` float32 or float64, on the CPU.
        books: as `build_books` prepares them.
        mean: `(d,)`, taken from the vectors first; None: nothing.
        first: `(levels,)`, added to the numbers of the codewords; None: nothing.
    """
    # in the kernel, because a preceding operation of torch would keep the other cores busy, see `over_rows`
    mean = np.zeros(vectors.shape[1]) if mean is None else mean
    first = np.zeros(len(books.sizes), np.int64) if first is None else first
    source = vectors.detach().contiguous().numpy()
    out = np.empty((len(source), len(books.sizes)), np.int64)
    share, rest = map(np.float32, _rounding(books.near.shape[1]))
    over_rows(lambda i, j: _levels(*books, mean, first, share, rest, source[i:j], out[i:j]), len(source), least=ROWS)
    return torch.from_numpy(out)


@kernel
def _levels(
    words: _Array,
    sizes: _Array,
    middle: _Array,
    near: _Array,
    norms: _Array,
    reach: _Array,
    mean: _Array,
    first: _Array,
    share: np.float32,
    rest: np.float32,
    vectors: _Array,
    out: _Array,
) -> None:
    n, d = vectors.shape
    left, short = np.zeros((ROWS, d), np.float64), np.zeros((ROWS, near.shape[1]), np.float32)
    margin, scores = np.zeros(ROWS, np.float32), np.empty((BESIDE, near.shape[2]), np.float32)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        for i in range(rows):
            for j in range(d):
                left[i, j] = np.float64(vectors[start + i, j]) - mean[j]
        # level by level, so that a codebook stays in cache for all rows
        for level in range(len(sizes)):
            for i in range(rows):
                square = np.float32(0)
                for j in range(d):
                    short[i, j] = np.float32(left[i, j] - middle[level, j])
                    square += short[i, j] * short[i, j]
                longest = np.float32(
                    reach[level] * (reach[level] + 2 * np.sqrt(square))
                )  # infinite where scores may be
                margin[i] = share * longest + rest
            i = 0
            while i < rows:
                beside = BESIDE if rows - i >= BESIDE else 1
                if beside == 1:
                    _score_one(short, i, near[level], norms[level], scores)
                else:
                    _score(short, i, near[level], norms[level], scores)
                for b in range(beside):
                    row = i + b
                    out[start + row, level] = _choose(scores, b, sizes[level], margin[row], left, row, words[level])
                i += beside
            for i in range(rows):
                word = out[start + i, level]
                for j in range(d):
                    left[i, j] -= words[level, word, j]
                out[start + i, level] = first[level] + word


@loose_kernel
def _score(short: _Array, first: int, near: _Array, norms: _Array, scores: _Array) -> None:
    """Fill `scores (8, k)` with |codeword|² - 2 codeword · vector of the eight vectors from `first` on."""
    for k in range(near.shape[1]):
        scores[0, k] = scores[1, k] = scores[2, k] = scores[3, k] = norms[k]
        scores[4, k] = scores[5, k] = scores[6, k] = scores[7, k] = norms[k]
    for j in range(0, near.shape[0], STEP):
        a0, a1, a2, a3 = short[first, j], short[first, j + 1], short[first, j + 2], short[first, j + 3]
        b0, b1, b2, b3 = short[first + 1, j], short[first + 1, j + 1], short[first + 1, j + 2], short[first + 1, j + 3]
        c0, c1, c2, c3 = short[first + 2, j], short[first + 2, j + 1], short[first + 2, j + 2], short[first + 2, j + 3]
        d0, d1, d2, d3 = short[first + 3, j], short[first + 3, j + 1], short[first + 3, j + 2], short[first + 3, j + 3]
        e0, e1, e2, e3 = short[first + 4, j], short[first + 4, j + 1], short[first + 4, j + 2], short[first + 4, j + 3]
        f0, f1, f2, f3 = short[first + 5, j], short[first + 5, j + 1], short[first + 5, j + 2], short[first + 5, j + 3]
        g0, g1, g2, g3 = short[first + 6, j], short[first + 6, j + 1], short[first + 6, j + 2], short[first + 6, j + 3]
        h0, h1, h2, h3 = short[first + 7, j], short[first + 7, j + 1], short[first + 7, j + 2], short[first + 7, j + 3]
        for k in range(near.shape[1]):  # four codebook rows for eight vectors: one load serves eight products
            w, x, y, z = near[j, k], near[j + 1, k], near[j + 2, k], near[j + 3, k]
            scores[0, k] += a0 * w + a1 * x + a2 * y + a3 * z
            scores[1, k] += b0 * w + b1 * x + b2 * y + b3 * z
            scores[2, k] += c0 * w + c1 * x + c2 * y + c3 * z
            scores[3, k] += d0 * w + d1 * x + d2 * y + d3 * z
            scores[4, k] += e0 * w + e1 * x + e2 * y + e3 * z
            scores[5, k] += f0 * w + f1 * x + f2 * y + f3 * z
            scores[6, k] += g0 * w + g1 * x + g2 * y + g3 * z
            scores[7, k] += h0 * w + h1 * x + h2 * y + h3 * z


@loose_kernel
def _score_one(short: _Array, row: int, near: _Array, norms: _Array, scores: _Array) -> None:
    """Fill the first row of `scores` with |codeword|² - 2 codeword · vector of the vector in a row."""
    for k in range(near.shape[1]):
        scores[0, k] = norms[k]
    for j in range(0, near.shape[0], STEP):
        a0, a1, a2, a3 = short[row, j], short[row, j + 1], short[row, j + 2], short[row, j + 3]
        for k in range(near.shape[1]):
            scores[0, k] += a0 * near[j, k] + a1 * near[j + 1, k] + a2 * near[j + 2, k] + a3 * near[j + 3, k]


@loose_kernel
def _least(scores: _Array, row: int) -> Any:
    least = scores[row, 0]
    for k in range(scores.shape[1]):
        least = min(least, scores[row, k])
    return least


@inner_kernel
def _choose(scores: _Array, row: int, size: int, margin: Any, vectors: _Array, vector: int, words: _Array) -> int:
    """Return the codeword of least score; within `margin` of it, the truly nearest one.

    A margin without end, which is that of vectors so long that scores may be NaN, leaves none out.
    """
    limit = _least(scores, row) + margin if margin < np.inf else np.float32(np.inf)
    close, first = 0, size
    for k in range(scores.shape[1]):
        is_close = not scores[row, k] > limit
        close += is_close
        first = min(first, k if is_close else size)
    if close == 1:
        return first
    best, least = first, np.inf
    for k in range(first, size):
        if not scores[row, k] > limit:
            total = 0.0
            for j in range(words.shape[1]):
                total += (vectors[vector, j] - np.float64(words[k, j])) ** 2
            if total < least:
                best, least = k, total
    return best


@kernel
def decode_words(
    words: _Array, first: int, dims: _Array, low: _Array, high: _Array, ids: _Array, begin: int, step: int, out: _Array
) -> bool:
    """Fill the `dims` of `out (n, t, d)` float32 with the actions of codewords, and say whether each id is one of them.

    Args:
        words: `(k, t / places * dims)` float32, step by step.
        first: id of the first codeword.
        dims: int64.
        low: `(d,)` float32.
        high: `(d,)` float32.
        ids: `(n, places * step)` int64; those of these dims are at `begin`, `begin + step`, ...
        begin: likewise.
        step: likewise.
        out: not complete where an id is none.
    """
    steps = words.shape[1] // len(dims)
    for i in range(out.shape[0]):
        for place in range(out.shape[1] // steps):
            code = ids[i, place * step + begin] - first
            if code < 0 or code >= len(words):
                return False
            for m in range(steps):
                for e in range(len(dims)):
                    j, z = dims[e], np.float64(words[code, m * len(dims) + e])
                    out[i, place * steps + m, j] = action_of(z, np.float64(low[j]), np.float64(high[j]))
    return True


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
