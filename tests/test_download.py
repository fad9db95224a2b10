"""Reads and writes over real HTTP at a loopback Hub, which also fails in every way a Hub can."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.hub import READER, WRITER, Answer, FakeHub, Repo
from tests.fakes.hub_client import hub_client

PAGE = Answer(b"<html>Please log in to this network</html>", headers={"Content-Type": "text/html"})
HELPERS = """
from action_tokenizers.data import Episodes
from action_tokenizers.download import fetch, publish

def found(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())

def put(repo, files, **options):
    given = {"replaces": ["mark", "old", "README.md"], "mark": "mark", "message": "test", "token": "hf_fake"}
    ours = lambda data: data == b"ours"
    return publish({name: text.encode() for name, text in files.items()}, repo, is_ours=ours, **given | options)
"""


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


@pytest.fixture(scope="module")
def running():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(running, home):
    with hub_client(running.environment(home)) as one:
        yield one


@pytest.fixture(scope="module")
def offline(running, home):
    with hub_client(running.environment(home, HF_HUB_OFFLINE="1")) as one:
        yield one


@pytest.fixture
def hub(running):
    """The Hub of this module, emptied."""
    running.models.clear()
    running.datasets.clear()
    running.log.clear()
    return running


@pytest.fixture
def client(online):
    def call(code, **names):
        return online(HELPERS + code, **names)

    call.refused = lambda code, **names: online.refused(HELPERS + code, **names)
    return call


def cached(home: Path, repo: str) -> list[str]:
    """Files of a repository that the cache shows, whatever lies beside them unfinished."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---- reading ----------------------------------------------------------------------------------------------------


def test_a_data_set_of_the_hub_is_read_without_its_videos(hub, client):
    hub.datasets["lab/arm"] = Repo(lerobot_files(np.arange(12.0).reshape(6, 2)), revisions=("main", "v1"))
    facts, actions = client(
        """
one, other = Episodes.load("lab/arm"), Episodes.load("lab/arm", revision="v1", key="arm")
repr(one), other.actions[0].tolist()
        """
    )
    assert facts == "Episodes(1 episodes, 6 frames, action_dim=2, fps=10.0, key='default', source='lab/arm')"
    assert actions == np.arange(12.0).reshape(6, 2).tolist()
    assert set(hub.requested()) == {
        "meta/info.json",
        "meta/episodes/chunk-000/more.json",
        "data/chunk-000/episode_000000.parquet",
    }


def test_what_was_fetched_once_is_there_offline(hub, client, offline):
    hub.models["lab/kept"] = Repo({"a.json": b"1", "b.json": b"2", "c.bin": b"3"})
    client('str(fetch("lab/kept", ["a.*"], repo_type="model"))')
    hub.log.clear()
    names = 'found(fetch("lab/kept", ["a.*"], repo_type="model"))'
    assert client(names.replace('"model"', '"model", local_files_only=True')) == ["a.json"]
    assert offline(HELPERS + names) == ["a.json"]
    other = offline.refused(HELPERS + 'fetch("lab/other", ["*"], repo_type="model")')
    assert other.startswith(
        "HubError: could not fetch model 'lab/other': the Hub is not reached and the cache has no copy"
    )
    local = client.refused('fetch("lab/other", ["*"], repo_type="model", local_files_only=True)')
    assert "'lab/other': the Hub is not reached and the cache has no copy" in local
    assert hub.log == []


def test_a_newer_commit_is_seen_and_the_older_one_stays(hub, client, offline):
    text = '(fetch("lab/moving", ["a"], repo_type="model"{}) / "a").read_text()'
    hub.models["lab/moving"] = repo = Repo({"a": b"one"}, revisions=("main", "v1"))
    first = repo.sha("main")
    assert client(text.format("")) == "one"
    repo.commit("main", {"a": b"two"})
    assert offline(HELPERS + text.format("")) == "one"
    assert client(text.format("")) == "two"
    assert offline(HELPERS + text.format("")) == "two"
    for revision in ("v1", first):
        assert client(text.format(f', revision="{revision}"')) == "one"
    hub.log.clear()
    assert client(text.format("")) == "two"
    assert hub.requested() == []


def test_refusals_say_what_to_do(hub, client):
    hub.datasets["lab/public"] = Repo({"meta/info.json": b"{}"})
    hub.datasets["lab/secret"] = Repo({"meta/info.json": b"{}"}, token="hf_right")
    hub.datasets["lab/gated"] = Repo({"meta/info.json": b"{}"}, gated=True)
    hub.datasets["lab/pictures"] = Repo({"train/0.png": b"x"})
    for call, part in (
        ('Episodes.load("lab/none")', "a Hub repository or a local path, got none: dataset 'lab/none'"),
        (
            'Episodes.load("lab/public", revision="v9")',
            "expected an existing revision, got none: dataset 'lab/public' at revision 'v9'",
        ),
        ('Episodes.load("lab/secret")', "dataset 'lab/secret'. If it is private, pass token="),
        (f'Episodes.load("lab/secret", token="{READER}")', "dataset 'lab/secret'. If it is private, pass token="),
        ('Episodes.load("lab/public", token="hf_wrong")', "the Hub does not accept the token; pass token="),
        ('Episodes.load("lab/gated")', "dataset 'lab/gated' is gated"),
        ('fetch("a--b/c..d", ["*"])', "could not fetch dataset 'a--b/c..d'"),
    ):
        said = client.refused(call)
        assert said.startswith("HubError: "), said
        assert part in said
        assert "\n" not in said
    pictures = client.refused('Episodes.load("lab/pictures")')
    assert pictures.startswith("FormatError: expected files meta/**, data/** in the dataset 'lab/pictures'")
    assert client('found(fetch("lab/secret", ["meta/*"], token="hf_right"))') == ["meta/info.json"]


def test_files_that_others_fetched_do_not_count(hub, client):
    hub.models["lab/full"] = Repo({"weights.bin": b"xx"})
    client('str(fetch("lab/full", ["*.bin"], repo_type="model"))')
    said = client.refused('fetch("lab/full", ["*.json", "meta/**"], repo_type="model")')
    assert said == "FormatError: expected files *.json, meta/** in the model 'lab/full', got none of them"


def test_caches_of_ones_own(hub, client, tmp_path):
    hub.models["lab/tokenizer"] = Repo({"config.json": b"{}", "weights.bin": b"xx"})
    folder = client('str(fetch("lab/tokenizer", ["*.json"], repo_type="model", cache_dir=mine))', mine=str(tmp_path))
    assert Path(folder).is_relative_to(tmp_path)
    assert [path.name for path in Path(folder).iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (401, "accept the token; pass token="),
        (403, "the token may not do this"),
        (404, "404"),
        (429, "too many requests; wait, then try again"),
        (500, "500"),
        (PAGE, "Error"),
        ("cut", "lab/tokenizer"),
        ("half", "lab/tokenizer"),
    ],
)
@pytest.mark.parametrize("where", ["/api/models/", "/resolve/"])
def test_a_hub_that_fails_is_named_and_leaves_no_file(fault, says, where, hub, client, home):
    name = f"lab/tokenizer-{says[:3].strip()}-{fault if isinstance(fault, int | str) else 'page'}-{where[1]}"
    hub.models[name] = Repo({"config.json": json.dumps({"a": list(range(200))}).encode()})
    call = 'found(fetch(name, ["*.json"], repo_type="model"))'
    with hub.failing("GET|HEAD", where, fault):
        said = client.refused(call, name=name)
    assert said.startswith("HubError: ")
    assert f"model '{name}'" in said
    assert says in said
    assert "\n" not in said
    assert cached(home, name) == []
    assert client(call, name=name) == ["config.json"]


def test_half_a_file_is_not_taken_for_a_file(hub, client, home):
    hub.models["lab/half"] = Repo({"a.json": b"[1]", "model.safetensors": bytes(range(256)) * 40})
    call = 'found(fetch("lab/half", ["*"], repo_type="model"))'
    with hub.failing("GET", "model.safetensors", "half"):
        assert "could not fetch model 'lab/half'" in client.refused(call)
    assert "model.safetensors" not in cached(home, "lab/half")
    assert client(call) == ["a.json", "model.safetensors"]
    whole = '(fetch("lab/half", ["*"], repo_type="model") / "model.safetensors").read_bytes().hex()'
    assert client(whole) == (bytes(range(256)) * 40).hex()


def test_the_cache_serves_while_the_hub_is_down(hub, client):
    hub.models["lab/steady"] = Repo({"a": b"1"})
    call = 'found(fetch("lab/steady", ["*"], repo_type="model"))'
    client(call)
    with hub.failing(".*", "", 500):
        assert client(call) == ["a"]


def test_a_hub_out_of_reach(running, tmp_path):
    with hub_client(running.environment(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")) as client:
        said = client.refused(HELPERS + 'Episodes.load("lab/arm")')
        assert "dataset 'lab/arm': the Hub is not reached and the cache has no copy" in said
        said = client.refused(HELPERS + 'put("lab/arm", {"mark": "ours"})')
        assert said.startswith("HubError: could not push to model 'lab/arm': ")


# ---- writing ----------------------------------------------------------------------------------------------------


def test_a_repository_is_made_and_then_replaced_where_it_is_ours(hub, client):
    first = client('put("lab/new", {"mark": "ours", "old": "1", "x/y": "2"})')
    assert first.startswith(hub.url)
    made = hub.models["lab/new"]
    assert made.files == {".gitattributes": b"", "mark": b"ours", "old": b"1", "x/y": b"2"}
    assert made.token is None
    made.commit("main", {**made.files, "notes.txt": b"theirs"})
    client('put("lab/new", {"mark": "ours", "README.md": "card"})')
    assert made.files == {
        ".gitattributes": b"",
        "mark": b"ours",
        "x/y": b"2",
        "README.md": b"card",
        "notes.txt": b"theirs",
    }
    commits = len(made.commits)
    client('put("lab/new", {"mark": "ours", "README.md": "card"})')
    assert len(made.commits) == commits


def test_a_private_repository_is_made_private(hub, client):
    client('put("lab/private", {"mark": "ours"}, private=True)')
    assert hub.models["lab/private"].token == WRITER
    assert "lab/private" in client.refused('fetch("lab/private", ["*"], repo_type="model", token=False)')
    assert client(f'found(fetch("lab/private", ["mark"], repo_type="model", token="{WRITER}"))') == ["mark"]


@pytest.mark.parametrize("held", [{"mark": b"theirs"}, {"old": b"1"}, {"mark": b"theirs", "README.md": b"card"}])
@pytest.mark.parametrize("revision", [None, "new-branch"])
def test_what_belongs_to_others_is_not_overwritten(held, revision, hub, client):
    hub.models["lab/theirs"] = theirs = Repo(held)
    said = client.refused('put("lab/theirs", {"mark": "ours"}, revision=revision)', revision=revision)
    assert said.startswith("FormatError: expected a new repository or one of ours")
    assert "model 'lab/theirs'" in said
    assert theirs.refs == {"main": theirs.sha("main")}
    assert theirs.files == held
    assert not [path for method, path in hub.log if method == "POST" and "/commit/" in path]


def test_the_card_that_the_hub_wrote_may_be_replaced(hub, client):
    hub.models["lab/clicked"] = Repo({"README.md": b"---\nlicense: mit\n---\n"})
    client('put("lab/clicked", {"mark": "ours", "README.md": "card"})')
    assert hub.models["lab/clicked"].files == {"mark": b"ours", "README.md": b"card"}


def test_branches_begin_at_the_main_branch(hub, client):
    hub.models["lab/branched"] = repo = Repo({"mark": b"ours", "notes": b"1"})
    client('put("lab/branched", {"mark": "ours", "old": "2"}, revision="v2")')
    assert repo.files == {"mark": b"ours", "notes": b"1"}
    assert repo.at("v2") == {"mark": b"ours", "notes": b"1", "old": b"2"}
    client('put("lab/branched", {"mark": "ours"}, revision="v2")')
    assert repo.at("v2") == {"mark": b"ours", "notes": b"1"}


def test_a_pull_request_leaves_the_branch_alone(hub, client):
    hub.models["lab/asked"] = repo = Repo({"mark": b"ours", "old": b"1"})
    address = client(f'put("lab/asked", {{"mark": "ours"}}, create_pr=True, token="{READER}")')
    assert address.endswith("/discussions/1")
    assert repo.files == {"mark": b"ours", "old": b"1"}
    assert repo.at("refs/pr/1") == {"mark": b"ours"}
    said = client.refused('put("lab/asked", {"mark": "ours"}, create_pr=True, revision="no-such")')
    assert "expected an existing revision" in said
    assert set(repo.refs) == {"main", "refs/pr/1"}


def test_a_gitignore_of_the_repository_leaves_nothing_out(hub, client):
    hub.models["lab/ignoring"] = repo = Repo({"mark": b"ours", ".gitignore": b"*\n"})
    client('put("lab/ignoring", {"mark": "ours", "old": "2"})')
    assert repo.files == {"mark": b"ours", ".gitignore": b"*\n", "old": b"2"}


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("hf_wrong", "the Hub does not accept the token; pass token="),
        (False, "the Hub does not accept the token; pass token="),
        (READER, "the token may not do this; ask for access"),
    ],
)
@pytest.mark.parametrize("held", [None, {"mark": b"ours"}])
@pytest.mark.parametrize("revision", [None, "v2"])
def test_whoever_may_not_write_changes_nothing(token, says, held, revision, hub, client):
    if held:
        hub.models["lab/closed"] = Repo(held)
    code = 'put("lab/closed", {"mark": "ours", "old": "1"}, token=token, revision=revision)'
    said = client.refused(code, token=token, revision=revision)
    assert said.startswith("HubError: could not push to model 'lab/closed'")
    assert says in said
    assert ("lab/closed" in hub.models) == bool(held)
    if held:
        assert (hub.models["lab/closed"].files, list(hub.models["lab/closed"].refs)) == (held, ["main"])


STEPS = [
    "/api/repos/create",
    "/revision/|/api/models/lab/[^/]+$",
    "/paths-info/",
    "/resolve/",
    "/api/validate-yaml",
    "/preupload/",
    "/commit/",
]


@pytest.mark.parametrize("fault", ["cut", 429, 500, PAGE])
@pytest.mark.parametrize("step", STEPS)
def test_a_push_that_fails_half_way_changes_nothing_and_can_be_repeated(fault, step, hub, client):
    before = {"mark": b"ours", "old": b"1", "README.md": b"card"}
    hub.models["lab/cut"] = repo = Repo(before)
    push = 'put("lab/cut", {"mark": "ours", "README.md": "---\\na: 1\\n---\\n"})'
    with hub.failing(".*", step, fault):
        assert client.refused(push).startswith("HubError: could not push to model 'lab/cut': ")
    assert repo.refs == {"main": repo.sha("main")}
    assert repo.files == before
    client(push)
    assert repo.files == {"mark": b"ours", "README.md": b"---\na: 1\n---\n"}


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_first_push_that_is_cut_off_leaves_an_empty_repository(revision, hub, client):
    push = 'put("lab/first", {"mark": "ours", "old": "1"}, revision=revision)'
    with hub.failing("POST", "/commit/", "cut"):
        client.refused(push, revision=revision)
    repo = hub.models["lab/first"]
    assert {name for sha in repo.commits for name in repo.at(sha)} == {".gitattributes"}
    client(push, revision=revision)
    assert repo.at(revision or "main") == {".gitattributes": b"", "mark": b"ours", "old": b"1"}


def test_an_answer_that_is_lost_can_be_asked_for_again(hub, client):
    hub.models["lab/lost"] = repo = Repo({"mark": b"ours"})
    with hub.failing("POST", "/commit/", "lost"):
        client.refused('put("lab/lost", {"mark": "ours", "old": "1"})')
    assert repo.files == {"mark": b"ours", "old": b"1"}
    commits = len(repo.commits)
    client('put("lab/lost", {"mark": "ours", "old": "1"})')
    assert len(repo.commits) == commits


def test_what_others_commit_meanwhile_is_not_overwritten(hub, client):
    hub.models["lab/busy"] = repo = Repo({"mark": b"ours"})
    push = 'put("lab/busy", {"mark": "ours", "old": "1"})'
    with hub.failing("POST", "/commit/", lambda: repo.commit("main", {"mark": b"theirs"}) and None):
        said = client.refused(push)
    assert said.startswith("HubError: could not push to model 'lab/busy': somebody else has committed meanwhile")
    assert repo.files == {"mark": b"theirs"}
    assert "expected a new repository or one of ours" in client.refused(push)


def test_a_stale_cache_does_not_speak_for_the_repository(hub, client):
    hub.models["lab/turned"] = repo = Repo({"mark": b"ours"})
    client('str(fetch("lab/turned", ["*"], repo_type="model"))')
    repo.commit("main", {"mark": b"theirs"})
    with hub.failing("GET|HEAD", "/resolve/", 500):
        assert "HubError: could not push to" in client.refused('put("lab/turned", {"mark": "ours"})')
    assert "FormatError" in client.refused('put("lab/turned", {"mark": "ours"})')
    assert repo.files == {"mark": b"theirs"}


def test_a_card_that_the_hub_does_not_take(hub, client):
    said = client.refused('put("lab/carded", {"mark": "ours", "README.md": "---\\na: [\\n---\\n"})')
    assert said.startswith("HubError: could not push to model 'lab/carded': ValueError: Invalid metadata in README.md")
    assert set(hub.models["lab/carded"].files) == {".gitattributes"}
