"""Reads over real HTTP from a loopback Hub.

The client runs in processes of its own: huggingface_hub reads its environment when it is imported.
"""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def fake_hub() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).parent / "fakes" / "hub.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fake = fake_hub()

CLIENT = """
import json, sys, warnings
warnings.simplefilter("error")
from action_tokenizers.data import Episodes
from action_tokenizers.download import fetch
from action_tokenizers.errors import FormatError

def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

def attempt(call):
    try:
        return call()
    except FormatError as error:
        return f"FormatError: {error}"

print(json.dumps([attempt(call) for call in (CALLS)]))
"""


def client(hub, home, calls: str, **environment: str) -> list:
    """Evaluate calls in a fresh process against the loopback Hub; refusals come back as text."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT.replace("CALLS", calls)],
        env=hub.environment(home, **environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def lerobot_files(actions) -> dict[str, bytes]:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"action": list(actions), "episode_index": [0] * len(actions), "frame_index": range(len(actions))}
    buffer = io.BytesIO()
    parquet.write_table(pa.table({name: list(column) for name, column in table.items()}), buffer)
    info = {"codebase_version": "v2.1", "fps": 10, "data_path": "data/chunk-000/episode_{episode_index:06d}.parquet"}
    return {
        "README.md": b"card",
        "meta/info.json": json.dumps(info).encode(),
        "meta/episodes/chunk-000/more.json": b"{}",
        "data/chunk-000/episode_000000.parquet": buffer.getvalue(),
        "videos/chunk-000/top/episode_000000.mp4": b"x" * 1000,
        "images/data/top.png": b"x" * 1000,
    }


@pytest.fixture
def hub():
    with fake.FakeHub() as running:
        running.datasets["lab/arm"] = fake.Repo(lerobot_files(np.arange(12.0).reshape(6, 2)), revisions=("main", "v1"))
        running.datasets["lab/secret"] = fake.Repo({"meta/info.json": b"{}"}, token="hf_right")
        running.datasets["lab/gated"] = fake.Repo({"meta/info.json": b"{}"}, gated=True)
        running.datasets["lab/pictures"] = fake.Repo({"train/0.png": b"x"})
        running.models["lab/tokenizer"] = fake.Repo({"config.json": b"{}", "weights.bin": b"xx"})
        yield running


def test_a_data_set_of_the_hub_is_read_without_its_videos(hub, tmp_path):
    calls = """
        lambda: repr(Episodes.load("lab/arm")),
        lambda: repr(Episodes.load("lab/arm", revision="v1", key="arm").actions[0].tolist()),
    """
    facts, actions = client(hub, tmp_path, calls)
    assert facts == ("Episodes(1 episodes, 6 frames, action_dim=2, fps=10.0, key='default', source='lab/arm')")
    assert actions == repr(np.arange(12.0).reshape(6, 2).tolist())
    asked = set(hub.requested())
    assert asked == {
        "meta/info.json",
        "meta/episodes/chunk-000/more.json",
        "data/chunk-000/episode_000000.parquet",
    }
    assert not [path for _, path in hub.log if "videos/" in path]


def test_what_was_fetched_once_is_there_offline(hub, tmp_path):
    client(hub, tmp_path, 'lambda: repr(Episodes.load("lab/arm")),')
    hub.log.clear()
    calls = """
        lambda: repr(Episodes.load("lab/arm")),
        lambda: files(fetch("lab/arm", ["meta/**"], local_files_only=True)),
        lambda: str(fetch("lab/other", ["meta/**"])),
    """
    facts, kept, other = client(hub, tmp_path, calls, HF_HUB_OFFLINE="1")
    assert "6 frames" in facts
    assert "meta/info.json" in kept
    assert "'lab/other' is not in the cache and the Hub is not reached" in other
    assert hub.log == []


def test_refusals_say_what_to_do(hub, tmp_path):
    calls = """
        lambda: repr(Episodes.load("lab/none")),
        lambda: repr(Episodes.load("lab/arm", revision="v9")),
        lambda: repr(Episodes.load("lab/secret", token="hf_wrong")),
        lambda: repr(Episodes.load("lab/gated")),
        lambda: repr(Episodes.load("lab/pictures")),
        lambda: str(fetch("a--b/c..d", ["*"])),
        lambda: files(fetch("lab/secret", ["meta/*"], token="hf_right")),
    """
    missing, revision, secret, gated, pictures, name, right = client(hub, tmp_path, calls)
    for text, part in (
        (missing, "a Hub repository or a local path, got none: dataset 'lab/none'"),
        (revision, "expected an existing revision, got none: dataset 'lab/arm' at revision 'v9'"),
        (secret, "pass token="),
        (gated, "dataset 'lab/gated' is gated"),
        (pictures, "expected files meta/**, data/** in the dataset 'lab/pictures'"),
        (name, "could not fetch dataset 'a--b/c..d'"),
    ):
        assert text.startswith("FormatError: ")
        assert part in text
    assert right == ["meta/info.json"]


def test_models_and_caches_of_ones_own(hub, tmp_path):
    calls = f"""
        lambda: files(fetch("lab/tokenizer", ["*.json"], repo_type="model")),
        lambda: {str(tmp_path / "mine")!r} in str(
            fetch("lab/tokenizer", ["*.json"], repo_type="model", cache_dir={str(tmp_path / "mine")!r})
        ),
    """
    assert client(hub, tmp_path / "home", calls) == [["config.json"], True]


def test_a_hub_out_of_reach(hub, tmp_path):
    (text,) = client(hub, tmp_path, 'lambda: repr(Episodes.load("lab/arm")),', HF_ENDPOINT="http://127.0.0.1:9")
    assert "is not in the cache and the Hub is not reached" in text
