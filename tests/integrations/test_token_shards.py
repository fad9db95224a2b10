import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import ActionTokenizer, BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, Relative
from action_tokenizers.data import ChunkSample, Shards, chunks, open_shards
from action_tokenizers.data import shards as shards_module
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError, NotFittedError
from action_tokenizers.integrations import token_shards
from action_tokenizers.integrations.token_shards import (
    MANIFEST,
    MARK,
    encode_shards,
    finish,
    prepare,
    read_manifest,
    tokenizer_digest,
    write_shard,
)
from tests.fakes.shard_files import recorded, spoil_actions, truncate, write_frames

parquet = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.filterwarnings("ignore:.*shorter than the horizon")  # some episodes are meant to be

HORIZON = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_frames(tmp_path_factory.mktemp("data") / "set", recorded(12), [0, 31, 60, 60, 150])


@pytest.fixture(scope="module")
def tokenizer(root) -> FASTTokenizer:
    return FASTTokenizer(horizon=HORIZON, vocab_size=128).fit(Episodes.load(root))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_every_chunk_is_encoded_once_as_the_tokenizer_would(root, tokenizer, tmp_path):
    manifest = encode_shards(tokenizer, root, tmp_path / "out", stride=3)
    table = parquet.read_table(tmp_path / "out").to_pydict()
    wanted = chunks(Episodes.load(root), HORIZON, 3, pad_tail=True)
    places = list(zip(table["episode_index"], table["start"], strict=True))
    assert places == list(zip(wanted.episode.tolist(), wanted.start.tolist(), strict=True))
    ids = tokenizer.encode(wanted.actions, action_is_pad=wanted.action_is_pad)
    assert table["tokens"] == [row[row != tokenizer.pad_id].tolist() for row in ids]
    assert table["frames"] == (~wanted.padding).sum(axis=1).tolist()
    assert manifest["chunks"] == len(wanted)
    assert manifest["episodes"] == 12
    assert manifest["tokens"] == sum(map(len, table["tokens"]))
    assert read_manifest(tmp_path / "out") == manifest
    assert {one["file"] for one in manifest["files"]} == {file.name for file in (tmp_path / "out").glob("*.parquet")}


def test_every_file_says_whose_tokens_it_holds(root, tokenizer, tmp_path):
    manifest = encode_shards(tokenizer, root, tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "saved")
    digest = tokenizer_digest(ActionTokenizer.from_pretrained(tmp_path / "saved"))
    assert manifest["tokenizer"] == digest == tokenizer_digest(tokenizer)
    for file in (tmp_path / "out").glob("*.parquet"):
        said = json.loads(parquet.read_schema(file).metadata[b"action_tokenizers"])
        assert (said["tokenizer"], said["vocab_size"], said["horizon"]) == (digest, tokenizer.vocab_size, HORIZON)
    assert digest != tokenizer_digest(FASTTokenizer(horizon=HORIZON, vocab_size=100).fit(Episodes.load(root)))
    with pytest.raises(NotFittedError):
        tokenizer_digest(FASTTokenizer())


def test_blocks_do_not_show(root, tokenizer, tmp_path, monkeypatch):
    whole = encode_shards(tokenizer, root, tmp_path / "a")
    monkeypatch.setattr(token_shards, "BLOCK", 40)
    small = encode_shards(tokenizer, root, tmp_path / "b")
    assert parquet.read_table(tmp_path / "a") == parquet.read_table(tmp_path / "b")
    assert (whole["episodes"], whole["tokens"]) == (small["episodes"], small["tokens"])


def test_relative_actions_keep_what_they_are_relative_to(root, tmp_path):
    relative = Relative("state")
    sample = ChunkSample(horizon=HORIZON).add(Episodes.load(root), relative=relative)
    tokenizer = BinningTokenizer(horizon=HORIZON, range="minmax").fit(sample)
    encode_shards(tokenizer, root, tmp_path / "out")
    table = parquet.read_table(tmp_path / "out").to_pydict()
    wanted = chunks(Episodes.load(root), HORIZON, HORIZON, relative, pad_tail=True)
    np.testing.assert_array_equal(np.array(table["reference"], np.float32), wanted.reference)
    decoded = relative.invert(tokenizer.decode(np.array(table["tokens"])), np.array(table["reference"], np.float32))
    plain = chunks(Episodes.load(root), HORIZON, HORIZON, pad_tail=True)
    assert np.abs(decoded - plain.actions)[~plain.padding].max() < 0.1


def test_a_tokenizer_of_open_horizon_takes_one_second(root, tmp_path):
    tokenizer = KMeansTokenizer(codebook_size=8, scope="step").fit(list(Episodes.load(root).actions))
    assert tokenizer.horizon is None
    assert encode_shards(tokenizer, root, tmp_path / "out")["horizon"] == open_shards(root).horizon


@pytest.mark.parametrize("stop", range(1, 6))
def test_an_interrupted_encoding_is_incomplete_and_goes_on_to_the_same_bytes(root, tokenizer, tmp_path, stop):
    class Stopped(Exception):
        pass

    def progress(stage, done, total):
        if stage == "encode" and done == stop:
            raise Stopped

    with pytest.raises(Stopped):
        encode_shards(tokenizer, root, tmp_path / "out", progress=progress)
    with pytest.raises(FormatError, match="got an unfinished one"):
        read_manifest(tmp_path / "out")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    encode_shards(tokenizer, root, tmp_path / "out")
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert before.items() <= after.items()  # what was finished was not written again
    encode_shards(tokenizer, root, tmp_path / "whole")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert not (tmp_path / "out" / MARK).exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_finished_file_that_is_damaged_is_written_again(root, tokenizer, tmp_path, damage):
    encode_shards(tokenizer, root, tmp_path / "whole")
    encode_shards(tokenizer, root, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.parquet"))
    data = bytearray(files[1].read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        metadata = parquet.read_metadata(files[1]).row_group(0).column(0)
        data[(metadata.dictionary_page_offset or metadata.data_page_offset) + metadata.total_compressed_size - 1] ^= 1
    else:
        data = files[0].read_bytes()
    files[1].write_bytes(bytes(data))
    encode_shards(tokenizer, root, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_folder_of_something_else_is_refused(root, tokenizer, tmp_path):
    encode_shards(tokenizer, root, tmp_path / "out")
    with pytest.raises(FormatError, match=r"of another stride: encode into a folder of its own"):
        encode_shards(tokenizer, root, tmp_path / "out", stride=1)
    other = FASTTokenizer(horizon=HORIZON, vocab_size=100).fit(Episodes.load(root))
    with pytest.raises(FormatError, match="of another pad_id, tokenizer, vocab_size"):
        encode_shards(other, root, tmp_path / "out")
    assert read_manifest(tmp_path / "out")["stride"] == HORIZON  # and is left as it was
    manifest = read_manifest(tmp_path / "out")
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(FormatError, match=r"with tokens-000001\.parquet and no _manifest\.json"):
        encode_shards(tokenizer, root, tmp_path / "out")
    saved = tokenizer.save_pretrained(tmp_path / "tok")
    held = bytes_of(saved)
    with pytest.raises(FormatError, match="expected a new or empty folder"):  # it does not become two things at once
        encode_shards(tokenizer, root, saved)
    assert bytes_of(saved) == held
    for inside in (root, root / "tokens"):
        with pytest.raises(ActionValueError, match="whose parquet files are not those of the data"):
            encode_shards(tokenizer, root, inside)
    assert encode_shards(tokenizer, root / "file-001.parquet", root.parent / "set-tokens", fps=10.0)["chunks"]
    with pytest.raises(FormatError, match=r"expected _manifest\.json in elsewhere"):
        read_manifest(tmp_path / "elsewhere")
    for other in ({}, manifest | {"version": 0}, manifest | {"files": None}, manifest | {"files": [{"file": "x"}]}):
        (tmp_path / "out" / MANIFEST).write_text(json.dumps(other))
        with pytest.raises(FormatError, match="token shards of version 1"):
            read_manifest(tmp_path / "out")


def test_data_that_do_not_fit_the_tokenizer(root, tokenizer, tmp_path):
    other = write_frames(tmp_path / "other", recorded(3, action_dim=4))
    with pytest.raises(ActionShapeError, match="expected actions of 3 dims, got 4 in other"):
        encode_shards(tokenizer, other, tmp_path / "out")
    two = BinningTokenizer(horizon=HORIZON).fit([Episodes.load(root, key="a"), Episodes.load(root, key="b")])
    with pytest.raises(ActionShapeError, match=r"expected key= among \['a', 'b'\]"):
        encode_shards(two, root, tmp_path / "out")
    assert encode_shards(two, root, tmp_path / "out", key="b")["key"] == "b"
    steps = KMeansTokenizer(codebook_size=8, scope="step").fit(list(Episodes.load(root).actions))
    no_clock = write_frames(tmp_path / "no clock", recorded(3), fps=None)
    with pytest.raises(ActionShapeError, match="does not say its fps"):
        encode_shards(steps, no_clock, tmp_path / "out2")


def test_nothing_to_encode(root, tokenizer, tmp_path):
    encoding = prepare(tokenizer, root, tmp_path / "out")
    assert write_shard(encoding, 0).file is None  # a file without rows
    with pytest.raises(ActionValueError, match="nothing to encode"):
        finish(encoding, [write_shard(encoding, 0)])


def test_broken_files_are_left_out_whole_named_and_counted(tokenizer, tmp_path):
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]) - 1, int(ends[7]), int(ends[9])])
    spoil_actions(root / "file-001.parquet")
    truncate(root / "file-003.parquet")
    with pytest.raises(FormatError, match=r"set/file-003\.parquet"):
        encode_shards(tokenizer, root, tmp_path / "out")
    with pytest.warns(UserWarning, match="left out") as told:
        manifest = encode_shards(tokenizer, root, tmp_path / "out", skip_broken=True)
    assert [str(one.message).split(",")[0] for one in told] == [
        "1 of 4 files of set left out as broken",
        "1 episode of set/file-000.parquet left out: 3 goes on in set/file-001.parquet",
        "set/file-001.parquet left out",
    ]
    assert manifest["skipped_shards"] == ["set/file-001.parquet", "set/file-003.parquet"]
    assert manifest["lost_episodes"] == 6
    assert set(parquet.read_table(tmp_path / "out").to_pydict()["episode_index"]) == {0, 1, 2, 8}
    first = bytes_of(tmp_path / "out")
    with pytest.warns(UserWarning, match="left out"):
        assert encode_shards(tokenizer, root, tmp_path / "out", skip_broken=True) == manifest
    assert bytes_of(tmp_path / "out") == first


def test_what_was_left_out_is_named_also_where_nothing_is_left(tokenizer, tmp_path):
    root = write_frames(tmp_path / "set", recorded(12, seed=3), [60])
    for file in root.glob("*.parquet"):
        spoil_actions(file)
    told = "expected chunks in set, got none: left out as broken: set/file-000.parquet, set/file-001.parquet"
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ActionValueError, match=told):
        encode_shards(tokenizer, root, tmp_path / "out", skip_broken=True)


def test_a_broken_file_in_which_no_episode_begins_is_named_too(tokenizer, tmp_path):
    episodes = recorded(12, seed=3)
    begin, end = np.cumsum(episodes.lengths)[4:6].tolist()
    root = write_frames(tmp_path / "set", episodes, [begin + 5, end - 1])  # the second has steps of one episode alone
    spoil_actions(root / "file-001.parquet")
    told = "5 goes on in set/file-001.parquet, which cannot be used: expected a whole parquet file at file-001.parquet"
    with pytest.warns(UserWarning, match=told):
        manifest = encode_shards(tokenizer, root, tmp_path / "out", skip_broken=True)
    assert (manifest["skipped_shards"], manifest["lost_episodes"]) == (["set/file-001.parquet"], 1)
    encoding = prepare(tokenizer, root, tmp_path / "out", skip_broken=True)
    with pytest.warns(UserWarning, match=told):
        written = [write_shard(encoding, number) for number in range(3)]
    assert [one.kept for one in written] == [False, False, True]
    assert finish(encoding, written) == manifest
    with pytest.raises(FormatError, match=r"set/file-001\.parquet"):  # who leaves nothing out keeps nothing that did
        encode_shards(tokenizer, root, tmp_path / "out")


def test_an_episode_is_encoded_once_the_file_it_goes_on_in_can_be_read(tokenizer, tmp_path, monkeypatch):
    """Of large columns the data's fingerprint is over samples: it may be the same after a repair."""
    episodes = recorded(12, seed=3)
    root = write_frames(tmp_path / "set", episodes, [int(np.cumsum(episodes.lengths)[4]) + 5])
    whole = encode_shards(tokenizer, root, tmp_path / "whole")
    batches = shards_module.column_batches

    def rotten(path, *rest):
        if path.name == "file-001.parquet":
            raise ArithmeticError("a page does not match its checksum")
        return batches(path, *rest)

    monkeypatch.setattr(shards_module, "column_batches", rotten)
    with pytest.warns(UserWarning, match="does not match its checksum"):
        assert encode_shards(tokenizer, root, tmp_path / "out", skip_broken=True)["lost_episodes"] == 7
    monkeypatch.undo()
    assert encode_shards(tokenizer, root, tmp_path / "out", skip_broken=True) == whole
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_one_that_finishes_does_no_harm_to_another_of_the_same_run(tokenizer, tmp_path, monkeypatch):
    """It sweeps up the other's temporary files: also where what it wrote lacks an episode, and so is not kept."""
    episodes = recorded(12, seed=3)
    root = write_frames(tmp_path / "set", episodes, [int(np.cumsum(episodes.lengths)[4]) + 5])
    spoil_actions(root / "file-001.parquet")
    slow, fast = (prepare(tokenizer, root, tmp_path / "out", skip_broken=True) for _ in range(2))
    write, done = token_shards._write, []

    def interrupted(encoding, number, path):
        written = write(encoding, number, path)
        if encoding is slow and not done:
            done.append(finish(fast, [write_shard(fast, n) for n in range(2)]))
        return written

    monkeypatch.setattr(token_shards, "_write", interrupted)
    with pytest.warns(UserWarning, match="left out"):
        assert finish(slow, [write_shard(slow, n) for n in range(2)]) == done[0]


def test_a_file_of_tokens_too_many_is_refused_before_anything_is_encoded(root, tokenizer, tmp_path):
    manifest = encode_shards(tokenizer, root, tmp_path / "out")
    (tmp_path / "out" / "tokens-mine.parquet").write_bytes(b"of something else")
    with pytest.raises(FormatError, match=r"expected no tokens-mine\.parquet in .*out, got one: move it away"):
        encode_shards(tokenizer, root, tmp_path / "out")
    assert token_shards.read_manifest(tmp_path / "out", verify=True) == manifest


def test_a_file_without_chunks_leaves_no_tokens(tokenizer, tmp_path):
    """Its only episode goes on in a broken file."""
    episodes = recorded(4, seed=3)
    root = write_frames(tmp_path / "set", episodes, [int(episodes.lengths[0]) - 1])
    spoil_actions(root / "file-001.parquet")
    encoding = prepare(tokenizer, root, tmp_path / "out", skip_broken=True)
    encoding.file(0).write_bytes(b"of something else")
    with pytest.warns(UserWarning, match="left out"):
        assert write_shard(encoding, 0).file is None
    assert not encoding.file(0).exists()


def test_no_tokens_but_those_of_the_manifest_are_in_the_folder(tokenizer, tmp_path):
    """Whoever reads all parquet files of the folder reads what it says."""
    root = write_frames(tmp_path / "set", recorded(12, seed=3), [40, 60])
    encoding = prepare(tokenizer, root, tmp_path / "out", skip_broken=True)
    spoil_actions(root / "file-002.parquet")
    (tmp_path / "out" / "tokens-000002.parquet").write_bytes(b"of something else")
    encoding = replace(encoding, shards=open_shards(root, skip_broken=True))
    with pytest.warns(UserWarning, match="left out"):
        written = [write_shard(encoding, number) for number in range(3)]
    assert [one.file for one in written] == ["tokens-000000.parquet", "tokens-000001.parquet", None]
    (tmp_path / "out" / "tokens-000009.parquet").write_bytes(b"of something else")
    with pytest.raises(FormatError, match=r"expected no tokens-000009.parquet in .*out, got one: something"):
        finish(encoding, written)
    (tmp_path / "out" / "tokens-000009.parquet").unlink()
    listed = [one["file"] for one in finish(encoding, written)["files"]]
    assert listed == sorted(file.name for file in (tmp_path / "out").glob("*.parquet"))


def test_who_meets_a_broken_file_can_leave_it_out_and_go_on(tokenizer, tmp_path):
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]), int(ends[7])])
    spoil_actions(root / "file-002.parquet")
    with pytest.raises(FormatError, match="set/file-002"):
        encode_shards(tokenizer, root, tmp_path / "out")
    encoding = prepare(tokenizer, root, tmp_path / "out", skip_broken=True)
    with pytest.warns(UserWarning, match="set/file-002.parquet left out"):
        written = [write_shard(encoding, number) for number in range(3)]
    assert [one.kept for one in written] == [True, True, False]
    assert finish(encoding, written)["skipped_shards"] == ["set/file-002.parquet"]


@pytest.mark.parametrize("column", [None, "episode_index", "tokens"])
def test_a_file_of_something_else_is_written_over(root, tokenizer, tmp_path, column):
    """In a folder of ours whatever has the name of a file of tokens was to become one."""
    import pyarrow as pa

    wanted = encode_shards(tokenizer, root, tmp_path / "whole")
    prepare(tokenizer, root, tmp_path / "out")
    foreign = pa.table({"x": [1.0]} if column is None else {column: ["a", "b"]})
    parquet.write_table(foreign, tmp_path / "out" / "tokens-000001.parquet")
    assert encode_shards(tokenizer, root, tmp_path / "out") == wanted
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("template", "refused", "fine"),
    [
        ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", (), ("data/tokens", "data/chunk-000/tokens")),
        ("train/{chunk}/{file}.parquet", ("train/tokens", "train/a/tokens"), ("tokens", "other/tokens")),
        ("{chunk}/{file}.parquet", ("tokens",), ()),
        (None, ("data", "data/tokens", "data/a/b/tokens"), ("tokens",)),
    ],
)
def test_tokens_are_kept_out_of_where_lerobot_data_are_looked_for(tokenizer, tmp_path, template, refused, fine):
    episodes = recorded(4)
    place = {"train/{chunk}/{file}.parquet": "train/a/x", "{chunk}/{file}.parquet": "a/x"}.get(
        template, "data/chunk-000/file-000"
    )
    root = tmp_path / "set"
    file = write_frames(tmp_path / "frames", episodes) / "file-000.parquet"
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": "v3.0", "fps": 10, "data_path": template}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / f"{place}.parquet").parent.mkdir(parents=True)
    file.replace(root / f"{place}.parquet")
    for inside in refused:
        with pytest.raises(ActionValueError, match="whose parquet files are not those of the data"):
            encode_shards(tokenizer, root, root / inside)
    for beside in fine:
        assert encode_shards(tokenizer, root, root / beside)["episodes"] == 4
    assert open_shards(root).episodes == 4


def test_tokens_of_data_whose_contents_changed_at_equal_size_are_not_kept(tokenizer, tmp_path):
    episodes = recorded(12)
    root = write_frames(tmp_path / "set", episodes, [60])
    encode_shards(tokenizer, root, tmp_path / "out")
    before, sizes = bytes_of(tmp_path / "out"), [file.stat().st_size for file in sorted(root.glob("*.parquet"))]
    write_frames(root, replace(episodes, actions=[-actions for actions in episodes.actions]), [60])
    assert [file.stat().st_size for file in sorted(root.glob("*.parquet"))] == sizes
    with pytest.raises(FormatError, match="of another data: encode into a folder of its own"):
        encode_shards(tokenizer, root, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == before
    for file in ("tokens-000000.parquet", "tokens-000001.parquet"):  # and were they there, they would not be kept
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / file).write_bytes(before[file])
    encoding = replace(prepare(tokenizer, root, tmp_path / "empty"), folder=tmp_path / "new")
    assert not any(write_shard(encoding, number).kept for number in range(2))
    assert all(bytes_of(tmp_path / "new")[file] != before[file] for file in ("tokens-000000.parquet",))


@pytest.mark.parametrize(
    ("mistake", "error", "told"),
    [
        ({"horizon": 0}, ActionValueError, "expected horizon >= 1 and stride >= 1, got 0 and 0"),
        ({"stride": 0}, ActionValueError, "expected horizon >= 1 and stride >= 1, got 5 and 0"),
        ({"stride": -1}, ActionValueError, "got 5 and -1"),
        ({"horizon": 4}, ActionShapeError, "expected horizon 5, as the tokenizer has, got 4"),
        ({"key": "arm"}, ActionShapeError, r"expected key= among \['default'\], got 'arm'"),
    ],
)
def test_a_mistake_of_the_caller_is_told_before_the_folder_is_made(root, tokenizer, tmp_path, mistake, error, told):
    with pytest.raises(error, match=told):
        encode_shards(tokenizer, root, tmp_path / "out", skip_broken=True, **mistake)
    assert not (tmp_path / "out").exists()


def test_only_what_reading_raises_makes_a_file_a_broken_one(root, tokenizer, tmp_path, monkeypatch):
    encoding = prepare(tokenizer, root, tmp_path / "out", skip_broken=True)

    def refuse(*_, **__):
        raise ActionValueError("of the tokenizer")

    with monkeypatch.context() as patched:
        patched.setattr(type(tokenizer), "encode", refuse)
        with pytest.raises(ActionValueError, match="of the tokenizer"):
            write_shard(encoding, 1)

    def exhausted(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("action_tokenizers.data.shards.column_batches", exhausted)
    with pytest.raises(OSError, match=r"set/file-001\.parquet: too many open files") as told:  # and no full disk
        write_shard(encoding, 1)
    assert "could not write" not in str(told.value)
    assert not list((tmp_path / "out").glob("*.parquet"))


FULL_DISK = """
    import resource, sys
    from action_tokenizers import ActionTokenizer
    from action_tokenizers.integrations.token_shards import encode_shards
    tokenizer, root, out, most = sys.argv[1:]
    tokenizer = ActionTokenizer.from_pretrained(tokenizer)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
    try:
        encode_shards(tokenizer, root, out)
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
def test_a_disk_that_fills_leaves_an_incomplete_folder_that_can_be_gone_on_with(root, tokenizer, tmp_path):
    """The limit lets the mark and the smaller files through: the operating system refuses the largest in the middle."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encode_shards(tokenizer, root, tmp_path / "whole")
    sizes = sorted(file.stat().st_size for file in (tmp_path / "whole").glob("*.parquet"))
    given = [tmp_path / "tokenizer", root, tmp_path / "out", sizes[-1] - 1]
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "could not write tokens-" in done.stdout, done.stderr
    assert "make room and encode again" in done.stdout
    with pytest.raises(FormatError, match="got an unfinished one"):
        read_manifest(tmp_path / "out")
    left = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(left) > 1
    assert not [name for name in left if name.startswith(".")]
    encode_shards(tokenizer, root, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_half_files_of_killed_workers_are_swept_up(root, tokenizer, tmp_path):
    encoding = prepare(tokenizer, root, tmp_path / "out")
    (tmp_path / "out" / f".tokens-000001.parquet.{encoding.run}-abcd").write_bytes(b"half")
    for name in (".tokens-000002.parquet.other", f".{MARK}", f".{MANIFEST}"):
        for age in ("old", "new"):
            (tmp_path / "out" / f"{name}.{age}").write_bytes(b"of another run")
        os.utime(tmp_path / "out" / f"{name}.old", (0, 0))
    finish(encoding, [write_shard(encoding, number) for number in range(6)])
    left = sorted(tmp_path.glob("out/.*"))
    assert [file.suffix for file in left] == [".new"] * 3  # somebody may still be writing them
    for file in left:
        file.unlink()
    encode_shards(tokenizer, root, tmp_path / "whole")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_run_that_goes_on_sweeps_up_after_the_one_it_goes_on_with(root, tokenizer, tmp_path):
    first, second = (prepare(tokenizer, root, tmp_path / "out") for _ in range(2))
    assert first.run == second.run
    (tmp_path / "fresh").mkdir()
    assert prepare(tokenizer, root, tmp_path / "fresh").run != first.run


@pytest.mark.parametrize("links", [True, False])
def test_of_two_encodes_that_begin_at_once_one_is_refused(root, tokenizer, tmp_path, monkeypatch, links):
    """The second passes its checks before the mark of the first is there."""
    other = FASTTokenizer(horizon=HORIZON, vocab_size=100).fit(Episodes.load(root))
    create, began = token_shards._create, []

    def late(path, data):
        monkeypatch.setattr(token_shards, "_create", create)
        began.append(prepare(other, root, tmp_path / "out"))
        create(path, data)

    def no_links(*_):
        raise OSError(errno.EPERM, "not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(token_shards, "_create", late)
    with pytest.raises(FormatError, match="of another pad_id, tokenizer, vocab_size"):
        prepare(tokenizer, root, tmp_path / "out")
    (encoding,) = began
    manifest = finish(encoding, [write_shard(encoding, number) for number in range(6)])
    assert read_manifest(tmp_path / "out", verify=True) == manifest


def test_an_encode_that_was_finished_while_another_began_stays(root, tokenizer, tmp_path, monkeypatch):
    other = FASTTokenizer(horizon=HORIZON, vocab_size=100).fit(Episodes.load(root))
    create = token_shards._create

    def late(path, data):
        monkeypatch.setattr(token_shards, "_create", create)
        encode_shards(other, root, tmp_path / "out")
        create(path, data)

    monkeypatch.setattr(token_shards, "_create", late)
    with pytest.raises(FormatError, match="of another pad_id, tokenizer, vocab_size"):
        prepare(tokenizer, root, tmp_path / "out")
    assert read_manifest(tmp_path / "out", verify=True)["tokenizer"] == tokenizer_digest(other)


def test_two_encodes_of_the_same_at_once(root, tokenizer, tmp_path, monkeypatch):
    """One runs to its end, and sweeps up, while the other is in the middle of a file."""
    encoding = prepare(tokenizer, root, tmp_path / "out")
    write = token_shards._write

    def slow(*given):
        written = write(*given)
        if written.chunks:
            monkeypatch.setattr(token_shards, "_write", write)
            encode_shards(tokenizer, root, tmp_path / "out")
        return written

    monkeypatch.setattr(token_shards, "_write", slow)
    manifest = finish(encoding, [write_shard(encoding, number) for number in range(6)])
    encode_shards(tokenizer, root, tmp_path / "whole")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert read_manifest(tmp_path / "out", verify=True) == manifest


def test_a_manifest_is_not_written_over_files_of_something_else(root, tokenizer, tmp_path):
    encoding = prepare(tokenizer, root, tmp_path / "out")
    written = [write_shard(encoding, number) for number in range(6)]
    encode_shards(tokenizer, root, tmp_path / "other", stride=1)
    name = "tokens-000001.parquet"
    for data in ((tmp_path / "other" / name).read_bytes(), b"no parquet"):
        (tmp_path / "out" / name).write_bytes(data)
        with pytest.raises(FormatError, match=rf"expected {name} of this encoding in .*, got none or another"):
            finish(encoding, written)
        with pytest.raises(FormatError, match="got an unfinished one"):
            read_manifest(tmp_path / "out")


def test_an_interrupted_copy_does_not_look_complete(root, tokenizer, tmp_path):
    encode_shards(tokenizer, root, tmp_path / "out")
    file = tmp_path / "out" / "tokens-000001.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    told = rf"expected tokens-000001\.parquet of {len(data)} bytes in out, as _manifest\.json says, got "
    with pytest.raises(FormatError, match=f"{told}{len(data) - 1} bytes"):
        read_manifest(tmp_path / "out")
    file.write_bytes(bytes(len(data)))
    assert read_manifest(tmp_path / "out")["episodes"] == 12  # which does not read the files
    with pytest.raises(FormatError, match=f"{told}other contents"):
        read_manifest(tmp_path / "out", verify=True)
    file.unlink()
    with pytest.raises(FormatError, match=f"{told}none: copy it again"):
        read_manifest(tmp_path / "out")


@pytest.mark.parametrize("name", [MARK, MANIFEST])
@pytest.mark.parametrize("text", ["", '{"format": "action', "[]"])
def test_a_mark_or_manifest_that_cannot_be_read(root, tokenizer, tmp_path, name, text):
    encode_shards(tokenizer, root, tmp_path / "out")
    (tmp_path / "out" / name).write_text(text)
    told = (
        rf"{name}, got a file that cannot be read .*: copy it again, or delete it and the files of tokens to begin anew"
    )
    with pytest.raises(FormatError, match=told):
        encode_shards(tokenizer, root, tmp_path / "out")
    if name == MANIFEST:
        with pytest.raises(FormatError, match=told):
            read_manifest(tmp_path / "out")
    for file in (tmp_path / "out" / name, *(tmp_path / "out").glob("tokens-*.parquet")):
        file.unlink()
    (tmp_path / "out" / MANIFEST).unlink(missing_ok=True)
    encode_shards(tokenizer, root, tmp_path / "out")
    assert read_manifest(tmp_path / "out", verify=True)["episodes"] == 12


@pytest.mark.parametrize("name", [MARK, MANIFEST, "tokens-000001.parquet"])
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "make room and encode again"), (errno.EROFS, "kept: encode again")]
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names open files by /proc")
def test_what_is_kept_is_told_wherever_writing_fails(root, tokenizer, tmp_path, monkeypatch, name, number, advice):
    sync = os.fsync

    def refuse(descriptor):
        link = Path(f"/proc/self/fd/{descriptor}")
        if name in str(link.readlink()):
            raise OSError(number, "refused")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match=rf"could not write {name} to .*: refused; .* files are kept: .*") as told:
            encode_shards(tokenizer, root, tmp_path / "out")
    assert str(told.value).endswith(advice)
    assert told.value.errno == number
    assert not [file.name for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]
    encode_shards(tokenizer, root, tmp_path / "out")
    assert read_manifest(tmp_path / "out", verify=True)["episodes"] == 12


def test_the_fingerprint_is_taken_once(root, tokenizer, tmp_path, monkeypatch):
    asked, fingerprint = [], Shards.fingerprint
    monkeypatch.setattr(Shards, "fingerprint", lambda self: asked.append(1) or fingerprint(self))
    manifest = encode_shards(tokenizer, root, tmp_path / "out")
    assert len(asked) == 1
    assert manifest["data"] == fingerprint(open_shards(root, state=False))


def test_options_for_a_data_set_that_is_open_are_refused(root, tokenizer, tmp_path):
    with pytest.raises(ActionValueError, match="expected no fps, skip_broken for a data set that is already open"):
        encode_shards(tokenizer, open_shards(root), tmp_path / "out", skip_broken=True, fps=3)
    assert not (tmp_path / "out").exists()
