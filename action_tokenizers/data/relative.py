"""Relative actions: differences to a state or to the action before, and the way back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.door import FloatArray
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError

__all__ = ["Relative"]

MODES = ("state", "previous")
# The largest float32 angle of half a turn: it must not be wrapped to the other side.
HALF_TURN = float(np.float32(np.pi))


@dataclass(frozen=True)
class Relative:
    """Actions as differences, per dim: `"state"`, `"previous"` or None (left absolute).

    `"state"`: every step minus the state at the chunk's start. The first d dims of the state must then be
    the d action dims, in the same order and unit (joint positions for joint targets): dim i of the action is
    taken relative to dim i of the state, and what the state has beyond d is not used. `"previous"`: every
    step minus the step before it, the first minus the reference. The arithmetic is float64, so that
    `invert(apply(x)) == x` to float32 rounding.

    The reference that `chunks` takes is, per dim, the state at the chunk's start or the action before the
    chunk; before an episode's first action the state stands in, where it has the actions' dims, else the
    first action itself (a delta of 0).

    Attributes:
        mode: One mode for all dims, or a mode or None per dim.
        angles: Dims that are angles, as indices or as one bool per dim: their differences, and their
            values after `invert`, are wrapped to (-pi, pi]. Dims left absolute are never wrapped.

    Example:
        >>> relative = Relative("previous")
        >>> chunk = np.array([[[1.0], [3.0], [6.0]]], np.float32)
        >>> deltas = relative.apply(chunk, np.array([[1.0]], np.float32))
        >>> deltas.ravel().tolist()
        [0.0, 2.0, 3.0]
        >>> relative.invert(deltas, np.array([[1.0]])).ravel().tolist()
        [1.0, 3.0, 6.0]
    """

    mode: str | Sequence[str | None]
    angles: Sequence[int | bool] = ()

    def __post_init__(self) -> None:
        """Refuse unknown modes; lists become tuples."""
        mode = self.mode if isinstance(self.mode, str) else tuple(self.mode)
        for one in (mode,) if isinstance(mode, str) else mode:
            if one is not None and one not in MODES:
                raise ActionValueError(f'expected mode "state", "previous" or None, got {one!r}')
        marks = tuple(self.angles)
        if not (marks and all(isinstance(mark, bool | np.bool_) for mark in marks)):
            marks = tuple(int(mark) for mark in marks)
        else:
            marks = tuple(bool(mark) for mark in marks)
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "angles", marks)

    def modes(self, dim: int) -> tuple[str | None, ...]:
        """Return one mode per dim."""
        modes = (self.mode,) * dim if isinstance(self.mode, str) else tuple(self.mode)
        if len(modes) != dim:
            raise ActionShapeError(f"expected one mode per action dim ({dim}), got {len(modes)}")
        return modes

    def apply(self, actions: NDArray[Any], reference: NDArray[Any]) -> FloatArray:
        """Return `actions` `(n, t, d)` relative to `reference` `(n, d)`."""
        values, anchor = _doubles(actions, reference)
        by_state, by_previous, turning = self._masks(values.shape[-1])
        before = np.concatenate([anchor, values[:, :-1]], axis=1)
        out = np.where(by_state, values - anchor, np.where(by_previous, values - before, values))
        return _wrap(out, turning).astype(np.float32)

    def invert(self, relative: NDArray[Any], reference: NDArray[Any]) -> FloatArray:
        """Return the absolute actions of `relative` `(n, t, d)`, given the same `reference` `(n, d)`."""
        values, anchor = _doubles(relative, reference)
        by_state, by_previous, turning = self._masks(values.shape[-1])
        summed = np.cumsum(values, axis=1) + anchor
        out = np.where(by_state, values + anchor, np.where(by_previous, summed, values))
        return _wrap(out, turning).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; `from_json` gives back an equal object."""
        mode = self.mode if isinstance(self.mode, str) else list(self.mode)
        return {"mode": mode, "angles": list(self.angles)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_json` described."""
        if set(data) != {"mode", "angles"}:
            raise FormatError(f"expected mode and angles of relative actions, got {sorted(data)}")
        return cls(data["mode"], data["angles"])

    def _masks(self, dim: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        modes = self.modes(dim)
        turning = np.zeros(dim, np.bool_)
        marks = np.asarray(self.angles)
        try:
            if marks.size:
                turning[marks] = True
        except IndexError as error:
            raise ActionShapeError(f"expected angles among {dim} action dims, got {self.angles}") from error
        by_state = np.array([mode == "state" for mode in modes])
        by_previous = np.array([mode == "previous" for mode in modes])
        return by_state, by_previous, turning & (by_state | by_previous)


def _doubles(actions: NDArray[Any], reference: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, anchor = np.asarray(actions, np.float64), np.asarray(reference, np.float64)
    if values.ndim != 3 or anchor.shape != (values.shape[0], values.shape[2]):
        raise ActionShapeError(
            f"expected actions (n, t, d) and reference (n, d), got {values.shape} and {anchor.shape}"
        )
    return values, anchor[:, None]


def _wrap(values: NDArray[np.float64], turning: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Wrap the turning dims to (-pi, pi]."""
    if not turning.any():
        return values
    wrapped = HALF_TURN - np.mod(HALF_TURN - values, 2 * np.pi)
    return np.where(turning, wrapped, values)
