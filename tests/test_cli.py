import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from action_tokenizers import ActionTokenizer, Episodes
from action_tokenizers.cli import DEMO_DATA, main, parse_spec
from action_tokenizers.data import smooth_episodes
from action_tokenizers.errors import ActionValueError
from tests.fakes.hub import FakeHub
from tests.fakes.shard_files import recorded, truncate, write_frames


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of demonstrations: six episodes of 40 to 60 steps, 3 dims, 10 frames a second."""
    folder = tmp_path_factory.mktemp("data")
    episodes = smooth_episodes(6, length=(40, 60), action_dim=3, seed=0)
    actions = np.concatenate(episodes.actions)
    ends = np.cumsum(episodes.lengths)
    np.savez(folder / "episodes.npz", action=actions, episode_ends=ends, fps=10)
    return str(folder / "episodes.npz")


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def facts(output):
    return json.loads(output)


def test_demo_leaves_report_and_tokenizers(run, tmp_path):
    out = tmp_path / "demo"
    code, text, _ = run("demo", "--out", out)
    assert code == 0
    for name in ("binning", "kmeans", "residual_vq", "fast"):
        assert name in text
        tokenizer = ActionTokenizer.from_pretrained(out / "tokenizers" / name)
        assert tokenizer.tokenizer_type == name
        assert tokenizer.horizon == 16
    assert "drift" in text
    assert "error (MSE)" in (out / "comparison.md").read_text()
    rows = json.loads((out / "comparison.json").read_text())["tokenizers"]
    # binning is fine and long, residual VQ coarse and short, FAST between them
    assert rows["binning"]["mse"] < rows["fast"]["mse"] < rows["residual_vq"]["mse"]
    assert rows["binning"]["tokens"] > rows["fast"]["tokens"] > rows["residual_vq"]["tokens"]


def test_fit_encode_decode_info(run, data, tmp_path):
    folder, ids, actions = tmp_path / "tok", tmp_path / "ids.npz", tmp_path / "actions.npz"
    code, out, _ = run("fit", "fast:scale=20,vocab_size=300", data, "--out", folder, "--horizon", 8, "--json")
    assert code == 0
    assert facts(out)["horizon"] == 8
    code, out, _ = run("encode", folder, data, "--out", ids, "--fps", 10, "--json")
    assert code == 0
    assert facts(out)["chunks"] == sum(-(-n // 8) for n in Episodes.load(data).lengths)
    code, out, _ = run("decode", folder, ids, "--out", actions, "--json")
    assert code == 0
    assert facts(out)["repaired"] == 0
    tokenizer = ActionTokenizer.from_pretrained(folder)
    with np.load(ids) as written, np.load(actions) as decoded:
        assert (decoded["actions"] == tokenizer.decode(written["ids"])).all()
        first = Episodes.load(data).actions[0][:8]
        assert np.abs(decoded["actions"][0] - first).max() < 0.2
    code, out, _ = run("info", folder)
    assert code == 0
    assert "fast" in out
    assert "vocab_size" in out


def test_decode_repairs_only_when_asked(run, data, tmp_path):
    folder, ids, out_file = tmp_path / "tok", tmp_path / "ids.npz", tmp_path / "actions.npz"
    run("fit", "fast:vocab_size=300", data, "--out", folder, "--horizon", 8)
    tokenizer = ActionTokenizer.from_pretrained(folder)
    rows = tokenizer.encode(Episodes.load(data).actions[0][:16].reshape(2, 8, 3))
    rows[0, 0] = tokenizer.pad_id
    np.savez(ids, ids=rows)
    code, out, err = run("decode", folder, ids, "--out", out_file)
    assert code == 2
    assert "try_decode" in err
    assert not out_file.exists()
    code, out, _ = run("decode", folder, ids, "--out", out_file, "--repair", "--json")
    assert code == 0
    assert facts(out)["repaired"] == 1
    with np.load(out_file) as written:
        assert written["valid"].tolist() == [False, True]


def test_relative_actions_come_back_absolute(run, tmp_path):
    folder, ids, out = tmp_path / "tok", tmp_path / "ids.npz", tmp_path / "actions.npz"
    rng = np.random.default_rng(0)
    state = 100 + np.cumsum(rng.normal(size=(80, 2)), 0)  # far from zero: absolute actions would not fit the range
    np.savez(tmp_path / "d.npz", action=state + rng.uniform(-1, 1, (80, 2)), state=state, episode_ends=[40, 80])
    arguments = ["fit", "binning", tmp_path / "d.npz", "--out", folder, "--horizon", 4, "--relative-to", "state"]
    assert run(*arguments)[0] == 0
    assert ActionTokenizer.from_pretrained(folder).relative.mode == "state"
    assert run("encode", folder, tmp_path / "d.npz", "--out", ids)[0] == 0
    assert run("decode", folder, ids, "--out", out)[0] == 0
    episodes = Episodes.load(tmp_path / "d.npz")
    recorded = np.concatenate(episodes.actions).reshape(-1, 4, 2)
    with np.load(out) as decoded:
        error = np.abs(decoded["actions"] - recorded)
        assert np.median(error) < 0.05
    with np.load(ids) as written:
        np.savez(ids, ids=written["ids"])
    code, _, err = run("decode", folder, ids, "--out", out)
    assert code == 2
    assert "reference" in err


def test_fit_reads_large_data_file_by_file_to_the_same_bytes(run, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    for name, seed in (("a", 0), ("b", 1)):
        write_frames(tmp_path / name, recorded(12, seed=seed), [0, 50, 120])
    asked = ["fit", "binning", tmp_path / "a", tmp_path / "b", "--horizon", 5, "--relative-to", "state", "--test", 0.3]
    assert run(*asked, "--out", tmp_path / "whole", "--max-chunks", 50)[0] == 0
    monkeypatch.setattr("action_tokenizers.data.streaming.LARGE", 1)
    monkeypatch.setattr(Episodes, "load", None)  # it is not loaded
    assert run(*asked, "--out", tmp_path / "streamed", "--max-chunks", 50)[0] == 0
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "streamed" / file.name).read_bytes() == file.read_bytes()


def test_fit_on_two_robots_keeps_a_range_each(run, data, tmp_path):
    other = tmp_path / "other.npz"
    actions = 5 * np.concatenate(Episodes.load(data).actions)
    np.savez(other, action=actions, episode_ends=[len(actions)], fps=10)
    code, _out, _ = run("fit", "binning", data, other, "--out", tmp_path / "tok", "--horizon", 8, "--json")
    assert code == 0
    tokenizer = ActionTokenizer.from_pretrained(tmp_path / "tok")
    assert len(tokenizer.range_keys) == 2
    low, high = tokenizer.range.low, tokenizer.range.high
    assert float((high - low).max() / (high - low).min()) > 4


def test_folders_of_one_name_get_longer_keys(run, data, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "original").mkdir(parents=True)
        actions = np.concatenate(Episodes.load(data).actions)
        np.savez(tmp_path / name / "original" / "e.npz", action=actions, episode_ends=[len(actions)])
    sets = [tmp_path / name / "original" / "e.npz" for name in ("a", "b")]
    assert run("fit", "binning:bins=8", *sets, "--out", tmp_path / "tok", "--horizon", 8)[0] == 0
    assert ActionTokenizer.from_pretrained(tmp_path / "tok").range_keys == ("a/original/e.npz", "b/original/e.npz")
    ids, out = tmp_path / "ids.npz", tmp_path / "actions.npz"
    code, _, err = run("encode", tmp_path / "tok", sets[1], "--out", ids)
    assert code == 2
    assert "a/original/e.npz" in err
    assert run("encode", tmp_path / "tok", sets[1], "--out", ids, "--key", "b/original/e.npz")[0] == 0
    assert run("decode", tmp_path / "tok", ids, "--out", out)[0] == 0  # the file knows its key
    code, _, err = run("fit", "binning", sets[0], sets[0], "--out", tmp_path / "tok", "--horizon", 8)
    assert code == 2
    assert "once" in err


def test_encode_covers_every_frame(run, data, tmp_path):
    run("fit", "binning", data, "--out", tmp_path / "tok", "--horizon", 8)
    run("encode", tmp_path / "tok", data, "--out", tmp_path / "ids.npz")
    with np.load(tmp_path / "ids.npz") as written:
        assert (~written["action_is_pad"]).sum() == Episodes.load(data).frames


def test_encode_file_by_file_goes_on_and_tells_what_was_left_out(run, shards, tmp_path):
    from action_tokenizers.integrations.token_shards import encode_shards, read_manifest

    assert run("fit", "fast", shards, "--out", tmp_path / "tok", "--horizon", 5)[0] == 0
    encode = ("encode", tmp_path / "tok", shards, "--shards", tmp_path / "tokens")
    code, out, _ = run(*encode, "--stride", 3, "--json")
    assert code == 0
    tokenizer = ActionTokenizer.from_pretrained(tmp_path / "tok")
    manifest = encode_shards(tokenizer, shards, tmp_path / "api", stride=3)
    assert read_manifest(tmp_path / "tokens", verify=True) == manifest
    told = facts(out)
    assert (told["files"], told["episodes"], told["chunks"]) == (3, 8, manifest["chunks"])
    assert told["tokens"] == pytest.approx(manifest["tokens"] / manifest["chunks"], abs=0.005)
    assert "skipped_files" not in told
    code, out, _ = run("info", tmp_path / "tokens", "--json")
    assert code == 0
    assert facts(out) == {name: said for name, said in manifest.items() if name != "files"}
    assert run(*encode, "--stride", 3)[0] == 0  # goes on with a folder of the same
    code, _, errors = run(*encode)
    assert code == 2
    assert "stride" in errors
    (tmp_path / "tokens" / "_encoding.json").write_text("{}")
    code, _, errors = run("info", tmp_path / "tokens")
    assert code == 2
    assert "unfinished" in errors

    last = sorted(shards.rglob("*.parquet"))[-1]
    truncate(last)
    broken = ("encode", tmp_path / "tok", shards, "--shards", tmp_path / "rest")
    code, _, errors = run(*broken)
    assert code == 2
    assert last.name in errors
    code, out, _ = run(*broken, "--skip-broken", "--json")
    assert code == 0
    assert [Path(name).name for name in facts(out)["skipped_files"]] == [last.name]


def test_encode_says_where_to_only_once_and_reads_parquet_file_by_file(run, data, shards, tmp_path, capsys):
    assert run("fit", "binning", data, "--out", tmp_path / "tok", "--horizon", 5)[0] == 0
    code, _, errors = run("encode", tmp_path / "tok", data, "--shards", tmp_path / "tokens")
    assert code == 2
    assert "Episodes.load reads it as a whole" in errors
    code, _, errors = run("encode", tmp_path / "tok", shards, "--shards", next(shards.rglob("*.parquet")))
    assert code == 2
    assert "expected a folder or a new name" in errors
    code, _, errors = run("encode", tmp_path / "tok", shards, "--shards", shards / "tokens")
    assert code == 2
    assert "expected a folder whose parquet files are not those of the data" in errors
    for where in ((), ("--out", "a.npz", "--shards", "b")):
        with pytest.raises(SystemExit):
            run("encode", tmp_path / "tok", shards, *where)


@pytest.mark.parametrize("verb", ["info", "compare", "audit", "encode"])
def test_whatever_reads_data_leaves_broken_files_out_only_when_asked(run, shards, tmp_path, verb):
    assert run("fit", "binning:bins=16", shards, "--out", tmp_path / "tok", "--horizon", 5)[0] == 0
    last = sorted(shards.rglob("*.parquet"))[-1]
    truncate(last)
    tok = tmp_path / "tok"
    command = {
        "info": ("info", shards),
        "compare": ("compare", shards, tok, "--horizon", 5, "--test", 0.5),
        "audit": ("audit", tok, shards, "--budget", 0),
        "encode": ("encode", tok, shards, "--out", tmp_path / "ids.npz"),
    }[verb]
    code, _, errors = run(*command)
    assert code == 2
    assert last.name in errors
    code, out, errors = run(*command, "--skip-broken", "--json")
    assert code == 0
    assert f"1 of 3 files of set left out as broken, and 1 episodes that they may cut off: set/{last.name}: " in errors
    if verb == "info":
        assert facts(out)["episodes"] == 5


def test_info_shows_data(run):
    code, out, _ = run("info", DEMO_DATA, "--json")
    assert code == 0
    found = facts(out)
    assert (found["episodes"], found["frames"], found["action_dim"], found["fps"]) == (75, 7650, 4, 80)


def test_compare_types_specs_and_folders(run, data, tmp_path):
    run("fit", "binning:bins=16", data, "--out", tmp_path / "mine", "--horizon", 8)
    code, out, _ = run(
        "compare", data, "fast:vocab_size=300", tmp_path / "mine", "--horizon", 8, "--out", tmp_path / "r", "--json"
    )
    assert code == 0
    assert list(facts(out)["tokenizers"]) == ["fast:vocab_size=300", "mine"]
    assert json.loads((tmp_path / "r" / "comparison.json").read_text())["data"]["horizon"] == 8
    code, out, _ = run("compare", data, "--horizon", 8)
    assert code == 0
    assert "residual_vq" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["info", "{tmp}/nothing"], "nothing"),
        (["info", "{tmp}"], "expected"),
        (["fit", "unheard", "{data}", "--out", "{tmp}/t", "--horizon", "8"], "binning"),
        (["fit", "fast:wrong=1", "{data}", "--out", "{tmp}/t", "--horizon", "8"], "wrong"),
        (["fit", "fast:vocab_size=3", "{data}", "--out", "{tmp}/t", "--horizon", "8"], "vocab_size"),
        (["fit", "fast", "{data}", "--out", "{tmp}/t", "--horizon", "999"], "999"),
        (["fit", "fast", "{data}", "--out", "{tmp}/file/t", "--horizon", "8"], "file"),
        (["fit", "fast", "{data}", "--out", "{tmp}/t", "--horizon", "8", "--action", "nix"], "nix"),
        (["compare", "{data}", "--horizon", "999"], "999"),
        (["encode", "{tmp}", "{data}", "--out", "{tmp}/x.npz"], "config.json"),
        (["demo", "--out", "{tmp}/file/demo"], "file"),
        (["decode", "{tmp}", "{tmp}/none.npz", "--out", "{tmp}/x.npz"], "config.json"),
        (["encode", "{tmp}", "{data}", "--out", "{tmp}/x.txt"], ".npz"),
        (["fit", 'fast:horizon="abc"', "{data}", "--out", "{tmp}/t"], "horizon"),
        (["fit", "fast:horizon=0", "{data}", "--out", "{tmp}/t"], "horizon"),
        (["compare", "{data}", "fast:horizon=2.5"], "horizon"),
        (["fit", "fast:vocab_size=1099511627776", "{data}", "--out", "{tmp}/t", "--horizon", "8"], "vocab_size"),
        (["fit", "kmeans:seed=4294967296", "{data}", "--out", "{tmp}/t", "--horizon", "8"], "seed"),
        (["fit", "residual_vq:seed=4294967295", "{data}", "--out", "{tmp}/t", "--horizon", "8"], "seed"),
        (["fit", "fast", "{data}", "--out", "{tmp}/t", "--horizon", "8", "--angles", "1"], "--relative-to"),
        (["compare", "{data}", "binning", "binning", "--horizon", "8"], "twice"),
        (["compare", "{data}", "--horizon", "8", "--out", "{tmp}/file/x"], "file"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(run, data, tmp_path, arguments, told):
    (tmp_path / "file").write_text("not a folder")
    code, out, err = run(*(a.format(data=data, tmp=tmp_path) for a in arguments))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("action-tokenizers: ")
    assert told in err


def test_wrong_usage_exits_2(capsys):
    for arguments in ([], ["nonsense"], ["compare"], ["fit", "fast"], ["compare", "data", "--seed", "-1"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_spec():
    assert parse_spec("fast") == ("fast", {})
    assert parse_spec("kmeans:groups=[[0,1],[2]],scope=chunk") == (
        "kmeans",
        {"groups": [[0, 1], [2]], "scope": "chunk"},
    )
    with pytest.raises(ActionValueError, match="name=value"):
        parse_spec("fast:20")


SHARED = Path(__file__).resolve().parents[2] / "shared" / "pretrained"
needs_published = pytest.mark.skipif(not SHARED.is_dir(), reason="the published FAST folders are not here")
FAST_PLUS = SHARED / "physical-intelligence-fast"


@needs_published
def test_import_and_export_of_a_published_folder(run, tmp_path):
    imported, exported = tmp_path / "imported", tmp_path / "exported"
    code, out, _ = run("info", FAST_PLUS, "--json")
    assert code == 0
    assert (facts(out)["tokenizer_type"], facts(out)["vocab_size"]) == ("published_fast", 2049)
    code, out, _ = run("import", FAST_PLUS, "--out", imported, "--json")
    assert code == 0
    assert facts(out)["action_dim"] is None
    code, out, _ = run("export", imported, "--out", exported)
    assert code == 0
    chunk = np.random.default_rng(0).uniform(-1, 1, (3, 12, 5)).astype(np.float32)
    ids = [ActionTokenizer.from_pretrained(folder).encode(chunk) for folder in (FAST_PLUS, imported, exported)]
    assert (ids[0] == ids[1]).all()
    assert (ids[0] == ids[2]).all()


@needs_published
def test_import_with_the_range_of_a_data_set(run, data, tmp_path):
    folder, ids, actions = tmp_path / "tok", tmp_path / "ids.npz", tmp_path / "actions.npz"
    code, out, _ = run("import", FAST_PLUS, "--out", folder, "--range-from", data, "--json")
    assert code == 0
    assert facts(out)["action_dim"] == 3
    assert run("encode", folder, data, "--horizon", 8, "--out", ids)[0] == 0
    assert run("decode", folder, ids, "--out", actions)[0] == 0
    episodes = Episodes.load(data)
    with np.load(actions) as decoded:
        # units of the data, not normalised ones
        span = np.ptp(np.concatenate(episodes.actions), axis=0)
        assert (np.abs(decoded["actions"][0] - episodes.actions[0][:8]) < 0.15 * span).all()


@needs_published
def test_encode_and_decode_without_a_stored_shape(run, tmp_path):
    ids, actions = tmp_path / "ids.npz", tmp_path / "actions.npz"
    assert run("encode", FAST_PLUS, DEMO_DATA, "--horizon", 16, "--out", ids)[0] == 0
    assert run("decode", FAST_PLUS, ids, "--out", actions)[0] == 0
    with np.load(actions) as decoded:
        assert decoded["actions"].shape[1:] == (16, 4)
        assert decoded["valid"].all()


@needs_published
def test_compare_gives_a_published_folder_the_range_of_the_data(run, data):
    code, out, _ = run("compare", data, FAST_PLUS, "fast", "--horizon", 8, "--json")
    assert code == 0
    told = facts(out)
    assert any("q01-q99" in note for note in told["notes"])
    published, ours = told["tokenizers"][FAST_PLUS.name], told["tokenizers"]["fast"]
    # both round the same coefficients of equally normalised actions
    assert published["mse"] == pytest.approx(ours["mse"], rel=0.02)
    assert published["vocab_size"] == 2049


def test_export_is_for_imported_tokenizers(run, data, tmp_path):
    run("fit", "binning", data, "--out", tmp_path / "tok")
    code, _, told = run("export", tmp_path / "tok", "--out", tmp_path / "out")
    assert code == 2
    assert "binning" in told
    code, _, told = run("import", tmp_path / "tok", "--out", tmp_path / "again", "--range-from", data)
    assert code == 2
    assert "has a range of its own" in told


def test_a_damaged_tokenizer_is_not_taken_for_data(run, data, tmp_path):
    folder = tmp_path / "tok"
    run("fit", "binning", data, "--out", folder)
    (folder / "config.json").write_text("{")
    code, _, told = run("info", folder)
    assert code == 2
    assert "config.json" in told
    assert "data" not in told.replace(str(folder), "")


def test_a_name_that_is_nothing(run):
    code, _, told = run("info", "nobody/nothing")
    assert code == 2
    assert "as tokenizer" in told
    assert "as data" in told


def test_push_and_load_by_name(tmp_path, data):
    """The commands a user types, against a Hub on the loopback interface."""
    with FakeHub() as hub:
        environment = hub.environment(tmp_path / "home", HF_TOKEN="hf_fake")

        def command(*arguments, **more):
            line = [sys.executable, "-c", "from action_tokenizers.cli import main; raise SystemExit(main())"]
            line += map(str, arguments)
            return subprocess.run(line, env=environment | more, capture_output=True, text=True, timeout=120)

        folder = tmp_path / "tok"
        assert command("fit", "fast:vocab_size=300", data, "--out", folder, "--horizon", 8).returncode == 0
        pushed = command("push", folder, "me/tok", "--license", "apache-2.0", "--message", "first")
        assert pushed.returncode == 0, pushed.stderr
        assert "me/tok" in pushed.stdout
        assert set(hub.models["me/tok"].files) >= {"config.json", "model.safetensors", "README.md"}
        assert b'license: "apache-2.0"' in hub.models["me/tok"].files["README.md"]
        told = command("info", "me/tok@main", "--json")
        assert facts(told.stdout)["vocab_size"] == 300
        ids = tmp_path / "ids.npz"
        assert command("encode", "me/tok", data, "--fps", 10, "--out", ids, HF_HUB_OFFLINE="1").returncode == 0
        with np.load(ids) as written:
            assert (written["ids"] < 300).all()
        refused = command("push", folder, "me/tok", HF_TOKEN="hf_wrong")
        assert refused.returncode == 2
        assert "me/tok" in refused.stderr
        assert refused.stderr.count("\n") == 1


@needs_published
def test_import_with_another_limit(run, tmp_path):
    code, out, _ = run("import", FAST_PLUS, "--out", tmp_path / "t", "--limit", "3", "--json")
    assert code == 0
    assert facts(out)["params"]["limit"] == "3.0"
    assert ActionTokenizer.from_pretrained(tmp_path / "t").get_params()["limit"] == 3
    code, _, told = run("import", FAST_PLUS, "--out", tmp_path / "u", "--limit", "-1")
    assert code == 2
    assert "limit" in told


def test_compare_tells_folders_of_one_name_apart(run, data, tmp_path):
    for place in ("one", "two"):
        run("fit", "fast:vocab_size=200", data, "--out", tmp_path / place / "fast", "--horizon", 8)
    names = [str(tmp_path / place / "fast") for place in ("one", "two")]
    code, out, _ = run("compare", data, "fast:vocab_size=300", *names, "--horizon", 8, "--json")
    assert code == 0
    assert list(facts(out)["tokenizers"]) == ["fast:vocab_size=300", "fast", names[1]]


@pytest.fixture(scope="module")
def audited(data, tmp_path_factory):
    """A tokenizer fitted on half of the data, as `fit --test 0.5` leaves it."""
    folder = tmp_path_factory.mktemp("audited") / "tok"
    assert main(["fit", "binning:bins=32", data, "--out", str(folder), "--horizon", "8", "--test", "0.5"]) == 0
    return folder


def test_audit_prints_the_verdict_first_and_writes_three_reports(run, data, audited, tmp_path):
    code, out, err = run("audit", audited, data, "--test", 0.5, "--out", tmp_path, "--budget", 0)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(
        ("Nothing measured", "Conditions that fail:", "Silent failure risk", "Too little to judge")
    )
    order = [
        out.index(word) for word in ("Drift", "Values held still", "Smoothness alarm", "Size of error", "condition")
    ]
    assert order == sorted(order)
    assert "not a forecast" in out
    assert "held out            holds" in out
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["verdict"] in (tmp_path / "audit.md").read_text()
    assert "<svg" in (tmp_path / "audit.html").read_text()


def test_audit_of_the_fitted_episodes_is_loud_and_strict_exits_with_1(run, data, audited):
    code, out, _ = run("audit", audited, data, "--budget", 0, "--strict")
    assert code == 1
    assert "NOT HELD OUT" in out
    assert run("audit", audited, data, "--budget", 0)[0] == 0


def test_audit_as_json_is_equal_for_equal_seeds(run, data, audited):
    first, second = (run("audit", audited, data, "--test", 0.5, "--budget", 0, "--json")[1] for _ in range(2))
    assert json.loads(first)["data"]["episodes"] == 3
    assert first == second


def test_reports_are_written_though_nobody_reads_the_output(data, audited, tmp_path):
    """Closing the pipe loses neither the report nor the exit code."""
    entry = "import sys; from action_tokenizers.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", entry, "audit", str(audited), data, "--budget", "0", "--json"]
    out = tmp_path / "report"
    process = subprocess.Popen([*command, "--strict", "--out", str(out)], stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(120) == 1  # fitted on some of these episodes
    assert (out / "audit.json").stat().st_size > 1000


def test_audit_of_normalised_actions(run, data, audited):
    told = json.loads(run("audit", audited, data, "--test", 0.5, "--budget", 0, "--json", "--normalised")[1])
    assert told["data"]["unit"] == [1, 1, 1]


def test_audit_save_puts_it_into_the_card(run, data, audited, tmp_path):
    folder = tmp_path / "tok"
    ActionTokenizer.from_pretrained(audited).save_pretrained(folder)
    assert run("audit", folder, data, "--test", 0.5, "--budget", 0, "--save")[0] == 0
    card = (folder / "README.md").read_text()
    assert "| held out | holds:" in card
    assert "largest excess jump" in card
    assert ActionTokenizer.from_pretrained(folder).audit["silent_failure"] is None  # 3 episodes show no alarm


def test_audit_says_what_is_wrong_in_one_line(run, data, audited, tmp_path):
    for arguments, expected in (
        (("audit", tmp_path / "none", data), "expected a folder written by save_pretrained"),
        (("audit", audited, tmp_path / "none.npz"), "no such path"),
        (("audit", audited, data, "--horizon", 9), "expected horizon 8"),
        (("audit", audited, data, "--test", 2), "test share between 0 and 1"),
        (("audit", "owner/name", data, "--save"), "expected a folder that we saved"),
        (("compare", data, "--strict"), "expected --audit beside --strict"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert expected in err
        assert err.count("\n") == 1


def test_a_page_without_matplotlib_is_left_out_with_a_warning(run, data, audited, tmp_path, monkeypatch):
    import action_tokenizers.diagnostics.plots as plots
    from action_tokenizers.errors import MissingExtraError

    def missing(*_):
        raise MissingExtraError("expected matplotlib; pip install 'action-tokenizers[plots]'")

    monkeypatch.setattr(plots, "require", missing)
    code, _, err = run("audit", audited, data, "--test", 0.5, "--budget", 0, "--out", tmp_path)
    assert code == 0
    assert "audit.html was not written" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["audit.json", "audit.md"]


def test_compare_with_audits(run, data, tmp_path, monkeypatch):
    code, out, _ = run("compare", data, "binning:bins=16", "--horizon", 8, "--audit", "--out", tmp_path)
    assert code == 0
    assert "binning:bins=16: " in out
    assert json.loads((tmp_path / "comparison.json").read_text())["audits"]["binning:bins=16"]["conditions"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "audit-binning-bins=16.html",
        "audit-binning-bins=16.json",
        "audit-binning-bins=16.md",
        "comparison.html",
        "comparison.json",
        "comparison.md",
    ]
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Conditions" in page


def test_sweep_recommends_within_a_budget_and_saves_it(run, data, tmp_path):
    specs = ("binning:bins=8", "binning:bins=64", "kmeans:codebook_size=16")
    code, out, _ = run("sweep", data, *specs, "--horizon", 8, "--tokens", 10, "--out", tmp_path, "--test", 0.5)
    assert code == 0
    assert "recommended: kmeans:codebook_size=16" in out
    assert json.loads((tmp_path / "sweep.json").read_text())["recommended"] == "kmeans:codebook_size=16"
    assert ActionTokenizer.from_pretrained(tmp_path / "recommended").tokenizer_type == "kmeans"
    assert "<svg" in (tmp_path / "sweep.html").read_text()
    assert "| recommended | kmeans" in (tmp_path / "sweep.md").read_text()
    assert run("sweep", data, "binning", "--horizon", 8, "--tokens", 1, "--strict")[0] == 1


@pytest.fixture
def shards(tmp_path):
    """Parquet files; the last holds two whole episodes and no part of another."""
    pytest.importorskip("pyarrow")
    episodes = recorded(8)
    ends = np.cumsum(episodes.lengths)
    return write_frames(tmp_path / "set", episodes, [int(ends[2]), int(ends[5])])


def test_fit_leaves_broken_files_out_only_when_asked_and_says_which(run, shards, tmp_path):
    last = sorted(path.name for path in shards.rglob("*.parquet"))[-1]
    truncate(next(shards.rglob(last)))
    fit = ("fit", "binning", shards, "--horizon", 5, "--out", tmp_path / "tok")
    code, out, errors = run(*fit)
    assert (code, out) == (2, "")
    assert last in errors
    code, out, _ = run(*fit, "--skip-broken", "--json")
    assert code == 0
    assert [Path(name).name for name in facts(out)["skipped_files"]] == [last]
    provenance = ActionTokenizer.from_pretrained(tmp_path / "tok").provenance
    assert provenance["skipped_shards"] == facts(out)["skipped_files"]
    assert provenance["lost_episodes"] == facts(out)["lost_episodes"]
    code, out, _ = run(*fit, "--skip-broken")
    assert code == 0
    assert last in out


def test_fit_goes_on_from_what_was_sampled(run, shards, tmp_path, monkeypatch):
    fit = ("fit", "binning", shards, "--horizon", 5)
    assert run(*fit, "--out", tmp_path / "whole")[0] == 0

    def interrupted(*_, **__):
        raise OSError("no space left")

    kept = tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr("action_tokenizers.base.ActionTokenizer.save_pretrained", interrupted)
        assert run(*fit, "--out", tmp_path / "resumed", "--resume", kept)[0] == 2
    assert [path.name for path in kept.iterdir()] == ["sample-0.safetensors"]
    with monkeypatch.context() as patch:  # the actions are not read again
        patch.setattr("action_tokenizers.data.shards.Shards.read", interrupted)
        assert run(*fit, "--out", tmp_path / "resumed", "--resume", kept)[0] == 0
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "resumed" / file.name).read_bytes() == file.read_bytes()
    code, _, errors = run(*fit, "--stride", 2, "--out", tmp_path / "other", "--resume", kept)
    assert code == 2
    assert "stride" in errors


def test_what_was_left_out_beside_a_single_recording_is_counted_too(run, tmp_path):
    pytest.importorskip("pyarrow")
    episodes = smooth_episodes(3, length=(100, 100), action_dim=2, seed=0, fps=10.0)
    root = write_frames(tmp_path / "three", episodes, [200])  # the second may go on in what is broken
    truncate(root / "file-001.parquet")
    for more in ((), ("--test", 0.2)):
        fit = ("fit", "binning", root, "--horizon", 5, "--out", tmp_path / "tok", "--skip-broken", "--json")
        code, out, _ = run(*fit, *more)
        assert code == 0
        assert (facts(out)["skipped_files"], facts(out)["lost_episodes"]) == (["three/file-001.parquet"], 1)
        provenance = ActionTokenizer.from_pretrained(tmp_path / "tok").provenance
        assert (provenance["skipped_shards"], provenance["lost_episodes"]) == (["three/file-001.parquet"], 1)


@pytest.mark.parametrize("option", [("--skip-broken",), ("--resume", "kept")])
def test_what_is_not_read_file_by_file_is_loaded(run, data, shards, tmp_path, option, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for sets, more in ([data], ()), ([data, shards], ()), ([shards, data], ("--test", 0.3)):
        fit = ("fit", "binning", *sets, "--horizon", 5, *more)
        assert run(*fit, "--out", tmp_path / "plain")[0] == 0
        code, _, errors = run(*fit, "--out", tmp_path / "other", *option)
        assert code == 0
        assert f"{data} is read as a whole: " in errors
        for file in (tmp_path / "plain").iterdir():
            assert (tmp_path / "other" / file.name).read_bytes() == file.read_bytes()


def test_a_single_recording_is_split_in_time_also_with_resume(run, tmp_path):
    pytest.importorskip("pyarrow")
    one = write_frames(tmp_path / "one", smooth_episodes(1, length=(100, 100), action_dim=2, seed=0, fps=10.0))
    fit = ("fit", "binning", one, "--horizon", 5, "--test", 0.2)
    assert run(*fit, "--out", tmp_path / "plain")[0] == 0
    assert run(*fit, "--out", tmp_path / "other", "--resume", tmp_path / "kept")[0] == 0
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "other" / file.name).read_bytes() == file.read_bytes()


def test_a_set_without_a_chunk_may_be_one_of_several(run, shards, tmp_path):
    pytest.importorskip("pyarrow")
    short = write_frames(tmp_path / "short", smooth_episodes(3, length=(4, 4), action_dim=3, seed=0, fps=10.0))
    code, out, _ = run(
        "fit", "binning", shards, short, "--horizon", 5, "--out", tmp_path / "a", "--resume", tmp_path / "k", "--json"
    )
    assert code == 0
    assert facts(out)["skipped_episodes"] >= 3
    code, _, errors = run("fit", "binning", short, "--horizon", 5, "--out", tmp_path / "b", "--resume", tmp_path / "l")
    assert code == 2
    assert "horizon 5" in errors


def test_where_to_keep_the_sample_is_looked_at_first(run, shards, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for wrong in (file, file / "below"):
        code, _, errors = run("fit", "binning", shards, "--out", tmp_path / "tok", "--resume", wrong)
        assert code == 2
        assert "expected a folder or a new name" in errors
    code, _, errors = run("fit", "binning", shards, "--out", tmp_path / "tok", "--resume", tmp_path / "tok")
    assert code == 2
    assert "another folder" in errors
    code, _, errors = run("fit", "binning", shards, "--state", "nonsense", "--out", tmp_path / "tok", "--skip-broken")
    assert code == 2
    assert "nonsense" in errors
