"""What every reader returns, and how columns are found by their common names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.errors import FormatError

__all__ = [
    "ACTION_NAMES",
    "EPISODE_NAMES",
    "MOST_LISTED",
    "STATE_NAMES",
    "Recording",
    "State",
    "concatenated",
    "pick_action",
    "pick_state",
    "positive",
    "split_rows",
]

ACTION_NAMES = ("action", "actions")
STATE_NAMES = (
    "observation.state",
    "observation.qpos",
    "state",
    "states",
    "qpos",
    "robot_state",
    "robot_states",
    "agent_pos",
    "obs",
)
EPISODE_NAMES = (
    "episode_index",
    "episode_id",
    "episode",
    "episode_num",
    "traj_id",
    "traj_index",
    "traj",
    "trajectory_id",
    "trajectory",
    "demo_id",
    "demo_index",
    "demo",
    "rollout_id",
    "rollout",
    "ep",
)
MOST_LISTED = 24

State = str | Literal[False] | None  # a name, False: leave states out, None: look for the common names
Matrix = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Recording:
    """Episodes as read, unchecked: the Episodes door does the checking.

    Attributes:
        actions: One `(t_i, d)` array per episode.
        states: One `(t_i, ds)` array per episode, or None.
        fps: Frames per second, None where the files do not say.
        names: The episode indices as recorded; empty for 0..n-1.
        action_names: One name per action dim, or None.
        doubt: What the reader had to guess, for a warning; empty where it knew.
    """

    actions: Sequence[Matrix]
    states: Sequence[Matrix] | None = None
    fps: float | None = None
    names: tuple[int, ...] = ()
    action_names: tuple[str, ...] | None = None
    doubt: str = ""


def pick_action(columns: Mapping[str, Any], wanted: str | None, where: str, separator: str = ".") -> list[str]:
    """Return the columns that make up the actions; FormatError lists what is there.

    `columns` maps names, in the file's order, to what describes them (dims or a shape).
    """
    found = _pick(columns, wanted, ACTION_NAMES, separator)
    if not found:
        raise FormatError(_missing(columns, wanted, "action", ACTION_NAMES, where))
    return found


def pick_state(columns: Mapping[str, Any], wanted: State, where: str, separator: str = ".") -> list[str]:
    """Return the columns that make up the states; none where nobody asked and none has a common name."""
    if wanted is False:
        return []
    found = _pick(columns, wanted, STATE_NAMES, separator)
    if not found and wanted is not None:
        raise FormatError(_missing(columns, wanted, "state", STATE_NAMES, where))
    return found


def _pick(columns: Mapping[str, Any], wanted: str | None, names: Sequence[str], separator: str) -> list[str]:
    """Return the first of the names that is a column, or a group of columns `name.*` in the file's order."""
    for name in names if wanted is None else (wanted,):
        if name in columns:
            return [name]
        group = [column for column in columns if column.startswith(name + separator)]
        if group:
            return group
    return []


def _missing(columns: Mapping[str, Any], wanted: str | None, what: str, names: Sequence[str], where: str) -> str:
    expected = f"{what} column {wanted!r}" if wanted else f"{'an' if what == 'action' else 'a'} {what} column"
    common = "" if wanted else f" (one of {', '.join(names)} or {names[0]}.*)"
    listed = [f"{name} {dims}" for name, dims in columns.items()]
    there = ", ".join(listed[:MOST_LISTED]) + ", ..." * (len(listed) > MOST_LISTED) or "no numeric columns"
    return f"expected {expected}{common} in {where}, got {there}: name the column with {what}="


def concatenated(columns: Mapping[str, Matrix], where: str) -> Matrix:
    """Return the columns of one part `(..., d)` side by side, in their order; `(t,)` counts as `(t, 1)`."""
    axes = max(2, *(column.ndim for column in columns.values()))
    parts = [column[..., None] if column.ndim == axes - 1 else column for column in columns.values()]
    if len({part.shape[:-1] for part in parts}) > 1:
        shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise FormatError(
            f"expected as many rows in each of the columns {', '.join(columns)} of {where}, got {shapes}: "
            "name one of them with action= or state="
        )
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def split_rows(
    table: Mapping[str, Matrix], episode: NDArray[np.int64], frame: NDArray[Any] | None, where: str
) -> tuple[tuple[int, ...], dict[str, list[Matrix]]]:
    """Group rows by episode, ordered by frame: returns the episode names and, per column, one array each."""
    if len(episode) == 0:
        raise FormatError(f"expected rows in {where}, got none")
    order = np.argsort(episode, kind="stable") if frame is None else np.lexsort((frame, episode))
    ids = episode[order]
    if frame is not None:
        twice = np.flatnonzero((np.diff(ids) == 0) & (np.diff(frame[order]) == 0))
        if len(twice):
            at = order[twice[0]]
            raise FormatError(
                f"expected each frame once in {where}, got frame {frame[at]} of episode {episode[at]} twice: "
                "is a file there two times?"
            )
    borders = np.flatnonzero(np.diff(ids)) + 1
    names = tuple(int(name) for name in ids[np.concatenate([[0], borders])])
    in_order = bool((order[1:] > order[:-1]).all())  # no copy where the file is sorted, as nearly all are
    return names, {
        name: list(np.split(column if in_order else column[order], borders)) for name, column in table.items()
    }


def positive(value: Any) -> float | None:
    """Return `value` as a rate, or None for what cannot be one (wild files hold 0, null and text)."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    try:
        rate = float(value)
    except (TypeError, ValueError):
        return None
    return rate if np.isfinite(rate) and rate > 0 else None
