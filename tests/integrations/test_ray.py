"""Ray for real: two workers on this machine, one of them killed in the middle where a test asks for it."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, ChunkSample, Episodes, FASTTokenizer, Relative
from action_tokenizers.data import open_shards, sample_shards
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError, MissingExtraError
from action_tokenizers.integrations import ray as engine
from action_tokenizers.integrations.token_shards import encode_shards, read_manifest
from tests.fakes.shard_files import recorded, spoil_actions, truncate, write_frames

HORIZON = 5


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    pytest.importorskip("pyarrow")
    root = write_frames(tmp_path / "set", recorded(3))
    with pytest.raises(MissingExtraError, match=r"pip install 'action-tokenizers\[ray\]'"):
        engine.sample(root)


@pytest.fixture(scope="module")
def kill(tmp_path_factory) -> Iterator[Callable[[int], Path]]:
    """Two workers; `kill(n)` lets the next one die that has read the first piece of file n."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray warns of is its own
        ray = pytest.importorskip("ray", reason="Ray is an extra: pip install -e '.[ray]'")
        marks = tmp_path_factory.mktemp("marks")

        def arm() -> None:  # runs in every new worker; a closure, so that it travels by value
            from action_tokenizers.data.shards import Shards

            read = Shards.read

            def read_or_die(self, number, cut_off=None):
                for piece in read(self, number, cut_off):
                    yield piece
                    mark = marks / str(number)
                    if mark.exists():
                        mark.unlink()
                        os._exit(1)

            Shards.read = read_or_die

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=200 << 20,
            runtime_env={"worker_process_setup_hook": arm},
        )

        def kill(number: int) -> Path:
            (marks / str(number)).touch()
            return marks / str(number)

        yield kill
        ray.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    episodes = recorded(40)
    cuts = [0, 31, 60, 60, *range(150, episodes.frames, 45)]
    return write_frames(tmp_path_factory.mktemp("data") / "set", episodes, cuts)


@pytest.fixture(scope="module")
def tokenizer(root) -> FASTTokenizer:
    return FASTTokenizer(horizon=HORIZON, vocab_size=128).fit(sample_shards(root, horizon=HORIZON))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# Ray's start and its workers' imports take seconds, and a warning of its own is no failure of ours
real = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("kill"),
]


def on_ray(test):
    for mark in real:
        test = mark(test)
    return test


@on_ray
@pytest.mark.parametrize("k", [1, 60, 10_000])
def test_a_sample_is_that_of_one_process(root, k):
    relative = Relative("state")
    settings = {"k": k, "seed": 3, "weights": {"default": 2.0}, "horizon": HORIZON, "stride": 2, "relative": relative}
    assert engine.sample(root, **settings).digest() == sample_shards(root, **settings).digest()


@on_ray
def test_the_horizon_is_one_second_of_the_whole(root):
    assert engine.sample(root).digest() == ChunkSample().add(Episodes.load(root)).digest()


@on_ray
def test_an_artifact_is_that_of_one_process_byte_for_byte(root, tokenizer, tmp_path):
    fitted = engine.fit(FASTTokenizer(horizon=HORIZON, vocab_size=128), root)
    fitted.save_pretrained(tmp_path / "ray")
    tokenizer.save_pretrained(tmp_path / "alone")
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "alone")
    train, _ = Episodes.load(root).split(0.3, seed=1)
    some = engine.fit(BinningTokenizer(horizon=HORIZON), root, test=0.3, split_seed=1, k=50)
    assert some.provenance["sample"] == ChunkSample(50).add(train, HORIZON).digest()


@on_ray
def test_token_files_are_those_of_one_process_byte_for_byte(root, tokenizer, tmp_path):
    told: list[tuple] = []
    manifest = engine.encode(tokenizer, root, tmp_path / "ray", stride=2, progress=lambda *one: told.append(one))
    assert manifest == encode_shards(tokenizer, root, tmp_path / "alone", stride=2)
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "alone")
    files = len(open_shards(root))
    assert told[-1] == ("encode", files, files)


@on_ray
def test_a_worker_killed_while_sampling_changes_nothing(root, kill):
    marks = [kill(2), kill(9)]
    assert engine.sample(root, k=60, horizon=HORIZON).digest() == sample_shards(root, k=60, horizon=HORIZON).digest()
    assert not any(mark.exists() for mark in marks)  # they did die


@on_ray
def test_a_worker_killed_while_encoding_changes_nothing(root, tokenizer, tmp_path, kill):
    encode_shards(tokenizer, root, tmp_path / "alone")
    marks = [kill(1), kill(5), kill(7)]
    engine.encode(tokenizer, root, tmp_path / "ray")
    assert not any(mark.exists() for mark in marks)
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "alone")


@on_ray
def test_a_worker_killed_for_good_leaves_an_incomplete_folder_to_go_on_with(root, tokenizer, tmp_path, kill):
    import ray

    kill(4)
    with pytest.raises(ray.exceptions.RayError):
        engine.encode(tokenizer, root, tmp_path / "ray", retries=0)
    with pytest.raises(FormatError, match="got an unfinished one"):
        read_manifest(tmp_path / "ray")
    engine.encode(tokenizer, root, tmp_path / "ray")
    encode_shards(tokenizer, root, tmp_path / "alone")
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "alone")


@on_ray
def test_audits_are_those_of_one_process(root, tokenizer):
    other = BinningTokenizer(horizon=HORIZON, bins=16).fit(sample_shards(root, horizon=HORIZON))
    found = engine.audit({"fast": tokenizer, "bins": other}, root, episodes=6, test=0.5, seed=2, split_seed=5)
    drawn = open_shards(root).split(0.5, seed=5)[1].draw(6, seed=2).load()
    assert len(drawn) == 6
    assert list(found) == ["fast", "bins"]
    for name, one in (("fast", tokenizer), ("bins", other)):
        assert found[name].to_json_text() == audit(one, drawn, seed=2).to_json_text()
    assert list(engine.audit(tokenizer, root, episodes=3, states=False)) == ["fast"]
    with pytest.raises(ActionValueError, match="at least one tokenizer"):
        engine.audit({}, root)


@on_ray
def test_broken_files_are_named_or_left_out_as_in_one_process(tokenizer, tmp_path):
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]) - 1, int(ends[7]), int(ends[9])])
    spoil_actions(root / "file-001.parquet")
    for run in (lambda: engine.sample(root, horizon=HORIZON), lambda: engine.encode(tokenizer, root, tmp_path / "x")):
        with pytest.raises(FormatError, match=r"set/file-001\.parquet"):
            run()
    truncate(root / "file-003.parquet")
    with pytest.raises(FormatError, match=r"set/file-003\.parquet"):
        engine.sample(root, horizon=HORIZON)
    settings = {"k": 20, "horizon": HORIZON, "skip_broken": True}
    found = engine.sample(root, **settings)
    assert found.digest() == sample_shards(root, **settings).digest()
    assert (len(found.skipped_shards), found.lost_episodes) == (2, 6)
    manifest = engine.encode(tokenizer, root, tmp_path / "ray", skip_broken=True)
    assert manifest == encode_shards(tokenizer, root, tmp_path / "alone", skip_broken=True)


@on_ray
@pytest.mark.parametrize("split", [{}, {"split_seed": 5}])
def test_an_audit_holds_out_what_the_fit_did(root, tmp_path, monkeypatch, split):
    """The audit of any draw is of episodes that a fit with the same arguments for the split has not seen."""
    learned, audited = [], []
    monkeypatch.setattr(engine, "complete", lambda sample, shards: (learned.append(shards.table.names), sample)[1])
    fitted = engine.fit(BinningTokenizer(horizon=HORIZON), root, test=0.5, **split)
    join = type(open_shards(root)).join
    monkeypatch.setattr(
        type(open_shards(root)), "join", lambda self, pieces: (audited.append(self.table.names), join(self, pieces))[1]
    )
    engine.audit(fitted, root, test=0.5, seed=3, **split)
    assert len(learned[0]) + len(audited[0]) == 40
    assert not set(learned[0].tolist()) & set(audited[0].tolist())


@on_ray
def test_an_audit_leaves_broken_files_out_when_asked_to(tokenizer, tmp_path):
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]) - 1, int(ends[7])])
    spoil_actions(root / "file-001.parquet")
    with pytest.raises(FormatError, match=r"set/file-001\.parquet"):
        engine.audit(tokenizer, root)
    told = r"audited on 7 of 12 drawn .*of set/file-000\.parquet left out: 3 goes on .*set/file-001\.parquet left out"
    with pytest.warns(UserWarning, match=told):
        found = engine.audit(tokenizer, root, opening={"skip_broken": True})
    whole = open_shards(root)
    readable = whole.only(np.array([0, 1, 2, *range(8, 12)]))
    assert found["fast"].to_json_text() == audit(tokenizer, readable.load(), seed=0).to_json_text()
    some = open_shards(root, skip_broken=True).only(np.array([4, 5, 6, 7]))
    with pytest.raises(FormatError, match="expected drawn episodes that can be read in set, got none: set/file-001"):
        engine.audit(tokenizer, some)


@on_ray
def test_what_workers_warn_of_is_told(tokenizer, tmp_path):
    episodes = recorded(12, seed=3)
    ends = np.cumsum(episodes.lengths)
    root = write_frames(tmp_path / "set", episodes, [int(ends[3]), int(ends[7])])
    spoil_actions(root / "file-001.parquet")
    left_out = r"set/file-001\.parquet left out, episodes lost with it: 4: "
    with pytest.warns(UserWarning, match=left_out):
        found = engine.sample(root, horizon=HORIZON, skip_broken=True)
    with pytest.warns(UserWarning, match=left_out):
        assert found.digest() == sample_shards(root, horizon=HORIZON, skip_broken=True).digest()
    with pytest.warns(UserWarning, match=left_out):
        engine.encode(tokenizer, root, tmp_path / "out", skip_broken=True)


@on_ray
def test_nothing_long_enough(root):
    with pytest.raises(ActionShapeError, match="at least horizon 99 steps in set"):
        engine.sample(root, horizon=99)


@on_ray
def test_ray_data_reads_the_token_files(root, tokenizer, tmp_path):
    pytest.importorskip("pandas", reason="Ray Data needs pandas: pip install 'ray[data]'")
    import ray

    manifest = engine.encode(tokenizer, root, tmp_path / "out")
    rows = ray.data.read_parquet(str(tmp_path / "out")).take_all()
    assert len(rows) == manifest["chunks"]
    assert sum(len(row["tokens"]) for row in rows) == manifest["tokens"]


@on_ray
def test_files_that_workers_do_not_see_are_no_broken_ones(root, tokenizer, tmp_path, monkeypatch):
    here, gone = tmp_path / "set", tmp_path / "gone"
    shutil.copytree(root, here)
    shards = open_shards(here, skip_broken=True)
    cores = engine._cores

    def hide() -> int:  # the driver has seen the files before it asks for cores
        if here.exists():
            here.rename(gone)
        return cores()

    monkeypatch.setattr(engine, "_cores", hide)
    with pytest.raises(FileNotFoundError, match="on this machine: every machine must see all files"):
        engine.sample(here, skip_broken=True)
    for run in (lambda: engine.sample(shards), lambda: engine.encode(tokenizer, shards, tmp_path / "out")):
        with pytest.raises(FileNotFoundError, match="on this machine: every machine must see all files"):
            run()


@on_ray
def test_options_for_a_data_set_that_is_open_are_refused(root, tokenizer, tmp_path):
    for run in (
        lambda shards: engine.sample(shards, skip_broken=True),
        lambda shards: engine.encode(tokenizer, shards, tmp_path, skip_broken=True),
        lambda shards: engine.audit(tokenizer, shards, opening={"skip_broken": True}),
    ):
        with pytest.raises(ActionValueError, match="expected no skip_broken for a data set that is already open"):
            run(open_shards(root))


class LastComesFirst:
    """Ray as far as `_spread` uses it; of the tasks under way the newest is finished first: the worst order."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.running: list[object] = []
        self.results: dict[object, object] = {}

    def remote(self, **_):
        def call(run, work, item, shared):
            reference = object()
            self.begun.append(item)
            self.running.append(reference)
            self.results[reference] = run(work, item, shared)
            return reference

        class Task:
            remote = staticmethod(lambda run, work, item, shared: call(run, work, item, shared))

        return lambda function: type(
            "Bound", (), {"remote": staticmethod(lambda *given: Task.remote(function, *given))}
        )

    def put(self, value):
        return value

    def wait(self, references, num_returns):
        assert references
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference):
        return self.results.pop(reference)

    def cancel(self, reference) -> None:
        pass


@pytest.mark.parametrize("in_order", [True, False])
def test_what_waits_for_its_turn_is_bounded(monkeypatch, in_order):
    fake, cores, items = LastComesFirst(), 3, list(range(200))
    errors = type("Exceptions", (), {"RayTaskError": type("RayTaskError", (Exception,), {})})
    monkeypatch.setattr(engine, "require", lambda name, _: errors if name.endswith("exceptions") else fake)
    monkeypatch.setattr(engine, "_cores", lambda: cores)
    got, most = [], 0
    spread = engine._spread(lambda item, shared: item + shared, items, 7, "sample", 0, None, in_order=in_order)
    for result in spread:
        got.append(result)
        most = max(most, len(fake.begun) - len(got))
    assert (got if in_order else sorted(got)) == [item + 7 for item in items]
    # nothing waits for a turn where there are none: what is under way is all there is
    assert most < cores * (engine.HELD if in_order else engine.UNDER_WAY)


@pytest.mark.parametrize(("mistake", "error"), [({"stride": 0}, "stride >= 1"), ({"weights": {"x": 1.0}}, "a weight")])
def test_a_mistake_of_the_caller_is_told_before_anything_is_read(root, mistake, error):
    with pytest.raises(ActionValueError, match=error):
        engine.sample(open_shards(root, skip_broken=True), horizon=HORIZON, **mistake)


def test_groups_cover_every_file_once_in_about_equal_parts(root):
    shards = open_shards(root)
    for count in (1, 3, 8, 1000):
        groups = engine._groups(shards, count)
        assert [number for group in groups for number in group] == list(range(len(shards)))
        sizes = [int(shards.table.rows[group].sum()) for group in groups]
        assert max(sizes) <= max(shards.frames / count, shards.table.rows.max())
