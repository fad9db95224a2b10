"""Ranges: the affine maps between actions and [-1, 1], one per key (robot or data set) and dim.

Whatever the strategy, a fitted range is two numbers per key and dim: the actions that become -1 and +1. Values
beyond them are clipped; `ActionTokenizer.clip_report` counts them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from action_tokenizers.codecs.affine import from_unit, to_unit
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = ["STRATEGIES", "OpenRange", "Range", "fit_range"]

STRATEGIES = ("quantile", "minmax", "meanstd", "unit")
QUANTILES = (0.01, 0.99)
STANDARD_DEVIATIONS = 4.0
# quantiles are read off at most this many frames; a sample is in hash order, so its head is a fair draw
MOST_ROWS = 1 << 20

_Floats = npt.NDArray[np.float32]


class Range(nn.Module):
    """The actions that map to -1 and +1, per key and dim.

    Args:
        low: `(d,)` or `(k, d)`: becomes -1.
        high: same shape, nowhere below `low`: becomes +1. Where both are equal the dim is constant: it becomes 0
            and comes back exactly.
        keys: names of the k rows.

    Raises:
        ActionValueError: not finite, or `high < low`.
        ActionShapeError: shapes or the number of keys do not agree.

    Example:
        >>> r = Range([0.0, 10.0], [2.0, 10.0])
        >>> r.to_unit(torch.tensor([[1.5, 10.0]])).tolist()
        [[0.5, 0.0]]
        >>> r.from_unit(torch.tensor([[0.5, 0.0]])).tolist()
        [[1.5, 10.0]]
    """

    low: torch.Tensor
    high: torch.Tensor
    _views: tuple[Any, _Floats, _Floats] | None = None

    def __init__(self, low: Any, high: Any, keys: Sequence[str] = ("default",)) -> None:
        super().__init__()
        lower, upper = (_rows(v) for v in (low, high))
        if lower.ndim != 2 or lower.shape != upper.shape or len(keys) != len(lower):
            raise ActionShapeError(
                f"expected low and high of one shape (d,) or (k, d) with k = {len(keys)} keys, "
                f"got {tuple(lower.shape)} and {tuple(upper.shape)}"
            )
        if len(set(keys)) != len(keys):
            raise ActionValueError(f"expected distinct keys, got {list(keys)}")
        self.keys = tuple(keys)
        self.register_buffer("low", lower.clone())
        self.register_buffer("high", upper.clone())
        if not self.low.is_meta:
            self.check()

    def check(self) -> None:
        """Raise ActionValueError unless every dim has finite low <= high."""
        if not bool((torch.isfinite(self.low) & torch.isfinite(self.high) & (self.low <= self.high)).all()):
            raise ActionValueError("expected finite low <= high in every dim of a range; check the values given")

    @property
    def action_dim(self) -> int:
        """Number of dims d."""
        return self.low.shape[1]

    def index(self, key: str | None) -> int:
        """Return the row of `key`; None means the only key there is.

        Raises:
            ActionShapeError: unknown key, or several and none given.
        """
        if key is None and len(self.keys) == 1:
            return 0
        if key in self.keys:
            return self.keys.index(key)
        asked = "no key" if key is None else f"key {key!r}"
        raise ActionShapeError(f"expected key= one of {list(self.keys)}, got {asked}")

    def bounds(self, key: str | None = None) -> tuple[_Floats, _Floats]:
        """Return what becomes -1 and +1, `(d,)` each, for kernels on the CPU."""
        buffers: Any = self._buffers  # a quicker way to self.low
        row, low, high = self.index(key), buffers["low"], buffers["high"]
        if not low.is_cpu:
            return low.cpu().numpy()[row], high.cpu().numpy()[row]
        places, kept = (low.data_ptr(), high.data_ptr(), low.shape, high.shape), self._views
        if kept is None or kept[0] != places:
            # arrays over the same memory: they follow what is written into it, and nothing else can come to lie there
            kept = self._views = (places, low.numpy(), high.numpy())
        return kept[1][row], kept[2][row]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the arrays out: in a copy they would lie over other memory."""
        return {**self.__dict__, "_views": None}

    def to_unit(self, actions: torch.Tensor, key: str | None = None) -> torch.Tensor:
        """Map actions `(..., d)` float32 to [-1, 1], clipped."""
        row = self.index(key)
        return to_unit(actions, self.low[row], self.high[row])

    def from_unit(self, z: torch.Tensor, key: str | None = None) -> torch.Tensor:
        """Map `z (..., d)` float32 back; exact to one float32 ulp of the range."""
        row = self.index(key)
        return from_unit(z, self.low[row], self.high[row])

    def outside(self, actions: torch.Tensor, key: str | None = None) -> torch.Tensor:
        """Say which values of `actions (..., d)` lie outside the range, `(..., d)` bool."""
        row = self.index(key)
        return (actions < self.low[row]) | (actions > self.high[row])

    def to_json(self) -> dict[str, Any]:
        """Return keys, low and high as plain JSON values."""
        return {"keys": list(self.keys), "low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Range":
        """Inverse of `to_json`."""
        return cls(data["low"], data["high"], data["keys"])


class OpenRange(Range):
    """The range of actions that somebody else normalises: they pass as they are, and nothing is clipped.

    `low` and `high` only say which actions are `outside`. One column stands for any number of dims.

    Example:
        >>> r = OpenRange([-5.0], [5.0])
        >>> r.to_unit(torch.tensor([[7.0, 1.0]])).tolist(), r.outside(torch.tensor([[7.0, 1.0]])).tolist()
        ([[7.0, 1.0]], [[True, False]])
    """

    def to_unit(self, actions: torch.Tensor, key: str | None = None) -> torch.Tensor:
        """Return `actions (..., d)` as they are."""
        self.index(key)
        return actions

    def from_unit(self, z: torch.Tensor, key: str | None = None) -> torch.Tensor:
        """Return `z (..., d)` as it is."""
        self.index(key)
        return z


def _rows(values: Any) -> torch.Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return tensor[None] if tensor.ndim == 1 else tensor


def fit_range(
    strategy: str | Sequence[str] | Range,
    actions: Mapping[str, _Floats],
    minimum: Mapping[str, _Floats],
    maximum: Mapping[str, _Floats],
) -> Range:
    """Fit one row per key.

    Args:
        strategy: a name or one per dim: `quantile` (q01 and q99, as openpi and OpenVLA), `minmax`, `meanstd`
            (mean ± 4 standard deviations), `unit` (trusts the caller: -1 and +1). A `Range` is returned as it is.
        actions: per key `(m, d)` float32 frames.
        minimum: per key `(d,)`, over all data even where `actions` is a sample.
        maximum: per key `(d,)`.

    Returns:
        A range whose keys are sorted. Except under `unit`, a dim that holds one or two values, or whose
        quantiles coincide although it moves (a gripper closed in 1 % of the frames), spans its minimum and
        maximum, so that both values survive exactly.

    Raises:
        ActionValueError: unknown strategy.
        ActionShapeError: not one strategy per dim, or a given `Range` of another action_dim or other keys.
    """
    keys = tuple(sorted(actions))
    dim = actions[keys[0]].shape[1]
    if isinstance(strategy, Range):
        return _given(strategy, keys, dim)
    names: list[Any] = list(strategy) if isinstance(strategy, list | tuple) else [strategy] * dim
    if len(names) != dim:
        raise ActionShapeError(f"expected range= one strategy or {dim} (one per dim), got {len(names)}")
    unknown = [name for name in names if not isinstance(name, str) or name not in STRATEGIES]
    if unknown:
        raise ActionValueError(f"expected range= one of {list(STRATEGIES)} or a Range, got {unknown[0]!r}")
    rows = [_fit_key(names, actions[key], minimum[key], maximum[key]) for key in keys]
    return Range(np.stack([low for low, _ in rows]), np.stack([high for _, high in rows]), keys)


def _given(fitted: Range, keys: tuple[str, ...], dim: int) -> Range:
    if fitted.action_dim != dim:
        raise ActionShapeError(f"expected a Range of action_dim {dim} as in the data, got {fitted.action_dim}")
    missing = [key for key in keys if key not in fitted.keys]
    if missing and not (len(fitted.keys) == len(keys) == 1):
        raise ActionShapeError(f"expected a Range with keys {list(keys)}, got {list(fitted.keys)}")
    return Range(fitted.low, fitted.high, keys if missing else fitted.keys)


def _fit_key(names: list[str], frames: _Floats, minimum: _Floats, maximum: _Floats) -> tuple[_Floats, _Floats]:
    frames = frames[:MOST_ROWS]
    spans: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {
        "minmax": (minimum, maximum),
        "unit": (np.full_like(minimum, -1), np.ones_like(maximum)),
    }
    if "quantile" in names:
        low, high = np.quantile(frames, QUANTILES, axis=0)
        spans["quantile"] = (low, high)
    if "meanstd" in names:
        mean, std = frames.mean(axis=0, dtype=np.float64), frames.std(axis=0, dtype=np.float64)
        spans["meanstd"] = (mean - STANDARD_DEVIATIONS * std, mean + STANDARD_DEVIATIONS * std)
    low, high = (np.array([spans[name][side][j] for j, name in enumerate(names)], np.float32) for side in (0, 1))
    few_values = ((frames == minimum) | (frames == maximum)).all(axis=0)
    trusted = np.array([name == "unit" for name in names])
    exact = (few_values | (low >= high)) & ~trusted
    return np.where(exact, minimum, low), np.where(exact, maximum, high)
