"""Cells on [-1, 1]: where their edges and centres lie, and which cell a value is in.

`edges (k - 1,)` ascending and `centres (k,)`, float64; a value on an edge belongs to the cell above it, as in
numpy.digitize.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.kernel import kernel
from action_tokenizers.codecs.threads import over_rows

__all__ = [
    "bin_index",
    "bin_value",
    "gaussian_cells",
    "level_cells",
    "mu_law_cells",
    "quantile_cells",
    "uniform_cells",
]

_Array = npt.NDArray[Any]
Cells = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def uniform_cells(k: int) -> Cells:
    """Return k cells of equal width, decoded to their middles.

    Example:
        >>> edges, centres = uniform_cells(2)
        >>> edges.tolist(), centres.tolist()
        ([0.0], [-0.5, 0.5])
    """
    borders = np.linspace(-1, 1, k + 1)
    return borders[1:-1], (borders[:-1] + borders[1:]) / 2


def mu_law_cells(k: int, mu: float) -> Cells:
    """Return k cells of equal width after sign(x) log(1 + mu |x|) / log(1 + mu): narrow near 0 (Gato)."""

    def expand(y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu)

    edges, centres = uniform_cells(k)
    return expand(edges), expand(centres)


def gaussian_cells(k: int, mean: float, std: float) -> Cells:
    """Return at most k cells of equal mass under N(mean, std²), decoded to their conditional means within [-1, 1].

    Cells that would lie wholly outside [-1, 1] do not exist. Octo's `normal` bins, with a cell for every value.
    """
    inner = torch.special.ndtri(torch.arange(1, k, dtype=torch.float64) / k).numpy() * std + mean
    edges = np.unique(inner[(inner > -1) & (inner < 1)])
    z = (np.concatenate([[-1.0], edges, [1.0]]) - mean) / std
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    mass = np.diff(torch.special.ndtr(torch.from_numpy(z)).numpy())
    borders = z * std + mean
    middle = (borders[:-1] + borders[1:]) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        centres = mean - std * np.diff(density) / mass
    # far in a tail both differences drown in rounding: the middle of the cell serves
    sound = (mass > 1e-12) & (centres > borders[:-1]) & (centres < borders[1:])
    return edges, np.where(sound, centres, middle)


def quantile_cells(values: npt.NDArray[np.float32], k: int) -> Cells:
    """Return at most k cells of nearly equal mass, decoded to the mean of their data.

    The cells lie around the k mid-quantiles. A value that holds more of them (a gripper at rest) gets one cell, and
    the cells it does not need go to the other values, so that a rare opening keeps its own. Where k or fewer distinct
    values exist, each is a level.

    Denormal numbers count as 0, and no edge is one, so that hardware that has none of them finds the same cells. Normal
    ones of any size are told apart: motion that decays through 1e-20 has cells there, as many as its share of the data.
    """
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
    levels = np.unique(values).astype(np.float64)
    if len(levels) <= k:
        return level_cells(levels)
    codewords = _spread(values, k).astype(np.float64)
    edges = _normal((codewords[:-1] + codewords[1:]) / 2, codewords)
    cell = np.searchsorted(edges, values, side="right")
    count = np.bincount(cell, minlength=len(codewords))
    centres = np.bincount(cell, weights=values, minlength=len(codewords)) / count  # every codeword is in its cell
    return edges, centres


def _spread(values: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """Return at most k codewords, ascending: those of repeated mid-quantiles once, the others of what is left."""
    quantiles = np.quantile(values, (np.arange(k) + 0.5) / k, method="nearest")
    found, times = np.unique(quantiles, return_counts=True)
    atoms = found[times > 1]
    rest = values[~np.isin(values, atoms)]
    if not len(atoms) or not len(rest):
        return found
    return np.unique(np.concatenate([atoms, _spread(rest, k - len(atoms))]))


def level_cells(levels: npt.NDArray[np.float64]) -> Cells:
    """Return one cell per value of ascending `levels`; each decodes to exactly that value."""
    lower, upper = levels[:-1], levels[1:]
    edges = ((lower + upper) / 2).astype(np.float32).astype(np.float64)
    # between neighbouring float32 there is no room: the upper one is the first of its own cell
    return _normal(np.where(edges > lower, edges, upper), levels), levels


def _normal(edges: npt.NDArray[np.float64], levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return edges between `levels` of which none is denormal in float32, unless the level above it is.

    Each stays above the level below it and at most at the one above, with what is denormal on the side of 0.
    """
    lower, upper, tiny = levels[:-1], levels[1:], np.finfo(np.float32).tiny
    above, below = (edges > 0) & (edges < tiny), (edges < 0) & (edges > -tiny)
    moved = np.where(above, tiny, np.where(below, np.where(lower < -tiny, -tiny, 0.0), edges))
    return np.minimum(moved, upper)


def bin_index(values: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return the cell of each value, `(m, d)` int64.

    Args:
        values: `(m, d)` float32, finite.
        edges: `(d, k - 1)` float32, rows ascending; short ones are filled up with a number above every value.
    """
    if values.device.type != "cpu":
        return torch.searchsorted(edges, values.T.contiguous(), right=True).T
    out = torch.empty(values.shape, dtype=torch.int64, device="cpu")
    source, borders, target = values.contiguous().numpy(), edges.contiguous().numpy(), out.numpy()
    over_rows(lambda i, j: _index(source[i:j], borders, target[i:j]), len(source), least=1024)
    return out


def bin_value(index: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the centre of each cell, `(m, d)` float32, from `index (m, d)` int64 and `centres (d, k)`."""
    dims = torch.arange(centres.shape[0], device=index.device)
    return centres[dims, index]


@kernel
def _index(values: _Array, edges: _Array, out: _Array) -> None:
    for j in range(values.shape[1]):
        borders = edges[j]
        for i in range(values.shape[0]):
            low, high = 0, len(borders)
            value = values[i, j]
            while low < high:
                middle = (low + high) >> 1
                if value >= borders[middle]:
                    low = middle + 1
                else:
                    high = middle
            out[i, j] = low
