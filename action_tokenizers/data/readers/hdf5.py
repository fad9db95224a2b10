"""HDF5: robomimic and LIBERO (`/data/demo_*` in one file), ALOHA (one file per episode)."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.readers.recording import (
    Recording,
    State,
    concatenated,
    pick_action,
    pick_state,
    positive,
)
from action_tokenizers.errors import FormatError
from action_tokenizers.extras import require

__all__ = ["read"]

# robomimic's `states` are the simulator's memory, not the robot's state: they are never taken unasked
DEMO_STATES = ("robot_states", "robot_state", "obs/state", "obs/qpos", "obs/robot_states", "obs/agent_pos")
FILE_STATES = ("observations/qpos", "observations/state", "observation/state", "state", "qpos")


def read(path: Path, *, action: str | None = None, state: State = None) -> Recording:
    """Return the episodes of an HDF5 file, or of all those in a folder in the order of their numbers."""
    if path.is_file():
        files = [path]
    else:
        there = [*path.glob("*.hdf5"), *path.glob("*.h5")]
        files = sorted(there, key=lambda file: _place(file.stem))
    found = [_read_file(file, action, state) for file in files]
    states = [array for one in found for array in one.states or ()]
    actions = [array for one in found for array in one.actions]
    numbers = [name for one in found for name in one.names]
    return Recording(actions, states if len(states) == len(actions) else None, found[0].fps, _unique(numbers))


def _read_file(path: Path, action: str | None, state: State) -> Recording:
    h5py = require("h5py", "data")
    try:
        with h5py.File(path, "r") as file:
            data = file.get("data")
            demos = [key for key in data if isinstance(data[key], h5py.Group)] if isinstance(data, h5py.Group) else []
            if demos:
                return _demos(file, data, demos, action, state, path.name)
            actions, states = _arrays(file, action, state, FILE_STATES, path.name)
            number = (_number(path.stem),)
            return Recording([actions], None if states is None else [states], _rate(file), number)
    except FormatError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"expected a whole HDF5 file at {path.name}, got {error}: copy it again") from error


def _demos(file: Any, data: Any, demos: list[str], action: str | None, state: State, where: str) -> Recording:
    keys = sorted(demos, key=_place)
    pairs = [_arrays(data[key], action, state, DEMO_STATES, f"{where}/data/{key}") for key in keys]
    states = [states for _, states in pairs if states is not None]
    return Recording(
        [actions for actions, _ in pairs],
        states if len(states) == len(pairs) else None,
        _rate(data) or _rate(file),
        _unique([_number(key) for key in keys]) or tuple(range(len(keys))),
    )


def _arrays(
    group: Any, action: str | None, state: State, states: tuple[str, ...], where: str
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the actions and, if any, the states of one episode."""
    shapes = _shapes(group)
    actions = _joined(group, pick_action(shapes, action, where, "/"), where)
    if state is None:
        columns = [name for name in states if name in shapes][:1]
    else:
        columns = pick_state(shapes, state, where, "/")
    return actions, _joined(group, columns, where) if columns else None


def _shapes(group: Any) -> dict[str, tuple[int, ...]]:
    """Return the numeric arrays (t, d) below a group; images have more axes and stay unread."""
    h5py = require("h5py", "data")
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (1, 2) and item.dtype.kind in "fiub":
            shapes[name] = tuple(item.shape)

    group.visititems(note)
    return shapes


def _joined(group: Any, names: list[str], where: str) -> NDArray[Any]:
    return concatenated({name: np.asarray(group[name]) for name in names}, where)


def _number(name: str) -> int:
    """Return the last number in a name: demo_10 comes after demo_9."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0


def _place(name: str) -> tuple[int, str]:
    return _number(name), name


def _unique(numbers: list[int]) -> tuple[int, ...]:
    """Return the numbers where they tell the episodes apart, else none: they are then counted."""
    return tuple(numbers) if len(set(numbers)) == len(numbers) else ()


def _rate(group: Any) -> float | None:
    """Return the rate from the attributes: fps, or robomimic's control frequency."""
    for name in ("fps", "hz", "control_freq"):
        rate = positive(group.attrs.get(name))
        if rate is not None:
            return rate
    try:
        kwargs = json.loads(group.attrs.get("env_args", "{}")).get("env_kwargs", {})
        return positive(kwargs.get("control_freq"))
    except (ValueError, TypeError, AttributeError):
        return None
