"""RLDS: TFRecord shards of whole episodes, read without TensorFlow; images are never decoded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.readers.recording import Recording, State, pick_action, pick_state
from action_tokenizers.errors import FormatError
from action_tokenizers.extras import require

__all__ = ["read"]

STEPS = "steps/"
MARKS = ("is_first", "is_last", "is_terminal", "reward", "discount")  # one value per step
RLDS_STATES = ("observation/state", "observation/proprio", "observation/qpos", "observation/agent_pos")


def read(path: Path, *, action: str | None = None, state: State = None) -> Recording:
    """Return the episodes of all shards, in the order of their names.

    Columns are named from the step on: `action`, `observation/state`.
    """
    shards = [path] if path.is_file() else sorted(path.rglob("*.tfrecord*"))
    if not shards:
        raise FormatError(f"expected *.tfrecord* shards in {path.name}, got none: fetch them as well")
    order = _feature_order(shards[0].parent)
    episodes = [_episode(record, order, action, state, shard.name) for shard in shards for record in _records(shard)]
    if not episodes:
        raise FormatError(f"expected episodes in {path.name}, got {len(shards)} empty shards")
    states = [states for _, states in episodes if states is not None]
    return Recording([actions for actions, _ in episodes], states if len(states) == len(episodes) else None)


def _records(shard: Path) -> Iterator[Any]:
    """Yield the feature map of every Example in a shard."""
    messages = require("tfrecord.example_pb2", "data")
    decode_error = require("google.protobuf.message", "data").DecodeError
    for data in _payloads(shard):
        example = messages.Example()
        try:
            example.ParseFromString(data)
        except decode_error as error:
            raise _broken(shard) from error
        yield example.features.feature


def _payloads(shard: Path) -> Iterator[bytes]:
    """Yield the bytes of every record: 8 of length, 4 of checksum, the payload, 4 of checksum.

    The tfrecord package's own iterator allocates whatever a damaged length asks for, and leaves the file open.
    """
    left = shard.stat().st_size
    with shard.open("rb") as file:
        while left:
            head = file.read(12)
            size = int.from_bytes(head[:8], "little")
            left -= 16 + size
            if left < 0:
                raise _broken(shard)
            yield file.read(size)
            file.seek(4, 1)


def _broken(shard: Path) -> FormatError:
    return FormatError(f"expected a whole TFRecord shard at {shard.name}, got a broken record: fetch it again")


def _episode(
    features: Any, order: list[str], action: str | None, state: State, where: str
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    sizes = {name: len(_values(features[STEPS + name])) for name in _step_columns(features, order)}
    steps = next((sizes[name] for name in MARKS if name in sizes), 0)
    if steps == 0:
        raise FormatError(f"expected one of {', '.join(MARKS)} per step in {where}, got {sorted(sizes)}")
    dims = {name: f"({size / steps:g})" for name, size in sizes.items()}
    actions = pick_action(dims, action, where, "/")
    if state is None:
        states = [name for name in RLDS_STATES if name in dims][:1]
    else:
        states = pick_state(dims, state, where, "/")
    joined = _joined(features, actions, steps, where)
    return joined, _joined(features, states, steps, where) if states else None


def _step_columns(features: Any, order: list[str]) -> list[str]:
    """Return the numeric columns of a step: in the order of features.json, then by name."""
    there = {
        name.removeprefix(STEPS)
        for name in features
        if name.startswith(STEPS) and not features[name].HasField("bytes_list")
    }
    known = [name for name in order if name in there]
    return known + sorted(there.difference(known))


def _values(feature: Any) -> Any:
    return feature.int64_list.value if feature.HasField("int64_list") else feature.float_list.value


def _joined(features: Any, names: list[str], steps: int, where: str) -> NDArray[Any]:
    columns = {name: np.asarray(_values(features[STEPS + name]), np.float32) for name in names}
    uneven = [name for name, values in columns.items() if len(values) % steps]
    if uneven:
        raise FormatError(f"expected the same dims in each of {steps} steps of {where}, got uneven {uneven}")
    return np.concatenate([values.reshape(steps, -1) for values in columns.values()], axis=1)


def _feature_order(folder: Path) -> list[str]:
    """Return the step columns in the order of features.json; empty where there is none."""
    file = folder / "features.json"
    if not file.is_file():
        return []
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"expected the features of RLDS steps in {file.name}, got {error!r}") from error
    return list(_leaves(steps, ""))


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[str]:
    children = node.get("featuresDict", {}).get("features", {})
    if not children:
        yield prefix
    for name, child in children.items():
        yield from _leaves(child, f"{prefix}/{name}" if prefix else name)
