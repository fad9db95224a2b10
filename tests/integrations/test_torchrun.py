"""torchrun for real: two ranks under gloo, one of them killed in the middle where a test asks for it."""

import gc
import json
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import FASTTokenizer
from action_tokenizers.data import open_shards, priority, sample_shards
from action_tokenizers.errors import ActionValueError, FormatError, HubError
from action_tokenizers.integrations import torchrun
from action_tokenizers.integrations.token_shards import encode_shards, tokenizer_digest
from tests.fakes.shard_files import recorded, spoil_actions, truncate, write_frames

pytest.importorskip("pyarrow")

pytestmark = pytest.mark.filterwarnings("ignore:.*shorter than the horizon")

HORIZON = 5
# every rank writes what it found; `die` names a file that rank 1 deletes and dies of, once
SCRIPT = """
    import json, os, sys
    from pathlib import Path
    import torch.distributed as dist
    from action_tokenizers import FASTTokenizer
    from action_tokenizers.errors import ActionTokenizerError
    from action_tokenizers.integrations import torchrun
    from action_tokenizers.integrations.token_shards import tokenizer_digest

    root, out, die, spoiled = map(Path, sys.argv[1:])
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def progress(stage, done, total):
        if rank == 1 and stage == "encode" and done == 2 and die.exists():
            die.unlink()
            os._exit(1)

    found = {"sample": torchrun.sample(root, k=40, horizon=5, resume=out / "parts", save_every=0).digest()}
    tokenizer = torchrun.fit(FASTTokenizer(horizon=5, vocab_size=128), root, k=40)
    found["tokenizer"] = tokenizer_digest(tokenizer)
    found["manifest"] = torchrun.encode(tokenizer, root, out / "tokens", progress=progress)
    try:
        torchrun.sample(spoiled, horizon=5)
    except ActionTokenizerError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    episodes = recorded(20)
    return write_frames(tmp_path_factory.mktemp("data") / "set", episodes, [0, 31, 60, 60, 150, 200])


def run(root: Path, out: Path, die: Path, restarts: int) -> list[dict]:
    episodes = recorded(12)
    spoiled = write_frames(out / "spoiled", episodes, [sum(episodes.lengths[:6])])
    spoil_actions(spoiled / "file-001.parquet")  # which rank 1 reads
    script = out / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    ours = [str(script), str(root), str(out), str(die), str(spoiled)]
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *ours]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # see the module
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_ranks_give_what_one_process_gives_also_when_one_dies(root, tmp_path, killed):
    die = tmp_path / "die"
    if killed:
        die.touch()
    found = run(root, tmp_path, die, restarts=int(killed))
    assert not die.exists()
    sample = sample_shards(root, k=40, horizon=HORIZON)
    tokenizer = FASTTokenizer(horizon=HORIZON, vocab_size=128).fit(sample)
    manifest = encode_shards(tokenizer, root, tmp_path / "alone")
    for rank in found:
        assert rank["sample"] == sample.digest()
        assert rank["tokenizer"] == tokenizer_digest(tokenizer)
        assert rank["manifest"] == manifest
        assert "spoiled/file-001.parquet" in rank["error"]
        assert rank["error"].startswith("FormatError")
    assert "rank 1: " in found[0]["error"]  # rank 0 did not wait for it
    assert bytes_of(tmp_path / "tokens") == bytes_of(tmp_path / "alone")


def test_without_a_process_group(root):
    with pytest.raises(ActionValueError, match=r"call torch\.distributed\.init_process_group"):
        torchrun.sample(root)


@pytest.fixture
def alone():
    """A group of one rank, in this process."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


def test_one_rank_is_one_process(root, tmp_path, alone):
    assert torchrun.sample(root, k=40).digest() == sample_shards(root, k=40).digest()
    train, _ = open_shards(root, state=False).split(0.3, seed=2)
    held_in = FASTTokenizer(horizon=HORIZON, vocab_size=128).fit(sample_shards(train, k=40, horizon=HORIZON))
    found = torchrun.fit(FASTTokenizer(horizon=HORIZON, vocab_size=128), root, test=0.3, split_seed=2, k=40)
    assert tokenizer_digest(found) == tokenizer_digest(held_in)
    with pytest.raises(KeyError, match="what"):
        torchrun._agreeing(lambda: {}["what"], None)


def test_an_error_leaves_no_ring_of_references_that_holds_the_group(alone):
    """gloo aborts the process where its group goes as late as the interpreter."""

    def refuse():
        raise FormatError("no")

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(FormatError, match="no") as told:
            torchrun._agreeing(refuse, None)
        raised = weakref.ref(told.value)
        del told
        assert raised() is None
    finally:
        gc.enable()


def test_what_other_ranks_raise_for_an_error():
    assert torchrun._kind(PermissionError(13, "no")) == "OSError"
    assert torchrun._kind(HubError("no")) == "HubError"
    assert torchrun._kind(FormatError("no")) == "FormatError"
    assert torchrun._kind(type("_Inner", (FormatError,), {})("no")) == "FormatError"
    assert torchrun._kind(RuntimeError("no")) == "ActionTokenizerError"


def test_a_mistake_of_the_caller_is_told_as_by_one_process(root, alone):
    for mistake, error in (({"stride": 0}, "stride >= 1"), ({"weights": {"arm": 1.0}}, "a weight for every key")):
        with pytest.raises(ActionValueError, match=error):
            torchrun.sample(root, k=40, skip_broken=True, **mistake)


def test_what_the_index_left_out_is_counted_once(tmp_path, alone):
    episodes = recorded(12)
    root = write_frames(tmp_path / "set", episodes, [31, 90])
    truncate(root / "file-001.parquet")
    settings = {"k": 40, "horizon": 5, "skip_broken": True}
    with pytest.warns(UserWarning, match="left out as broken"):
        wanted = sample_shards(root, **settings)
    assert wanted.lost_episodes > 0
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out as broken"):
            found = torchrun.sample(root, resume=tmp_path / "parts", **settings)
        assert found.digest() == wanted.digest()


def test_options_for_a_data_set_that_is_open_are_refused(root, alone):
    with pytest.raises(ActionValueError, match="expected no skip_broken for a data set that is already open"):
        torchrun.sample(open_shards(root), k=40, skip_broken=True)


def test_what_only_one_rank_has_is_not_gathered(root, tmp_path, alone, monkeypatch):
    """Of what is gathered, every rank gets as many as there are ranks: no table of episodes may be among it."""
    sent, gather = [], alone.all_gather_object
    monkeypatch.setattr(
        alone, "all_gather_object", lambda into, one, group: sent.append(type(one).__name__) or gather(into, one, group)
    )
    tokenizer = torchrun.fit(FASTTokenizer(horizon=HORIZON, vocab_size=128), root, k=40)
    torchrun.encode(tokenizer, root, tmp_path / "tokens")
    assert set(sent) == {"NoneType", "ChunkSample", "list"}  # no error, parts of the sample, what became of files


def test_beside_another_backend_one_group_is_made_and_kept(root, alone, monkeypatch):
    made, new_group = [], alone.new_group
    monkeypatch.setattr(alone, "get_backend", lambda group=None: "nccl")
    monkeypatch.setattr(alone, "new_group", lambda **settings: made.append(new_group(**settings)) or made[-1])
    for _ in range(3):
        assert torchrun.sample(root, k=40).digest() == sample_shards(root, k=40).digest()
    assert len(made) == 1


def test_machines_whose_logarithms_differ_in_the_last_place(root, alone, monkeypatch):
    """A worker finds every priority a little larger than the machine that knows the threshold."""

    def larger(*given):
        return np.nextafter(priority.priorities(*given), np.inf)

    monkeypatch.setattr("action_tokenizers.data.sample.priorities", larger)
    found = torchrun.sample(root, k=40, horizon=HORIZON, weights={"default": 3.0})
    assert len(found) == 40
