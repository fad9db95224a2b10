import struct

import numpy as np
import pytest

from action_tokenizers.data import Episodes
from action_tokenizers.errors import FormatError

pytest.importorskip("tfrecord")


def record(columns) -> bytes:
    from tfrecord.example_pb2 import Example

    example = Example()
    for name, values in columns.items():
        feature = example.features.feature[name]
        if isinstance(values, bytes):
            feature.bytes_list.value.append(values)
        elif np.asarray(values).dtype.kind == "f":
            feature.float_list.value.extend(np.asarray(values).ravel().tolist())
        else:
            feature.int64_list.value.extend(np.asarray(values, int).ravel().tolist())
    data = example.SerializeToString()
    return struct.pack("<Q", len(data)) + bytes(4) + data + bytes(4)  # the reader asks no checksums


@pytest.fixture
def write(tmp_path):
    def shard(name, *episodes):
        (tmp_path / "set" / "1.0.0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "1.0.0" / name).write_bytes(b"".join(map(record, episodes)))
        return tmp_path / "set"

    return shard


def episode(actions, **columns):
    count = len(actions)
    steps = {"is_first": np.arange(count) == 0, "action": actions, "observation/image": b"never decoded", **columns}
    return {f"steps/{name}": values for name, values in steps.items()}


def test_the_recorded_shard_equals_the_flat_file(shared_data, equal_episodes):
    flat = Episodes.load(shared_data / "bridge_mini")
    equal_episodes(Episodes.load(shared_data / "bridge_mini" / "original"), flat)
    equal_episodes(Episodes.load(shared_data / "bridge_mini" / "original/bridge_dataset/1.0.0"), flat)


def test_shards_come_in_order(write, walks):
    a, b, c = walks((4, 5, 6), 3)
    write("x-train.tfrecord-00001-of-00002", episode(c, **{"observation/state": c}))
    root = write("x-train.tfrecord-00000-of-00002", *(episode(x, **{"observation/state": x}) for x in (a, b)))
    read = Episodes.load(root)
    for mine, states, theirs in zip(read.actions, read.states, (a, b, c), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(states, theirs)
    one = Episodes.load(root / "1.0.0" / "x-train.tfrecord-00001-of-00002", state=False)
    assert (one.lengths, one.states) == ((6,), None)


def test_nested_actions_are_joined_and_can_be_picked(write, walks):
    (a,) = walks((4,), 5)
    columns = episode(a)
    del columns["steps/action"]
    columns |= {"steps/action/world": a[:, :3], "steps/action/gripper": a[:, 3:], "steps/action/stop": np.ones(4, int)}
    root = write("x.tfrecord", columns)
    read = Episodes.load(root)  # without features.json the parts come by name
    np.testing.assert_array_equal(read.actions[0], np.concatenate([a[:, 3:], np.ones((4, 1)), a[:, :3]], axis=1))
    np.testing.assert_array_equal(Episodes.load(root, action="action/world").actions[0], a[:, :3])


def test_a_missing_column_lists_dims(write, walks):
    root = write("x.tfrecord", episode(walks((4,), 5)[0]))
    with pytest.raises(FormatError, match=r"'torque' in x.tfrecord, got action \(5\), is_first \(1\): name"):
        Episodes.load(root, action="torque")


def test_steps_must_be_countable_and_even(write, walks):
    columns = episode(walks((4,), 5)[0])
    columns["steps/action"] = np.zeros(19)
    with pytest.raises(FormatError, match=r"each of 4 steps of x.tfrecord, got uneven \['action'\]"):
        Episodes.load(write("x.tfrecord", columns))
    del columns["steps/is_first"]
    with pytest.raises(FormatError, match="expected one of is_first"):
        Episodes.load(write("x.tfrecord", columns))


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: raw[:-20], lambda raw: raw[:30], lambda raw: raw[:12] + b"\xff" * 500]
)
def test_broken_shards_are_named(write, walks, damage):
    root = write("x.tfrecord", episode(walks((40,), 5)[0]))
    file = root / "1.0.0" / "x.tfrecord"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FormatError, match=r"whole TFRecord shard at x.tfrecord"):
        Episodes.load(root)


def test_no_shards_and_empty_shards(write):
    root = write("x.tfrecord")
    with pytest.raises(FormatError, match="1 empty shards"):
        Episodes.load(root)
    (root / "1.0.0" / "x.tfrecord").rename(root / "features.json")
    with pytest.raises(FormatError, match="got none: fetch"):
        Episodes.load(root)


@pytest.mark.parametrize("text", ["{", "{}", '{"featuresDict": []}'])
def test_broken_features_are_named(write, walks, text):
    root = write("x.tfrecord", episode(walks((4,), 5)[0]))
    (root / "1.0.0" / "features.json").write_text(text)
    with pytest.raises(FormatError, match=r"features of RLDS steps in features.json"):
        Episodes.load(root)
