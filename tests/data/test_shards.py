import errno
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from action_tokenizers import ChunkSample, Episodes
from action_tokenizers.cli import DEMO_DATA
from action_tokenizers.data import default_horizon
from action_tokenizers.data.shards import FRAMES, SLACK, BrokenFile, Skipped, open_shards
from action_tokenizers.errors import ActionShapeError, ActionTokenizerError, ActionValueError, FormatError
from tests.fakes.shard_files import recorded, spoil_actions, spoil_value, truncate, write_frames

pytest.importorskip("pyarrow")


def same(got: Episodes, wanted: Episodes) -> None:
    assert (got.names, got.lengths, got.fps, got.key) == (wanted.names, wanted.lengths, wanted.fps, wanted.key)
    assert (got.source, got.action_names, got.offsets) == (wanted.source, wanted.action_names, wanted.offsets)
    for mine, theirs in zip(got.actions, wanted.actions, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (got.states is None) == (wanted.states is None)
    for mine, theirs in zip(got.states or (), wanted.states or (), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_cuts_what_is_read_is_what_a_whole_reading_finds(tmp_path, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    episodes = recorded(12, seed=seed)
    cuts = sorted(rng.integers(0, episodes.frames + 1, rng.integers(0, 9)).tolist())
    group, rows = int(rng.integers(1, 40)), int(rng.integers(1, 120))
    monkeypatch.setattr("action_tokenizers.data.shards.FRAMES", rows)
    root = write_frames(tmp_path / "set", episodes, cuts, rows_per_group=group, frame=bool(seed % 2))
    shards, whole = open_shards(root), Episodes.load(root)
    same(shards.load(), whole)
    # each by the reader of the file it begins in, once, in any order
    seen = [name for number in rng.permutation(len(shards)) for piece in shards.read(number) for name in piece.names]
    assert sorted(seen) == list(whole.names)
    assert (shards.episodes, shards.frames, shards.action_dim) == (len(whole), whole.frames, 3)
    assert shards.horizon == default_horizon(whole)
    counted = sum(shards.chunks(number, 5, 2) for number in range(len(shards)))
    assert counted == ChunkSample().add(whole, 5, 2).count["default"]


def test_what_cannot_be_read_is_left_out_of_a_whole_reading_and_told(tmp_path):
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    # episode 3 goes on in the file that is spoiled, which the index does not see; the last file it does
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]) - 1, int(ends[7]), int(ends[9])])
    spoil_actions(root / "file-001.parquet")
    truncate(root / "file-003.parquet")
    with pytest.warns(UserWarning, match="left out") as of_index:
        shards = open_shards(root, skip_broken=True)
    with pytest.warns(UserWarning, match="left out") as of_reading:
        found = shards.load()
    assert found.names == (0, 1, 2, 8)
    for name, actions in zip(found.names, found.actions, strict=True):
        np.testing.assert_array_equal(actions, episodes.actions[name])
    index, cut, left = (str(one.message) for one in [*of_index, *of_reading])
    assert index.startswith("1 of 4 files of set left out as broken, and 1 episodes that they may cut off: set/file-0")
    assert {one.filename for one in [*of_index, *of_reading]} == {__file__}
    told = "1 episode of set/file-000.parquet left out: 3 goes on in set/file-001.parquet, which cannot be used: "
    assert cut.startswith(f"{told}expected a whole parquet file")
    assert left.startswith("set/file-001.parquet left out, episodes lost with it: 4: ")
    assert shards.read_whole(1)[0] == []
    assert shards.read_whole(2)[1] == ""
    spoil_actions(root / "file-000.parquet")
    spoil_actions(root / "file-002.parquet")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(FormatError, match="expected episodes that can"):
        open_shards(root, skip_broken=True).load()


def test_an_episode_longer_than_many_files(tmp_path):
    episodes = recorded(1)
    root = write_frames(tmp_path / "set", episodes, range(2, episodes.frames, 2), rows_per_group=1)
    shards = open_shards(root)
    same(shards.load(), Episodes.load(root))
    assert [sum(map(len, shards.read(number))) for number in range(len(shards))] == [1] + [0] * (len(shards) - 1)


def test_the_embedded_data_set():
    same(open_shards(DEMO_DATA).load(), Episodes.load(DEMO_DATA))
    assert repr(open_shards(DEMO_DATA)).startswith("Shards(1 files, 75 episodes, 7650 frames, action_dim=4")


def test_recorded_data(shared_data):
    for name in ("adroit_door", "g1_inspire_bottle/original", "gr1_picknplace"):
        same(open_shards(shared_data / name).load(), Episodes.load(shared_data / name))


def test_pieces_are_bounded(tmp_path):
    length = FRAMES // 4
    episodes = Episodes([np.zeros((length, 2), np.float32) + i for i in range(10)], states=[np.zeros((length, 1))] * 10)
    shards = open_shards(write_frames(tmp_path / "set", episodes, rows_per_group=1 << 20))
    assert [piece.frames for piece in shards.read(0)] == [FRAMES, FRAMES, FRAMES // 2]


def test_frames_out_of_order_within_an_episode_are_put_in_order(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    frames = {"episode_index": [0, 0, 0], "frame_index": [2, 0, 1], "action": [[2.0], [0.0], [1.0]]}
    parquet.write_table(pa.table(frames), tmp_path / "x.parquet")
    assert open_shards(tmp_path).load().actions[0].ravel().tolist() == [0, 1, 2]


@pytest.mark.parametrize("kinds", [("float32", "float64"), ("float64", "float16", "float32")])
def test_float_types_may_differ_between_files(tmp_path, kinds):
    episodes = recorded(12)
    root = write_frames(tmp_path / "set", episodes, [40, 55, 130], dtypes=kinds)
    got = open_shards(root).load()
    assert all(actions.dtype == np.float32 for actions in got.actions)
    same(got, Episodes.load(root))


def test_a_split_holds_out_what_a_split_of_the_whole_does(tmp_path):
    root = write_frames(tmp_path / "set", recorded(11), [50, 120])
    for mine, theirs in zip(open_shards(root).split(0.3, seed=5), Episodes.load(root).split(0.3, seed=5), strict=True):
        same(mine.load(), theirs)
        assert (mine.episodes, mine.frames) == (len(theirs), theirs.frames)
    with pytest.raises(ActionShapeError, match="several episodes"):
        open_shards(write_frames(tmp_path / "one", recorded(1))).split()
    with pytest.raises(ActionValueError, match="between 0 and 1"):
        open_shards(root).split(1.0)


def test_a_draw_does_not_depend_on_the_files(tmp_path):
    episodes = recorded(30)
    one = open_shards(write_frames(tmp_path / "a" / "set", episodes)).draw(7, seed=1)
    many = open_shards(write_frames(tmp_path / "b" / "set", episodes, range(20, episodes.frames, 20))).draw(7, seed=1)
    assert one.episodes == 7
    same(one.load(), many.load())
    assert open_shards(tmp_path / "a" / "set").draw(7, seed=2).load().names != one.load().names
    assert open_shards(tmp_path / "a" / "set").draw(99).episodes == 30
    with pytest.raises(ActionValueError, match="at least one"):
        one.draw(0)


@pytest.mark.parametrize("weights", [None, {"default": 3.0}])
@pytest.mark.parametrize("k", [1, 7, 60, 10_000])
def test_the_threshold_is_the_worst_priority_of_the_full_sample(tmp_path, k, weights):
    root = write_frames(tmp_path / "set", recorded(12), [50, 120])
    sample = ChunkSample(k, 3, weights, 5).add(Episodes.load(root), stride=2)
    threshold = open_shards(root).threshold(ChunkSample(k, 3, weights, 5), 2)
    worst = float(sample._rows.priority[-1])
    assert threshold == (worst * SLACK if len(sample) == k else np.inf)


def test_fingerprints_tell_data_and_choices_apart(tmp_path):
    root = write_frames(tmp_path / "set", recorded(6), [50])
    prints = [open_shards(root).fingerprint(), open_shards(root, key="x").fingerprint()]
    prints += [open_shards(root, state=False).fingerprint(), open_shards(root).split()[0].fingerprint()]
    write_frames(root, recorded(6, seed=1), [50])
    prints.append(open_shards(root).fingerprint())
    assert len(set(prints)) == 5
    assert open_shards(root).fingerprint() == prints[-1]


@pytest.mark.parametrize("inside", [False, True], ids=["all", "one value that is no extreme"])
@pytest.mark.parametrize("part", ["actions", "states"])
def test_fingerprints_tell_contents_apart_that_are_of_equal_size(tmp_path, part, inside):
    episodes = recorded(6)
    root = write_frames(tmp_path / "set", episodes, [50])
    before = open_shards(root).fingerprint()
    size = [file.stat().st_size for file in sorted(root.glob("*.parquet"))]
    others = [values.copy() for values in getattr(episodes, part)]
    if inside:
        ranked = np.argsort(others[2][:, 1])
        others[2][ranked[len(ranked) // 2], 1] = np.nextafter(others[2][ranked[len(ranked) // 2], 1], 9.0)
    else:
        others = [-values for values in others]
    write_frames(root, replace(episodes, **{part: others}), [50])
    assert [file.stat().st_size for file in sorted(root.glob("*.parquet"))] == size
    assert open_shards(root).fingerprint() != before
    write_frames(root, episodes, [50])
    assert open_shards(root).fingerprint() == before


@contextmanager
def no_more_files():
    resource = pytest.importorskip("resource", reason="limits open files as Unix does")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_the_system_says_does_not_make_a_file_a_broken_one(tmp_path, monkeypatch):
    root = write_frames(tmp_path / "set", recorded(6), [50])
    shards = open_shards(root, skip_broken=True)
    for read in (shards.read, lambda number: shards.pieces(number, [])):
        with pytest.raises(OSError, match=r"set/file-000\.parquet: .*[Tt]oo many open files") as told, no_more_files():
            list(read(0))
        assert told.value.errno == errno.EMFILE
    with pytest.raises(OSError, match=r"[Tt]oo many open files"), no_more_files():
        open_shards(root / "file-000.parquet", skip_broken=True)
    for number in (errno.EACCES, errno.ESTALE, errno.ENOSPC):

        def refused(*_, number=number):
            raise OSError(number, "no")

        monkeypatch.setattr("action_tokenizers.data.shards.runs_of", refused)
        with pytest.raises(OSError, match=r"file-000\.parquet: no") as told:
            open_shards(root, skip_broken=True)
        assert told.value.errno == number


def test_a_broken_file_is_told_apart_from_what_is_done_with_its_pieces(tmp_path):
    episodes = recorded(12)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [ends[3] - 1, ends[7]])
    spoil_actions(root / "file-001.parquet")
    shards, cut_off = open_shards(root, skip_broken=True), []
    assert [name for piece in shards.pieces(0, cut_off) for name in piece.names] == [0, 1, 2]
    assert [one.shard for one in cut_off] == ["set/file-001.parquet"]  # the file that episode 3 goes on in
    with pytest.raises(BrokenFile, match=r"set/file-001\.parquet"):
        list(shards.pieces(1, []))
    with pytest.raises(FormatError, match=r"set/file-001\.parquet"):
        list(open_shards(root).pieces(1, []))
    with pytest.raises(ActionValueError, match="at least one character"):
        open_shards(root, key="")


@pytest.mark.parametrize("damage", [truncate, lambda file: file.write_bytes(b"")], ids=["no footer", "no bytes"])
def test_a_broken_file_is_named_and_left_out_only_when_asked_to(tmp_path, damage):
    episodes = recorded(12)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [ends[3], ends[7]])
    damage(root / "file-001.parquet")
    with pytest.raises(FormatError, match=r"got 1 broken ones, the first of them set/file-001\.parquet: .*skip_broken"):
        open_shards(root)
    with pytest.warns(UserWarning, match=r"and 1 episodes that they may cut off: set/file-001\.parquet: expected a "):
        shards = open_shards(root, skip_broken=True)
    # nobody knows whether the last before it went on; the first after it has a frame 0
    assert shards.load().names == (0, 1, 2, *range(8, 12))
    assert [skipped.shard for skipped in shards.skipped] == ["set/file-001.parquet"]
    assert shards.table.lost == 1


def test_another_action_dim_is_named(tmp_path):
    root = write_frames(tmp_path / "set", recorded(3), [recorded(3).frames])
    write_frames(tmp_path / "other", recorded(2, action_dim=4))
    (tmp_path / "other" / "file-000.parquet").replace(root / "file-001.parquet")
    with pytest.raises(FormatError, match=r"expected actions of 3 dims as in file-000\.parquet, got 4 in file-001"):
        open_shards(root)
    with pytest.warns(UserWarning, match="1 of 2 files of set left out as broken"):
        assert open_shards(root, skip_broken=True).load().names == (0, 1)  # episode 2 may go on in it


def test_actions_that_cannot_be_read_are_found_when_they_are(tmp_path):
    episodes = recorded(12)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [ends[3] - 1, ends[7]])
    spoil_actions(root / "file-001.parquet")
    shards = open_shards(root)
    assert [name for piece in shards.read(2) for name in piece.names] == list(range(8, 12))
    with pytest.raises(FormatError, match=r"set/file-001\.parquet"):
        list(shards.read(1))
    with pytest.raises(FormatError, match=r"set/file-001\.parquet"):
        list(shards.read(0))  # whose last episode goes on there
    cut_off: list[Skipped] = []
    assert [name for piece in shards.read(0, cut_off) for name in piece.names] == [0, 1, 2]
    assert [one.shard for one in cut_off] == ["set/file-001.parquet"]  # the file that episode 3 goes on in


def test_a_broken_value_is_named_by_episode_frame_and_dim(tmp_path):
    episodes = recorded(4)
    root = write_frames(tmp_path / "set", episodes)
    spoiled = [actions.copy() for actions in episodes.actions]
    spoiled[2][1, 0] = np.nan
    for file in root.glob("*.parquet"):
        file.unlink()

    class Unchecked:
        actions, states, lengths, names = spoiled, episodes.states, episodes.lengths, episodes.names

    write_frames(root, Unchecked())
    with pytest.raises(ActionValueError, match="action of episode 2, frame 1, dim 0"):
        open_shards(root).load()


def test_unusable_values_make_the_file_a_broken_one_that_holds_them(tmp_path):
    """Also where they are of an episode that begins in another, of which the rest is fine."""
    episodes = recorded(12, seed=3)
    begin = int(np.cumsum(episodes.lengths)[4])  # of episode 5, of 33 frames
    root = write_frames(tmp_path / "set", episodes, [begin + 20])
    for part, spoil in (("action", np.nan), ("observation.state", np.inf), ("action", "text")):
        write_frames(root, episodes, [begin + 20])
        spoil_value(root / "file-001.parquet", part, 5, 1, spoil)
        shards = open_shards(root, skip_broken=True)
        what = "expected numbers" if spoil == "text" else "of episode 5, frame 25, dim 1: repair"
        with pytest.raises(ActionTokenizerError, match=f"set/file-001.parquet: .*{what}"):
            open_shards(root).load()
        cut_off: list[Skipped] = []
        assert [name for piece in shards.pieces(0, cut_off) for name in piece.names] == [0, 1, 2, 3, 4]
        assert [one.shard for one in cut_off] == ["set/file-001.parquet"]
        assert re.search(what, cut_off[0].reason)
        told = f"1 episode of set/file-000.parquet left out: 5 goes on in {cut_off[0].shard}, which cannot be used: "
        assert shards.cut_off(0, cut_off[0]) == told + cut_off[0].reason
    write_frames(root, episodes, [begin + 20])
    spoil_value(root / "file-001.parquet", "action", 14, 0, np.nan)  # of episode 6, which nobody has asked for
    assert open_shards(root).only(np.array([7, 8])).load().names == (7, 8)


def test_the_frame_of_an_unusable_value_is_the_recorded_one(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    frames = {
        "episode_index": [0] * 5,
        "frame_index": [0, 1, 4, 3, 2],
        "action": [[0.0], [0.0], [np.nan], [0.0], [0.0]],
    }
    parquet.write_table(pa.table(frames), tmp_path / "x.parquet")
    for read in (Episodes.load, lambda root: open_shards(root).load()):
        with pytest.raises(ActionValueError, match="action of episode 0, frame 4, dim 0"):
            read(tmp_path)


def test_angles_that_wrap_are_told_as_of_a_whole_reading(tmp_path):
    turning = [
        np.stack([(np.arange(200) * 0.1 + np.pi) % (2 * np.pi) - np.pi, np.zeros(200)], 1).astype(np.float32)
    ] * 2
    root = write_frames(tmp_path / "set", Episodes(turning, states=[np.zeros((200, 1))] * 2))
    for read in (Episodes.load, lambda root: open_shards(root).load()):
        with pytest.warns(UserWarning, match=r"action dims \[0\] of 'set' jump by about 2\*pi") as told:
            read(root)
        assert [one.filename for one in told] == [__file__]


def test_of_many_broken_files_the_first_reasons_are_told(tmp_path):
    episodes = recorded(30)
    root = write_frames(tmp_path / "set", episodes, np.cumsum(episodes.lengths)[:-1].tolist())
    for number in range(20):
        truncate(root / f"file-{number:03d}.parquet")
    with pytest.warns(UserWarning, match="20 of 30 files of set left out as broken") as told:
        shards = open_shards(root, skip_broken=True)
    assert str(told[0].message).endswith("; and 12 more, see `skipped`")
    assert len(shards.skipped) == 20
    assert len(str(told[0].message)) < 3000


def test_nothing_to_load(tmp_path):
    shards = open_shards(write_frames(tmp_path / "set", recorded(3))).only(np.zeros(0, np.int64))
    with pytest.raises(FormatError, match=r"expected episodes that can be read in set, got none$"):
        shards.load()


def test_a_file_that_changes_after_it_was_indexed_is_not_read(tmp_path):
    root = write_frames(tmp_path / "set", recorded(12, seed=3), [60])
    for shards in (open_shards(root), open_shards(root, skip_broken=True)):  # nor is it a broken one
        whole = shards.load()
        other = write_frames(tmp_path / "other", recorded(12, seed=4), [60])
        for number in (0, 1):
            file = root / shards.files.files[number]
            before = file.read_bytes()
            for now in ((other / file.name).read_bytes(), before[: len(before) // 2], b"", None):  # half written, too
                file.unlink() if now is None else file.write_bytes(now)
                got = "no such file" if now is None else "something else"
                told = rf"set/{file.name}: expected what it held when it was indexed, got {got}"
                for changed in (lambda n=number, shards=shards: list(shards.pieces(n, [])), shards.load):
                    with pytest.raises(FormatError, match=told):
                        changed()
            file.write_bytes(before)
        same(shards.load(), whole)


def test_rows_of_several_widths_are_named(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    frames = {"episode_index": [0, 0, 1], "action": [[2.0], [0.0], [1.0, 1.0]]}
    parquet.write_table(pa.table(frames), tmp_path / "x.parquet")
    with pytest.raises(FormatError, match=r"x\.parquet: .*one length"):
        open_shards(tmp_path).load()


def test_a_missing_column_is_named(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = write_frames(tmp_path / "set", recorded(3))
    parquet.write_table(pa.table({"action": [[1.0, 2.0, 3.0]]}), root / "file-001.parquet")
    with pytest.raises(FormatError, match=r"set/file-001\.parquet: .*expected the columns"):
        open_shards(root)


def test_files_without_rows_are_passed_over(tmp_path):
    episodes = recorded(6)
    root = write_frames(tmp_path / "set", episodes, [0, 0, 30, 30, episodes.frames])
    same(open_shards(root).load(), Episodes.load(root))


def test_other_layouts_are_sent_to_load(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    with pytest.raises(FormatError, match=r"got the layout arrays in x\.npy: Episodes\.load"):
        open_shards(tmp_path / "x.npy")
    with pytest.raises(FormatError, match="only flat parquet has a choice"):
        open_shards(DEMO_DATA, episode="episode_index")


def test_one_file_that_tells_no_episodes_apart_is_doubted(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"action": [[1.0], [2.0]]}), tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match="tells episodes apart"):
        assert open_shards(tmp_path / "x.parquet").load().lengths == (2,)


def test_progress_counts_the_index(tmp_path):
    told = []
    open_shards(write_frames(tmp_path, recorded(4), [20, 40]), progress=lambda *one: told.append(one))
    assert told == [("index", i, 3) for i in (1, 2, 3)]


def test_a_copy_of_the_hub_is_fetched_where_it_is_missing(tmp_path, monkeypatch):
    root = write_frames(tmp_path / "set", recorded(4))
    shards = open_shards(root)
    assert shards.here() is shards
    away = replace(shards, files=replace(shards.files, root=tmp_path / "elsewhere"), hub=("me/set", "abc"))
    asked = []
    monkeypatch.setattr(
        "action_tokenizers.download.fetch", lambda repo, files, revision: asked.append((repo, revision)) or root
    )
    same(away.here().load(), shards.load())
    assert asked == [("me/set", "abc")]


def test_half_a_copy_of_the_hub_is_fetched_again(tmp_path, monkeypatch):
    shards = open_shards(write_frames(tmp_path / "set", recorded(4), [20]), skip_broken=True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "file-000.parquet").write_bytes((tmp_path / "set" / "file-000.parquet").read_bytes())
    away = replace(shards, files=replace(shards.files, root=tmp_path / "half"), hub=("me/set", "half"))
    monkeypatch.setattr("action_tokenizers.download.fetch", lambda *_, **__: tmp_path / "set")
    same(away.here().load(), shards.load())
    with pytest.raises(FileNotFoundError, match=r"no file-001\.parquet on this machine"):
        replace(away, hub=None).here()


@pytest.mark.parametrize("hub", [True, False])
def test_a_file_that_is_indexed_where_it_is_missing(tmp_path, monkeypatch, hub):
    """On another machine: of the Hub it is fetched, any other is no broken file that is left out."""
    root = write_frames(tmp_path / f"set {hub}", recorded(4), [20, 40])
    wanted = open_shards(root).load()
    if hub:
        monkeypatch.setattr("action_tokenizers.data.shards.locate", lambda *_: (root, "me/set"))
    asked = []
    monkeypatch.setattr(
        "action_tokenizers.download.fetch", lambda *_, revision: asked.append(revision) or tmp_path / "gone"
    )

    def each(function, items, stage):
        root.rename(tmp_path / "gone")
        try:
            return [function(number) for number in items]
        finally:
            (tmp_path / "gone").rename(root)

    source = "me/set" if hub else root
    if hub:
        same(replace(open_shards(source, each=each, skip_broken=True), source=wanted.source).load(), wanted)
        assert asked == [root.name]  # once for all files
    else:
        with pytest.raises(FileNotFoundError, match=r"no file-000\.parquet on this machine"):
            open_shards(source, each=each, skip_broken=True)


CROWD = """
    import resource, sys
    from action_tokenizers.data.shards import open_shards
    shards = open_shards(sys.argv[1])
    import os
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 6, used + 6))
    shards = open_shards(sys.argv[1])
    assert len(shards) > used + 6
    print(shards.load().frames)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
def test_more_files_than_a_process_may_open(tmp_path):
    episodes = recorded(12)
    root = write_frames(tmp_path / "set", episodes, range(1, episodes.frames, 3), rows_per_group=1)
    command = [sys.executable, "-c", textwrap.dedent(CROWD), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{episodes.frames}\n", done.stderr


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_an_fps_that_is_no_rate_is_refused_before_anything_is_read(tmp_path, fps, monkeypatch):
    root = write_frames(tmp_path / "set", recorded(2))
    monkeypatch.setattr("action_tokenizers.data.shards.layout_of", lambda path: pytest.fail(f"read {path}"))
    with pytest.raises(ActionValueError, match="expected fps > 0"):
        open_shards(root, fps=fps, skip_broken=True)
