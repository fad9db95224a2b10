import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, ChunkSample, Episodes, Relative
from action_tokenizers.cli import DEMO_DATA
from action_tokenizers.data import open_shards, sample_shards, stream
from action_tokenizers.data.streaming import is_large
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from tests.fakes.hub import FakeHub, Repo
from tests.fakes.hub_client import hub_client
from tests.fakes.shard_files import recorded, spoil_actions, truncate, write_frames

pytest.importorskip("pyarrow")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*shorter than the horizon"),  # some episodes are meant to be
    pytest.mark.filterwarnings("ignore:.* left out"),  # and some files broken
]

HORIZON = 5


@pytest.fixture
def root(tmp_path) -> Path:
    episodes = recorded(12)
    return write_frames(tmp_path / "set", episodes, [0, 31, 60, 60, 150])


def whole(root: Path, k: int = 40, **more) -> ChunkSample:
    return ChunkSample(k).add(Episodes.load(root), HORIZON, **more)


@pytest.mark.parametrize("k", [1, 40, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_a_sample_of_the_stream_is_that_of_the_whole(tmp_path, seed, k):
    rng, episodes = np.random.default_rng(seed), recorded(12, seed=seed)
    cuts = sorted(rng.integers(0, episodes.frames + 1, 6).tolist())
    root = write_frames(tmp_path / "set", episodes, cuts, rows_per_group=int(rng.integers(1, 30)))
    wanted = whole(root, k).digest()
    assert ChunkSample.of(stream(root), HORIZON, k).digest() == wanted
    assert sample_shards(root, k=k, horizon=HORIZON).digest() == wanted


def test_the_horizon_of_a_sample_is_one_second_of_the_whole(root):
    assert sample_shards(root).digest() == ChunkSample().add(Episodes.load(root)).digest()
    (root / "dataset.json").unlink()
    with pytest.raises(ActionShapeError, match="set does not say its fps: give horizon="):
        sample_shards(root)


def test_a_fit_takes_a_stream(root):
    streamed = BinningTokenizer(horizon=HORIZON).fit(stream(root, state=False))
    loaded = BinningTokenizer(horizon=HORIZON).fit(Episodes.load(root))
    assert streamed.provenance == loaded.provenance
    assert all((a == b).all() for a, b in zip(streamed.buffers(), loaded.buffers(), strict=True))


def test_stride_weights_seed_and_relative_actions(root):
    relative = Relative("state")
    weights = {"arm": 2.0}
    wanted = ChunkSample(40, 7, weights).add(Episodes.load(root, key="arm"), HORIZON, 2, relative)
    found = sample_shards(root, k=40, seed=7, weights=weights, horizon=HORIZON, stride=2, relative=relative, key="arm")
    assert found.digest() == wanted.digest()


def test_progress(root):
    told: list[tuple] = []
    list(stream(root, progress=lambda *one: told.append(one)))
    assert told == [("index", i, 6) for i in range(1, 7)] + [("read", i, 6) for i in range(1, 7)]
    told.clear()
    sample_shards(root, horizon=HORIZON, progress=lambda *one: told.append(one))
    assert told[-1] == ("sample", 6, 6)


def test_a_stream_begins_lazily_and_only_reads_parquet(tmp_path, root):
    unread = stream(tmp_path / "nothing there")
    with pytest.raises(FormatError, match="no such path"):
        next(unread)
    np.save(tmp_path / "x.npy", np.zeros((9, 2)))
    with pytest.raises(FormatError, match=r"Episodes\.load reads it as a whole"):
        next(stream(tmp_path / "x.npy"))


# ---- interruption -----------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupting(after: int):
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "sample" and done == after:
            raise Interrupted

    return progress


@pytest.mark.parametrize("after", range(1, 6))
def test_an_interrupted_sample_goes_on_to_the_same_bytes(root, tmp_path, after, monkeypatch):
    partial = tmp_path / "partial.safetensors"
    settings = {"k": 40, "horizon": HORIZON, "resume": partial, "save_every": 0}
    with pytest.raises(Interrupted):
        sample_shards(root, progress=interrupting(after), **settings)
    so_far = ChunkSample.load(partial)  # a sample at any time
    assert sum(so_far.count.values()) <= sum(whole(root).count.values())
    read: list[int] = []
    original = type(open_shards(root)).read
    monkeypatch.setattr(
        type(open_shards(root)), "read", lambda self, n, *rest: (read.append(n), original(self, n, *rest))[1]
    )
    resumed = sample_shards(root, **settings)
    assert read == list(range(after, 6))
    resumed.save(tmp_path / "a")
    whole(root).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sample_shards(root, **settings).digest() == resumed.digest()


def test_what_is_not_yet_saved_is_read_again(root, tmp_path):
    partial = tmp_path / "partial"
    with pytest.raises(Interrupted):
        sample_shards(root, k=40, horizon=HORIZON, resume=partial, save_every=1e9, progress=interrupting(4))
    assert not partial.exists()
    assert sample_shards(root, k=40, horizon=HORIZON, resume=partial).digest() == whole(root).digest()


@pytest.mark.parametrize("other", [{"k": 41}, {"stride": 2}, {"seed": 1}, {"key": "x"}, {"horizon": 4}])
def test_a_partial_sample_of_other_settings_is_refused(root, tmp_path, other):
    partial = tmp_path / "partial"
    settings = {"k": 40, "horizon": HORIZON, "resume": partial}
    sample_shards(root, **settings)
    name = "data" if "key" in other else next(iter(other))
    with pytest.raises(FormatError, match=f"got .*{name}.* instead of .*delete it to begin anew"):
        sample_shards(root, **(settings | other))


def test_a_partial_sample_of_other_data_or_none_is_refused(root, tmp_path):
    partial = tmp_path / "partial"
    sample_shards(root, horizon=HORIZON, resume=partial)
    write_frames(root, recorded(12, seed=1), [0, 31, 60, 60, 150])
    with pytest.raises(FormatError, match="data"):
        sample_shards(root, horizon=HORIZON, resume=partial)
    whole(root).save(partial)
    with pytest.raises(FormatError, match="without progress"):
        sample_shards(root, horizon=HORIZON, resume=partial)
    partial.write_bytes(b"no sample")
    with pytest.raises(
        FormatError,
        match=rf"expected an unfinished chunk sample at {re.escape(str(partial))}, got .*: delete it to begin anew",
    ):
        sample_shards(root, horizon=HORIZON, resume=partial)


KILLED = """
    import os, sys
    from action_tokenizers.data import sample_shards

    def die(stage, done, total):
        if stage == "sample" and done == 3:
            os._exit(9)

    sample_shards(sys.argv[1], k=40, horizon=5, resume=sys.argv[2], save_every=0, progress=die)
"""


def test_a_killed_process_leaves_a_sample_to_go_on_from(root, tmp_path):
    partial = tmp_path / "partial"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(root), str(partial)]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 9
    found = sample_shards(root, k=40, horizon=HORIZON, resume=partial)
    assert found.digest() == whole(root).digest()


# ---- broken files -----------------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(tmp_path) -> tuple[Path, list[int], Episodes]:
    """Four files: the second loses its actions, the last its footer; whole episodes each but for 3 and 8."""
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]) - 1, int(ends[7]), int(ends[9])])
    spoil_actions(root / "file-001.parquet")
    truncate(root / "file-003.parquet")
    return root, [0, 1, 2, 8], episodes


def test_broken_files_are_refused_by_name(spoiled):
    root, _, _ = spoiled
    with pytest.raises(FormatError, match=r"set/file-003\.parquet"):
        sample_shards(root, horizon=HORIZON)
    (root / "file-003.parquet").unlink()
    for read in (lambda: sample_shards(root, horizon=HORIZON), lambda: list(stream(root))):
        with pytest.raises(FormatError, match=r"set/file-001\.parquet"):
            read()


def test_left_out_files_are_named_and_counted_and_no_episode_comes_in_part(spoiled, tmp_path):
    root, names, episodes = spoiled
    found = sample_shards(root, horizon=HORIZON, k=40, skip_broken=True)
    rest = Episodes([episodes.actions[i] for i in names], names=tuple(names), source="set", fps=10.0, key="default")
    wanted = ChunkSample(40).add(rest, HORIZON)
    assert found.count == wanted.count
    np.testing.assert_array_equal(found.actions, wanted.actions)
    assert found.skipped_shards == ("set/file-001.parquet", "set/file-003.parquet")
    # 3 goes on in the spoiled file, 4 to 7 begin in it, 9 may go on in the one without a footer
    assert found.lost_episodes == 1 + 4 + 1
    found.save(tmp_path / "saved")
    again = ChunkSample.load(tmp_path / "saved")
    assert (again.skipped_shards, again.lost_episodes) == (found.skipped_shards, found.lost_episodes)
    assert again.digest() == found.digest()
    with pytest.warns(UserWarning, match="left out") as told:
        streamed = [name for piece in stream(root, skip_broken=True) for name in piece.names]
    assert streamed == names
    said = [str(one.message) for one in told]
    assert len(said) == 3
    assert said[0].startswith(
        "1 of 4 files of set left out as broken, and 1 episodes that they may cut off: set/file-0"
    )
    assert said[1].startswith("1 episode of set/file-000.parquet left out: 3 goes on in set/file-001.parquet, which")
    assert said[2].startswith("set/file-001.parquet left out, episodes lost with it: 4: ")
    assert {Path(one.filename).name for one in told} == {"test_streaming.py"}


def test_an_interrupted_sample_counts_what_it_left_out_once(spoiled, tmp_path):
    root, _, _ = spoiled
    settings = {"horizon": HORIZON, "k": 40, "skip_broken": True}
    with pytest.raises(Interrupted):
        sample_shards(root, resume=tmp_path / "p", save_every=0, progress=interrupting(3), **settings)
    resumed = sample_shards(root, resume=tmp_path / "p", **settings)
    assert resumed.digest() == sample_shards(root, **settings).digest()
    # and what is left in the file is that sample, what the index left out included, however often it is opened again
    for _ in range(2):
        assert ChunkSample.load(tmp_path / "p").digest() == resumed.digest()
        assert sample_shards(root, resume=tmp_path / "p", **settings).digest() == resumed.digest()
    assert (resumed.skipped_shards, resumed.lost_episodes) == (("set/file-001.parquet", "set/file-003.parquet"), 6)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ({"weights": {"arm": 1.0}}, r"expected a weight for every key, got none for 'default' of set"),
        ({"horizon": 0}, "expected horizon >= 1"),
        ({"stride": 0}, "expected stride >= 1"),
        ({"key": ""}, "expected a key"),
        ({"fps": 0}, "expected fps > 0, got 0"),
        ({"fps": -1}, "expected fps > 0, got -1"),
        ({"fps": float("nan")}, "expected fps > 0, got nan"),
        ({"relative": Relative(("state", "state"))}, "expected one mode per action dim"),
        ({"relative": Relative("state"), "state": False}, "expected states of at least 3 dims"),
    ],
)
def test_a_mistake_of_the_caller_is_no_broken_file(root, mistake, error):
    with pytest.raises((ActionShapeError, ActionValueError), match=error):
        sample_shards(root, **({"k": 40, "horizon": HORIZON, "skip_broken": True} | mistake))


def test_contents_that_changed_at_the_same_size_are_not_mixed_into_a_partial_sample(tmp_path):
    episodes = recorded(12)
    root = write_frames(tmp_path / "set", episodes, [31, 90])
    settings = {"k": 40, "horizon": HORIZON, "resume": tmp_path / "partial"}
    with pytest.raises(Interrupted):
        sample_shards(root, save_every=0, progress=interrupting(2), **settings)
    sizes = [file.stat().st_size for file in sorted(root.glob("*.parquet"))]
    write_frames(root, replace(episodes, actions=[-actions for actions in episodes.actions]), [31, 90])
    assert [file.stat().st_size for file in sorted(root.glob("*.parquet"))] == sizes
    with pytest.raises(FormatError, match=r"got data .* instead of .*delete it to begin anew"):
        sample_shards(root, **settings)


def test_nan_is_refused_by_place_and_leaves_the_file_out_when_asked_to(tmp_path):
    episodes = recorded(6)
    root = write_frames(tmp_path / "set", episodes, [int(np.cumsum(episodes.lengths)[2])], dtypes=("float64",))
    import pyarrow.parquet as parquet

    from tests.fakes.shard_files import lists

    table = parquet.read_table(root / "file-001.parquet")
    actions = np.array(table.column("action").to_pylist())
    actions[0, 1] = np.inf
    at = table.column_names.index("action")
    parquet.write_table(table.set_column(at, "action", lists(actions)), root / "file-001.parquet")
    with pytest.raises(ActionValueError, match="episode 3, frame 0, dim 1"):
        sample_shards(root, horizon=HORIZON)
    found = sample_shards(root, horizon=HORIZON, skip_broken=True)
    assert (found.skipped_shards, found.lost_episodes) == (("set/file-001.parquet",), 3)


def test_who_meets_a_broken_file_can_leave_it_out_and_go_on_but_not_back(tmp_path):
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]), int(ends[7])])
    spoil_actions(root / "file-002.parquet")
    settings = {"horizon": HORIZON, "resume": tmp_path / "part", "save_every": 0}
    with pytest.raises(FormatError, match="set/file-002"):
        sample_shards(root, **settings)
    read = []
    with pytest.warns(UserWarning, match="set/file-002.parquet left out"):
        found = sample_shards(root, skip_broken=True, progress=lambda *told: read.append(told), **settings)
    assert [told for told in read if told[0] == "sample"] == [("sample", 3, 3)]
    assert found.skipped_shards == ("set/file-002.parquet",)
    with pytest.raises(FormatError, match="skip_broken True instead of False"):
        sample_shards(root, **settings)


def test_a_broken_file_within_one_episode_is_named_once(tmp_path):
    episodes = recorded(4, seed=3)
    length = episodes.lengths[0]
    root = write_frames(tmp_path / "set", episodes, [3, 6, length], rows_per_group=1)
    spoil_actions(root / "file-001.parquet")
    shards = open_shards(root, skip_broken=True)
    assert not len(shards.own(1))
    found = sample_shards(shards, horizon=HORIZON)
    assert (found.skipped_shards, found.lost_episodes) == (("set/file-001.parquet",), 1)
    with pytest.warns(UserWarning, match="left out") as told:
        assert [name for piece in stream(shards) for name in piece.names] == [1, 2, 3]
    goes_on = "1 episode of set/file-000.parquet left out: 0 goes on in set/file-001.parquet, which cannot be used: "
    assert [str(one.message).startswith(f"{goes_on}expected a whole parquet file") for one in told] == [True]


def test_what_is_left_out_of_a_sample_is_told_with_its_reason(spoiled):
    root, _, _ = spoiled
    with pytest.warns(UserWarning, match="left out") as told:
        sample_shards(root, horizon=HORIZON, skip_broken=True)
    said = [str(one.message) for one in told]
    assert said[0].startswith(
        "1 of 4 files of set left out as broken, and 1 episodes that they may cut off: set/file-0"
    )
    assert said[1].startswith("1 episode of set/file-000.parquet left out: 3 goes on in set/file-001.parquet")
    assert said[2].startswith("set/file-001.parquet left out, episodes lost with it: 4: set/file-001.parquet: expected")
    assert len(said) == 3
    assert {Path(one.filename).name for one in told} == {"test_streaming.py"}


def test_an_episode_that_spans_files_and_is_refused_for_its_own_values_is_told_as_such(tmp_path):
    episodes = recorded(4, seed=3)
    ends = np.cumsum(episodes.lengths)
    spoiled = [actions.copy() for actions in episodes.actions]
    spoiled[1][0, 2] = np.nan

    class Unchecked:
        actions, states, lengths, names = spoiled, episodes.states, episodes.lengths, episodes.names

    root = write_frames(tmp_path / "set", Unchecked(), [ends[1] - 2])
    with pytest.warns(UserWarning, match="left out") as told:
        found = sample_shards(root, horizon=HORIZON, skip_broken=True)
    assert (found.skipped_shards, found.lost_episodes) == (("set/file-000.parquet",), 2)
    reason = r"set/file-000\.parquet left out, episodes lost with it: 2: .*nan at action of episode 1, frame 0, dim 2"
    assert [bool(re.match(reason, str(one.message))) for one in told] == [True]


def test_nothing_left_without_the_broken_files(tmp_path):
    root = write_frames(tmp_path / "set", recorded(12), [31])
    spoil_actions(root / "file-000.parquet")
    spoil_actions(root / "file-001.parquet")
    reason = r"(?s)got 0 shorter ones and 2 files that cannot be used: set/file-000\.parquet left out.*got.*; repair"
    with pytest.raises(FormatError, match=reason):
        sample_shards(root, horizon=3, skip_broken=True)
    root = write_frames(tmp_path / "other", recorded(12), [120])
    truncate(root / "file-001.parquet")
    reason = r"1 files that cannot be used: other/file-001\.parquet left out: .*whole parquet file.*; repair"
    with pytest.raises(FormatError, match=reason):
        sample_shards(root, horizon=99, skip_broken=True)
    root = write_frames(tmp_path / "none", recorded(1), [3])
    truncate(root / "file-001.parquet")
    with pytest.raises(FormatError, match=r"got none outside of its broken files: none/file-001\.parquet: .*whole"):
        sample_shards(root, horizon=3, skip_broken=True)


def test_options_for_what_is_already_open_are_refused(root):
    shards = open_shards(root)
    with pytest.raises(ActionValueError, match=r"expected no fps, skip_broken for a data set that is already open"):
        sample_shards(shards, horizon=HORIZON, skip_broken=True, fps=3)
    with pytest.raises(ActionValueError, match=r"expected no nonsense for a data set that is already open"):
        next(stream(shards, nonsense=1))
    assert sample_shards(shards, horizon=HORIZON, k=40).digest() == whole(root).digest()


def test_a_stream_without_a_horizon_goes_by_its_first_piece(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    actions = [rng.normal(size=(length, 2)) for length in (4, 4, 4, 40, 40, 40, 40)]
    root = write_frames(tmp_path / "set", Episodes(actions, states=actions, fps=10.0), [12])
    horizons = (ChunkSample.of(data).horizon for data in (stream(root), Episodes.load(root)))
    assert (*horizons, sample_shards(root).horizon) == (4, 10, 10)


def test_nothing_long_enough(root):
    with pytest.raises(ActionShapeError, match="at least horizon 99 steps in set, got 12 episodes"):
        sample_shards(root, horizon=99)


def test_angles_that_wrap_are_told_of(tmp_path):
    time = np.arange(200) / 10
    angle = ((time + np.pi) % (2 * np.pi) - np.pi)[:, None]
    episodes = Episodes([angle] * 3, states=[angle] * 3)
    root = write_frames(tmp_path / "set", episodes)
    with pytest.warns(UserWarning, match=r"action dims \[0\] of 'set' jump by about 2\*pi"):
        sample_shards(root, horizon=40)


def test_large_is_told_by_the_bytes_of_parquet(root, tmp_path, monkeypatch):
    assert not is_large(root)
    assert not is_large(DEMO_DATA)
    monkeypatch.setattr("action_tokenizers.data.streaming.LARGE", 1000)
    assert is_large(root)
    assert is_large(root / "file-001.parquet")
    np.save(tmp_path / "x.npy", np.zeros(9999))
    assert not is_large(tmp_path / "x.npy")
    size = sum(file.stat().st_size for file in root.glob("*.parquet"))
    (root / "folder.parquet").mkdir()
    monkeypatch.setattr("action_tokenizers.data.streaming.LARGE", size + 1)
    assert not is_large(root)


def test_a_data_set_of_the_hub(tmp_path):
    files = {path.relative_to(DEMO_DATA).as_posix(): path for path in DEMO_DATA.rglob("*") if path.is_file()}
    with FakeHub() as hub, hub_client(hub.environment(tmp_path)) as online:
        hub.datasets["lab/arm"] = Repo({name: path.read_bytes() for name, path in files.items()})
        source, (repository, commit), digest = online(
            "from action_tokenizers.data import open_shards, sample_shards\n"
            "shards = open_shards('lab/arm')\n"
            "(shards.source, shards.hub, sample_shards(shards, horizon=8).digest())"
        )
    assert source == repository == "lab/arm"
    assert commit == hub.datasets["lab/arm"].sha("main")
    assert digest == ChunkSample().add(replace(Episodes.load(DEMO_DATA), source="lab/arm"), 8).digest()
