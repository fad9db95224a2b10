import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from action_tokenizers.data import ChunkSample, Relative, smooth_episodes
from action_tokenizers.data.sample_file import progress_of, write
from action_tokenizers.errors import FormatError


def sample(**fields) -> ChunkSample:
    return ChunkSample(k=50, horizon=8, **fields).add(smooth_episodes(5, action_dim=2, key="b"))


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "part.safetensors"
    relative = Relative("previous", (0,))
    mine = ChunkSample(50, 3, {"b": 2.0}, 8).add(smooth_episodes(5, action_dim=2, key="b"), relative=relative)
    mine.save(path)
    back = ChunkSample.load(path)
    assert back.digest() == mine.digest()
    assert (back.relative, back.weights, back.seed, back.count) == (relative, {"b": 2.0}, 3, mine.count)
    np.testing.assert_array_equal(back.minimum["b"], mine.minimum["b"])
    assert [file.name for file in path.parent.iterdir()] == ["part.safetensors"]


def test_equal_samples_are_equal_bytes_and_go_on_equal(tmp_path):
    episodes = smooth_episodes(20, action_dim=2)
    for name, at in (("a", range(10)), ("b", range(10, 20))):
        ChunkSample(30, horizon=8).add(episodes[list(at)]).save(tmp_path / name)
    a, b = (ChunkSample.load(tmp_path / name) for name in "ab")
    a.merge(b).save(tmp_path / "merged")
    ChunkSample(30, horizon=8).add(episodes).save(tmp_path / "whole")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_digest_sees_every_value_and_place():
    def digest(value=0.5, episode=1, start=2):
        actions = np.array([[[0.0]], [[1.0]], [[value]]])
        ids, starts = [0, 1, episode], [0, 0, start]
        return ChunkSample().add_chunks(actions, key="x", episode=ids, start=starts).digest()

    assert digest() == digest()
    assert len({digest(), digest(value=0.25), digest(episode=2), digest(start=3)}) == 4


def test_an_empty_sample_round_trips(tmp_path):
    empty = ChunkSample(horizon=300).add(smooth_episodes(2))
    empty.save(tmp_path / "empty")
    assert ChunkSample.load(tmp_path / "empty").digest() == empty.digest()
    ChunkSample().save(tmp_path / "fresh")
    assert ChunkSample.load(tmp_path / "fresh").digest() == ChunkSample().digest()


@pytest.mark.parametrize("content", [b"", b"not a sample", b"\xff" * 100])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match="expected a chunk sample at x"):
        ChunkSample.load(tmp_path / "x")
    with pytest.raises(FormatError, match="expected a chunk sample at none"):
        ChunkSample.load(tmp_path / "none")


def rewritten(tmp_path, header_changes=None, **tensor_changes):
    path = tmp_path / "changed"
    sample().save(path)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["sample"])
    header.update(header_changes or {})
    save_file({**load_file(path), **tensor_changes}, path, {"sample": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"version": 2}, {}, "version 2"),
        ({"k": "many"}, {}, "broken chunk sample"),
        ({"groups": []}, {}, "broken chunk sample"),
        ({"count": [1]}, {}, "broken chunk sample"),
        ({"weights": [1]}, {}, "broken chunk sample"),
        ({"horizon": 9}, {}, "broken chunk sample"),
        ({"weights": {"other": 1.0}}, {}, "broken chunk sample"),
        ({}, {"actions": np.full((50, 8, 2), np.nan, np.float32)}, "finite"),
        ({}, {"start": np.zeros(50, np.int32)}, "expected start"),
        ({}, {"minimum": np.zeros((0, 2), np.float32)}, "broken chunk sample"),
    ],
)
def test_changed_files_are_refused(tmp_path, header, tensors, message):
    with pytest.raises(FormatError, match=message):
        ChunkSample.load(rewritten(tmp_path, header, **tensors))


def test_a_file_without_the_header_is_refused(tmp_path):
    save_file({"actions": np.zeros((1, 2, 3), np.float32)}, tmp_path / "bare")
    with pytest.raises(FormatError, match="version None"):
        ChunkSample.load(tmp_path / "bare")


@pytest.mark.parametrize("header", ["[1]", "3", "null"])
def test_a_header_of_other_json_is_refused(tmp_path, header):
    save_file({"actions": np.zeros((1, 2, 3), np.float32)}, tmp_path / "bare", {"sample": header})
    with pytest.raises(FormatError, match="version none in a"):
        ChunkSample.load(tmp_path / "bare")


def test_progress_lies_beside_the_sample_and_changes_nothing_of_it(tmp_path):
    write(sample(), tmp_path / "partial", {"done": [1, 2]})
    assert progress_of(tmp_path / "partial") == {"done": [1, 2]}
    assert ChunkSample.load(tmp_path / "partial").digest() == sample().digest()
    sample().save(tmp_path / "plain")
    with pytest.raises(FormatError, match="got a file without progress: give another path"):
        progress_of(tmp_path / "plain")
    with pytest.raises(
        FormatError, match=r"expected an unfinished chunk sample at .*missing, got .*: delete it to begin anew"
    ):
        progress_of(tmp_path / "missing")


def test_what_was_left_out_is_stored_and_changes_the_bytes_only_where_there_is_any(tmp_path):
    mine = sample()
    plain = mine.digest()
    mine.skipped_shards, mine.lost_episodes = ("set/b.parquet",), 3
    assert mine.digest() != plain
    mine.save(tmp_path / "part")
    back = ChunkSample.load(tmp_path / "part")
    assert (back.skipped_shards, back.lost_episodes, back.digest()) == (("set/b.parquet",), 3, mine.digest())


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done: list[tuple[str, int]] = []
    sync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(("fsync", os.fstat(file).st_size)), sync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("replace", os.stat(a).st_size)), move(a, b)))
    sample().save(tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    assert done == [("fsync", size), ("replace", size)]


def test_what_killed_writers_left_is_swept_up(tmp_path):
    old, new, other = (tmp_path / name for name in (".part.0123abcd", ".part.4567abcd", ".part.more.0123abcd"))
    for left in (old, new, other):
        left.write_bytes(b"half")
    for left in (old, other):
        os.utime(left, (0, 0))
    ChunkSample().save(tmp_path / "part")
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, other.name, "part"]


def test_a_full_disk_is_told_by_the_file_and_leaves_the_older_one(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(sample(), tmp_path / "part", {"done": [1]})
    before = (tmp_path / "part").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=rf"{re.escape(str(tmp_path / 'part'))}, got No space left on device: make room"
    ) as told:
        write(sample(seed=1), tmp_path / "part", {"done": [1, 2]})
    assert told.value.errno == errno.ENOSPC
    assert (tmp_path / "part").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["part"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        OSError, match=rf"expected to write a sample to {re.escape(str(tmp_path / 'file' / 'part'))}, got "
    ):
        sample().save(tmp_path / "file" / "part")


@pytest.mark.parametrize("kept", [0, 5, 2000])
def test_a_partial_sample_that_is_cut_short_says_to_delete_it(tmp_path, kept, monkeypatch):
    write(sample(), tmp_path / "part", {"done": [1]})
    (tmp_path / "part").write_bytes((tmp_path / "part").read_bytes()[:kept])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FormatError, match=rf"chunk sample at {re.escape(str(tmp_path / 'part'))}, got .*: delete it to begin anew"
    ):
        progress_of(Path("part"))
