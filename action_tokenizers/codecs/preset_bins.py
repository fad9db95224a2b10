"""The formulas of published action bins, each in the float arithmetic of its system, and the cells they make.

What each formula is, where it stands and what is wrong with it say the functions of `tokenizers.presets`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["SYSTEMS", "System", "preset_cells"]

F32 = np.float32
LARGEST = np.finfo(np.float32).max
OCTO_EPS = 1e-6
GATO_MU, GATO_M = 100.0, 256.0

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class System:
    """A published pair of formulas, for k ids and actions between low and high.

    Attributes:
        ids: `(x float32, k, low, high)` -> ids, never falling as x grows; k where there is no bin.
        values: `(k, low, high, corrected)` -> what each id decodes to, `(k,)`.
        bins: the published k.
        limit: without low and high, how large a value may be.
        span: the value to which +1 of a learned range is mapped.
        takes_range: whether low and high mean anything.
        narrowest: high - low must be larger.
    """

    ids: Callable[[_Array, int, float, float], _Array]
    values: Callable[[int, float, float, bool], _Array]
    bins: int = 256
    limit: float = 1.0
    span: float = 1.0
    takes_range: bool = True
    narrowest: float = -1.0


def _openvla_ids(x: _Array, k: int, low: float, high: float) -> _Array:
    if (low, high) != (-1, 1):
        x = F32(2) * (x - F32(low)) / F32(high - low + 1e-8) - F32(1)
    return np.asarray(np.digitize(np.clip(x, -1, 1), np.linspace(-1, 1, k)) - 1)


def _openvla_values(k: int, low: float, high: float, corrected: bool) -> _Array:
    edges = np.linspace(-1, 1, k)
    middles = (edges[:-1] + edges[1:]) / 2
    z = np.append(middles, 1.0 if corrected else middles[-1])
    return z if (low, high) == (-1, 1) else 0.5 * (z + 1) * (high - low + 1e-8) + low


def _rt1_ids(x: _Array, k: int, low: float, high: float) -> _Array:
    bottom, top = F32(low), F32(high)
    return ((np.clip(x, bottom, top) - bottom) / (top - bottom) * F32(k - 1)).astype(np.int64)


def _rt1_values(k: int, low: float, high: float, corrected: bool) -> _Array:
    token = np.arange(k, dtype=F32)
    if corrected:
        token[:-1] += F32(0.5)
    return token / F32(k - 1) * (F32(high) - F32(low)) + F32(low)


def _jax_linspace(low: float, high: float, n: int) -> _Array:
    """Return `n + 1` float32 numbers as jax.numpy.linspace does on a CPU: the second product and the sum are fused."""
    step = np.arange(n, dtype=F32) / F32(n)
    head = np.float64(F32(low) * (F32(1) - step)) + np.float64(F32(high)) * np.float64(step)
    return np.append(head, high).astype(F32)


def _normal_thresholds(k: int) -> _Array:
    mass = torch.from_numpy(_jax_linspace(OCTO_EPS, 1 - OCTO_EPS, k))
    return np.asarray(torch.special.ndtri(mass.double()).numpy(), F32)


def _between(x: _Array, thresholds: _Array) -> _Array:
    return np.asarray(np.searchsorted(thresholds, x, side="right") - 1).clip(min=0)


def _middles(thresholds: _Array) -> _Array:
    return np.asarray((thresholds[1:] + thresholds[:-1]) / F32(2))


def _octo_uniform_ids(x: _Array, k: int, low: float, high: float) -> _Array:
    return _between(np.clip(x, F32(low + OCTO_EPS), F32(high - OCTO_EPS)), _jax_linspace(low, high, k))


def _octo_uniform_values(k: int, low: float, high: float, corrected: bool) -> _Array:
    return _middles(_jax_linspace(low, high, k))


def _octo_gaussian_ids(x: _Array, k: int, low: float, high: float) -> _Array:
    return _between(x, _normal_thresholds(k))


def _octo_gaussian_values(k: int, low: float, high: float, corrected: bool) -> _Array:
    return _middles(_normal_thresholds(k))


def _gato_ids(x: _Array, k: int, low: float, high: float) -> _Array:
    wide = x.astype(np.float64)
    companded = np.sign(wide) * np.log(GATO_MU * np.abs(wide) + 1) / np.log(GATO_MU * GATO_M + 1)
    return np.asarray(np.minimum((np.clip(companded, -1, 1) + 1) / 2 * k, k - 1), np.int64)


def _gato_values(k: int, low: float, high: float, corrected: bool) -> _Array:
    middle = (np.arange(k) + 0.5) / k * 2 - 1
    return np.asarray(np.sign(middle) * np.expm1(np.abs(middle) * np.log(GATO_MU * GATO_M + 1)) / GATO_MU)


def _openpi_ids(x: _Array, k: int, low: float, high: float) -> _Array:
    z = x.astype(np.float64)
    if (low, high) != (-1, 1):
        z = (z - low) / (high - low + 1e-6) * 2 - 1
    return np.asarray(np.digitize(z, np.linspace(-1, 1, k + 1)[:-1]) - 1).clip(min=0)


def _openpi_values(k: int, low: float, high: float, corrected: bool) -> _Array:
    z = (np.arange(k) + (0.5 if corrected else 0.0)) / k * 2 - 1
    return z if (low, high) == (-1, 1) else (z + 1) / 2 * (high - low + 1e-6) + low


SYSTEMS = {
    "openvla": System(_openvla_ids, _openvla_values),
    "rt1": System(_rt1_ids, _rt1_values, narrowest=0.0),
    "octo_uniform": System(_octo_uniform_ids, _octo_uniform_values, narrowest=2 * OCTO_EPS),
    "octo_gaussian": System(_octo_gaussian_ids, _octo_gaussian_values, limit=4.75, span=4.0, takes_range=False),
    "gato": System(_gato_ids, _gato_values, bins=1024, limit=GATO_M, takes_range=False),
    "openpi": System(_openpi_ids, _openpi_values),
}


def preset_cells(
    name: str, k: int, low: float, high: float, corrected: bool = False, span: float = 1.0
) -> tuple[_Array, _Array]:
    """Return where each id begins, and what it decodes to.

    Args:
        name: of the system.
        k: number of ids.
        low: as the formula takes it.
        high: likewise.
        corrected: without the known defect of what ids decode to.
        span: the unit in which values are given and returned; a power of two.

    Returns:
        The smallest float32 whose id is at least 1..k, `(k,)`, inf where no number is so large; and the value of each
        id 0..k-1, `(k,)`, float32 or float64 as the system computes it.

    Example:
        >>> edges, values = preset_cells("openpi", 4, -1.0, 1.0)
        >>> edges.tolist(), values.tolist()
        ([-0.5, 0.0, 0.5, inf], [-1.0, -0.5, 0.0, 0.5])
    """
    system = SYSTEMS[name]
    most = int(np.array(LARGEST).view(np.int32))  # finite float32 numbers in their order: -most..most, 0 is zero
    wanted = np.arange(1, k + 1)
    below, reached = np.full(k, -most - 1), np.full(k, most + 1)
    with np.errstate(over="ignore"):
        while (reached - below > 1).any():
            middle = (below + reached) // 2
            there = system.ids(_float(middle) * F32(span), k, low, high) >= wanted
            below, reached = np.where(there, below, middle), np.where(there, middle, reached)
    return _float(reached), system.values(k, low, high, corrected) / span


def _float(place: _Array) -> _Array:
    """Return the float32 number at a place in the order of all of them."""
    return np.copysign(np.abs(place).astype(np.int32).view(F32), place.astype(F32))
