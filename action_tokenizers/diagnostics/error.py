"""Quantization error on held-out actions: its size, its clipping part, and what accumulates over an episode.

All in units of the action range: every dim is scaled so that the data span [-1, 1] (a constant dim stays as it
is), because controllers feel a dim by its range and tokenizers must be compared in one unit. Errors are signed:
`error = quantize(action) - action`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["border_jump", "drift", "error_split", "gripper_flips", "hold_bias", "two_valued", "unit_of"]

_Floats = npt.NDArray[np.float64]


def unit_of(actions: Sequence[npt.NDArray[Any]]) -> _Floats:
    """Return half the span of each dim over all episodes `(t_i, d)`, `(d,)`; 1 for a constant dim."""
    low = np.min([a.min(axis=0) for a in actions], axis=0).astype(np.float64)
    high = np.max([a.max(axis=0) for a in actions], axis=0).astype(np.float64)
    half = (high - low) / 2
    return np.where(half > 0, half, 1.0)


def error_split(total: _Floats, clipping: _Floats) -> dict[str, Any]:
    """Return the size of the error and what of it the range alone causes.

    Args:
        total: quantize(u) - u, `(n, d)`.
        clipping: clip(u) - u, `(n, d)`, the error of an infinitely fine tokenizer of the same range.

    Returns:
        `mse`, its parts `clip_mse` and `cell_mse` (quantize(u) against clip(u); the parts add up except for a
        cross term that vanishes where clipped values decode to the end of the range), `max`, `mse_per_dim`.
    """
    return {
        "mse": float((total**2).mean()),
        "clip_mse": float((clipping**2).mean()),
        "cell_mse": float(((total - clipping) ** 2).mean()),
        "max": float(np.abs(total).max()),
        "mse_per_dim": (total**2).mean(axis=0).tolist(),
    }


def drift(errors: Sequence[_Floats], window: int = 16) -> dict[str, Any]:
    """Return the largest mean error over `window` consecutive steps (W_16 in replay studies).

    What a controller integrates is the signed sum of errors: of the numbers known without a simulator it predicts
    open-loop deviation best. Per episode `(t_i, d)` the largest norm over all windows (the whole episode where it is
    shorter), then the mean over episodes; `per_dim` likewise for each dim alone.
    """
    norms, dims = [], []
    for error in errors:
        w = min(window, len(error))
        sums = np.cumsum(np.concatenate([np.zeros((1, error.shape[1])), error]), axis=0)
        means = (sums[w:] - sums[:-w]) / w
        norms.append(np.linalg.norm(means, axis=1).max())
        dims.append(np.abs(means).max(axis=0))
    return {"drift": float(np.mean(norms)), "drift_per_dim": np.mean(dims, axis=0).tolist()}


def hold_bias(actions: Sequence[_Floats], errors: Sequence[_Floats], least: int = 8) -> list[float | None]:
    """Return per dim the mean |mean error| over stretches of at least `least` steps that hold one value exactly.

    A grip that is a little too weak all the time drops the object, though no other number is large. None where a
    dim never holds still.
    """
    dim = actions[0].shape[1]
    found: list[list[float]] = [[] for _ in range(dim)]
    for action, error in zip(actions, errors, strict=True):
        for j in range(dim):
            borders = np.flatnonzero(np.diff(action[:, j]) != 0) + 1
            for start, stop in zip([0, *borders], [*borders, len(action)], strict=True):
                if stop - start >= least:
                    found[j].append(abs(float(error[start:stop, j].mean())))
    return [float(np.mean(values)) if values else None for values in found]


def two_valued(actions: Sequence[npt.NDArray[Any]]) -> list[int]:
    """Return the dims that hold exactly two values over all episodes `(t_i, d)`."""
    joined = np.concatenate(actions)
    low, high = joined.min(axis=0), joined.max(axis=0)
    both = ((joined == low) | (joined == high)).all(axis=0)
    return np.flatnonzero(both & (low < high)).tolist()


def gripper_flips(actions: Sequence[_Floats], errors: Sequence[_Floats], dims: Sequence[int]) -> float | None:
    """Return the fraction of steps at which a two-valued dim decodes to the other side; None without such dims.

    `actions` in units of the range, so the middle of a two-valued dim lies half its span from both values.
    """
    if not dims:
        return None
    action, error = (np.concatenate(values)[:, dims] for values in (actions, errors))
    middle = (action.min(axis=0) + action.max(axis=0)) / 2
    return float(((action > middle) != (action + error > middle)).mean())


def border_jump(errors: Sequence[_Floats], horizon: int) -> float | None:
    """Return how much more the error changes across chunk borders than inside chunks, as a mean norm.

    The recorded motion and the tokenizer's ordinary noise are taken out: what is left is the jerk that cutting into
    chunks adds. None where no episode has a border, or chunks have no inside.
    """
    across, inside = [], []
    for error in errors:
        change = np.linalg.norm(np.diff(error, axis=0), axis=1)
        is_border = np.arange(1, len(error)) % horizon == 0
        across.append(change[is_border])
        inside.append(change[~is_border])
    borders, others = np.concatenate(across), np.concatenate(inside)
    return float(borders.mean() - others.mean()) if len(borders) and len(others) else None
