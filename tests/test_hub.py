"""Folders and repositories: what is saved comes back, whole or not at all, and what is not ours is refused."""

import errno
import hashlib
import importlib.util
import json
import os
import pickletools
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from action_tokenizers import (
    ActionTokenizer,
    ActionValueError,
    BinningTokenizer,
    FASTTokenizer,
    FormatError,
    KMeansTokenizer,
    NotFittedError,
    UnknownTokenizerError,
    artifact,
    hub,
    registry,
)
from action_tokenizers.slots import SlotTokenizer
from tests.fakes.fitted import FAMILIES, MADE, chunks, episodes, fit, fitted_on
from tests.fakes.hub import READER, WRITER, FakeHub, Repo
from tests.fakes.hub_client import hub_client

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
ALWAYS = {CONFIG, TENSORS, CARD, "processor_config.json", "processing_action_tokenizer.py"}
PRETRAINED = Path(__file__).resolve().parents[1].parent / "shared" / "pretrained"
AUDIT = {
    "data": {"source": "some/data"},
    "caption": "On episodes that the fit did not see.",
    "measures": [{"name": "mse", "meaning": "held-out squared error", "value": 1e-4}],
}
installed = cache(packages_distributions)


class Vocabulary:
    """Stands for an `ActionVocabulary`: it knows its tokenizer and its JSON."""

    def __init__(self, *rows: int) -> None:
        self.rows = rows

    def check(self, tokenizer: ActionTokenizer) -> None:
        if max(self.rows) >= tokenizer.vocab_size:
            raise ActionValueError("expected the vocabulary of this tokenizer")

    def to_json(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}


@pytest.fixture(autouse=True)
def quick_look_up(monkeypatch):
    """Ask the environment once which distributions it holds, not at every save."""
    monkeypatch.setattr(artifact, "packages_distributions", installed)


@pytest.fixture(params=MADE)
def fitted(request) -> ActionTokenizer:
    return fit(request.param)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved tokenizer to spoil."""
    return fit("fast").save_pretrained(tmp_path / "saved")


def no_pickle(files: dict[str, bytes]) -> None:
    """Assert that no file is a pickle, or the zip of one that torch.save writes."""
    for name, data in files.items():
        assert b"PK\x03\x04" not in data[:4], name
        assert b"ctorch\n" not in data
        assert b"c__builtin__" not in data
        with pytest.raises(ValueError, match=r"opcode|exhausted|pickle|\w"):
            list(pickletools.genops(data))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / TENSORS).read_bytes())


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json as parsed."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def refill(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors and let the config vouch for them."""
    tensors = tensors_of(folder)
    change(tensors)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    (folder / TENSORS).write_bytes(data)
    edit(folder, lambda config: config.update(sha256=hashlib.sha256(data).hexdigest()))


# ---- there and back ---------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(fitted, tmp_path):
    loaded = ActionTokenizer.from_pretrained(fitted.save_pretrained(tmp_path / "t"))
    assert type(loaded) is type(fitted)
    ids = fitted.encode(chunks())
    np.testing.assert_array_equal(loaded.encode(chunks()), ids)
    assert loaded.decode(ids, horizon=6).tobytes() == fitted.decode(ids, horizon=6).tobytes()
    for fact in ("horizon", "action_dim", "vocab_size", "max_tokens", "pad_id", "range_keys", "provenance"):
        assert getattr(loaded, fact) == getattr(fitted, fact)
    state, again = fitted.state_dict(), loaded.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[name], again[name]) and state[name].dtype == again[name].dtype for name in state)


def test_what_is_loaded_is_saved_the_same(fitted, tmp_path):
    first = fitted.save_pretrained(tmp_path / "one")
    second = ActionTokenizer.from_pretrained(first).save_pretrained(tmp_path / "two")
    assert files(first) == files(second)


def test_the_original_class_and_its_bases_load_it(tmp_path):
    folder = fit("kmeans").save_pretrained(tmp_path / "t")
    for cls in (ActionTokenizer, SlotTokenizer, KMeansTokenizer):
        assert type(cls.from_pretrained(folder)) is KMeansTokenizer


@pytest.mark.parametrize("name", MADE)
def test_a_loaded_tokenizer_can_be_fitted_and_changed(name, tmp_path):
    """Nothing of the loading may stay behind: no meta tensors, no read-only memory."""
    fitted = fit(name)
    loaded = ActionTokenizer.from_pretrained(fitted.save_pretrained(tmp_path / "t"))
    assert not any(t.is_meta for t in loaded.state_dict().values())
    for tensor in loaded.state_dict().values():
        tensor += 0  # writable
    refitted = loaded.fit(fitted_on(name))
    np.testing.assert_array_equal(refitted.encode(chunks()), fitted.encode(chunks()))


def test_several_keys_and_a_path_with_spaces(tmp_path):
    both = [episodes("left"), episodes("right")]
    tokenizer = BinningTokenizer(horizon=6, bins=8).fit(both)
    target = tmp_path / "a folder" / "of mine"
    loaded = ActionTokenizer.from_pretrained(str(tokenizer.save_pretrained(str(target))))
    assert loaded.range_keys == ("left", "right")
    for key in loaded.range_keys:
        np.testing.assert_array_equal(loaded.encode(chunks(), key=key), tokenizer.encode(chunks(), key=key))


@pytest.fixture
def composite(monkeypatch) -> type[ActionTokenizer]:
    """The toy tokenizer made of tokenizers, known to this test alone."""
    others = {name: cls for name, cls in registry._classes.items() if name != "toy_composite"}
    monkeypatch.setattr(registry, "_classes", others)
    spec = importlib.util.spec_from_file_location("composite_of_test_hub", Path(__file__).parent / "fakes/composite.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.CompositeTokenizer


@pytest.mark.parametrize(
    ("parts", "dims"),
    [
        ((FASTTokenizer(vocab_size=128), BinningTokenizer(bins=4)), ([0, 1], [2])),
        ((BinningTokenizer(bins=4), KMeansTokenizer(codebook_size=5)), ([2], [0, 1])),
        ((BinningTokenizer(bins=4), BinningTokenizer(bins=3), BinningTokenizer(bins=5)), ([1], [2], [0])),
    ],
)
def test_tokenizers_inside_a_tokenizer_come_back(parts, dims, composite, tmp_path):
    tokenizer = composite(horizon=6, parts=parts, dims=dims).fit(episodes())
    folder = tokenizer.save_pretrained(tmp_path / "t")
    loaded = ActionTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(chunks())
    np.testing.assert_array_equal(loaded.encode(chunks()), ids)
    assert loaded.decode(ids).tobytes() == tokenizer.decode(ids).tobytes()
    assert files(loaded.save_pretrained(tmp_path / "again")) == files(folder)
    # what is wrong inside a part is as wrong as outside
    original = tensors_of(folder)
    for name in original:
        refill(folder, lambda tensors, name=name: tensors.pop(name))
        refused(folder)
        refill(folder, lambda tensors: tensors.update(original))
    bad = original["parts.1.range.low"] * float("nan")
    refill(folder, lambda tensors: tensors.update({"parts.1.range.low": bad}))
    refused(folder)
    refill(folder, lambda tensors: tensors.update(original))
    edit(folder, lambda config: config["params"]["parts"][0]["fitted"]["sizes"].update(surprise=1))
    refused(folder)


def test_a_second_process_gives_the_same_ids_and_actions(tmp_path):
    expected = {}
    for name in MADE:
        tokenizer = fit(name)
        tokenizer.save_pretrained(tmp_path / name)
        ids = tokenizer.encode(chunks())
        actions = tokenizer.decode(ids, horizon=6)
        expected[name] = [ids.tolist(), hashlib.sha256(actions.tobytes()).hexdigest()]
    np.save(tmp_path / "chunks.npy", chunks())
    code = """
        import hashlib, json, pathlib, sys, numpy as np
        from action_tokenizers import ActionTokenizer
        here = pathlib.Path(sys.argv[1])
        chunks, said = np.load(here / "chunks.npy"), {}
        for folder in sorted(p for p in here.iterdir() if p.is_dir()):
            tokenizer = ActionTokenizer.from_pretrained(folder)
            ids = tokenizer.encode(chunks)
            actions = tokenizer.decode(ids, horizon=6)
            said[folder.name] = [ids.tolist(), hashlib.sha256(actions.tobytes()).hexdigest()]
        print(json.dumps(said))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("name", MADE)
def test_equal_fits_are_equal_bytes(name, tmp_path):
    first, second = (MADE[name]().fit(fitted_on(name)) for _ in range(2))
    first, second = first.save_pretrained(tmp_path / "one"), second.save_pretrained(tmp_path / "elsewhere" / "two")
    assert files(first) == files(second)
    assert set(files(first)) - {"tokenizer.json"} == ALWAYS


def test_the_config_is_the_designs(folder):
    config = json.loads((folder / CONFIG).read_text())
    assert list(config)[:3] == ["model_type", "tokenizer_type", "format_version"]
    assert (config["model_type"], config["tokenizer_type"], config["format_version"]) == ("action_tokenizer", "fast", 1)
    assert config["params"] == {"horizon": 6, "range": "quantile", "scale": 10, "vocab_size": 160}
    facts = config["fitted"]
    assert (facts["horizon"], facts["action_dim"], facts["range_keys"]) == (6, 3, ["default"])
    assert facts["pad_id"] == facts["vocab_size"] - 1
    said = config["provenance"]
    assert said["sources"] == ["some/data"]
    assert said["fps"] == 10.0
    assert said["keys"] == {"default": said["chunks"]}


def test_nothing_says_where_or_when_it_was_written(folder):
    text = b"".join(files(folder).values()).decode("latin-1")
    for secret in (str(folder.parent), os.uname().nodename if len(os.uname().nodename) > 3 else str(folder), "/tmp/"):
        assert secret not in text


def test_nothing_is_pickled(tmp_path):
    """No file is a pickle, and loading never reaches for the unpickler."""
    for kind in MADE:
        no_pickle(files(fit(kind).save_pretrained(tmp_path / kind)))
    code = """
        import pathlib, pickle, sys, torch
        import action_tokenizers
        def refuse(*args, **kwargs):
            raise RuntimeError("a pickle was read")
        class Refuse:
            __init__ = refuse
        pickle.load = pickle.loads = torch.load = refuse
        pickle.Unpickler = Refuse
        for folder in pathlib.Path(sys.argv[1]).iterdir():
            action_tokenizers.ActionTokenizer.from_pretrained(folder)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# ---- saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binning", "fast"])
def test_an_unfitted_tokenizer_is_not_saved(name, tmp_path):
    with pytest.raises(NotFittedError, match="fit"):
        MADE[name]().save_pretrained(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    tokenizer = MADE["binning"]().fit(episodes())
    tokenizer._params["strategy"] = {1, 2}
    with pytest.raises(ActionValueError, match="set"):
        tokenizer.save_pretrained(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_numpy_and_torch_are_saved_as_numbers(tmp_path):
    tokenizer = BinningTokenizer(horizon=6, bins=np.array([4, 4, 2]), mu=np.float32(50)).fit(episodes())
    loaded = ActionTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "t"))
    assert loaded.get_params()["bins"] == [4, 4, 2]
    np.testing.assert_array_equal(loaded.encode(chunks()), tokenizer.encode(chunks()))


def test_saving_again_replaces_our_files_and_keeps_the_others(tmp_path):
    target = tmp_path / "t"
    fit("fast").save_pretrained(target)
    for stale in ("vocabulary.json", "audit.json", "tokenizer.json", "processor_config.json"):
        (target / stale).write_text("of the tokenizer before")
    (target / "processing_action_tokenizer.py").write_text("of the tokenizer before")
    (target / CARD).write_text("an older card")
    (target / "notes.txt").write_text("mine")
    (target / ".gitattributes").write_text("mine too")
    (target / "logs" / "deep").mkdir(parents=True)
    (target / "logs" / "deep" / "run.txt").write_bytes(b"\x00\xff")
    (target / "logs" / CONFIG).write_text("not ours: it is in a folder")
    (target / "link").symlink_to("notes.txt")
    (target / "broken link").symlink_to("nowhere")
    (target / "link to folder").symlink_to("logs")
    second = fit("kmeans")
    assert second.save_pretrained(target) == target
    kept = {"notes.txt", ".gitattributes", "logs/deep/run.txt", f"logs/{CONFIG}", "link"}
    fresh = files(second.save_pretrained(tmp_path / "fresh"))
    found = files(target)
    assert {k: v for k, v in found.items() if k in fresh} == fresh
    assert set(found) - set(fresh) >= kept
    assert not any((target / name).exists() for name in hub.OURS if name not in fresh)
    assert found["logs/deep/run.txt"] == b"\x00\xff"
    assert os.readlink(target / "link") == "notes.txt"
    assert os.readlink(target / "broken link") == "nowhere"
    assert (target / "link to folder").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "t"]


def test_a_file_as_target_is_refused_and_kept(tmp_path):
    target = tmp_path / "t"
    target.write_text("precious")
    with pytest.raises(OSError, match="folder"):
        fit("binning").save_pretrained(target)
    assert target.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def fail_at(monkeypatch, where: str, count: int) -> None:
    """Let the `count`-th call of one file operation of a save fail, as a full disk makes it fail."""
    calls = [0]

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == count:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return failing

    if where == "write":
        monkeypatch.setattr(Path, "write_bytes", wrap(Path.write_bytes))
    elif where == "rename":
        monkeypatch.setattr(os, "replace", wrap(os.replace))
        monkeypatch.setattr(os, "rename", wrap(os.rename))
    elif where == "copy":
        monkeypatch.setattr(shutil, "copy2", wrap(shutil.copy2))
        monkeypatch.setattr(shutil, "copytree", wrap(shutil.copytree))


@pytest.mark.parametrize(
    ("where", "count"),
    [("write", 1), ("write", 2), ("write", 3), ("copy", 1), ("copy", 2), ("rename", 1), ("rename", 2)],
)
def test_a_failure_in_the_middle_leaves_the_old_folder_and_no_litter(where, count, tmp_path, monkeypatch):
    target = tmp_path / "t"
    old = fit("fast")
    old.save_pretrained(target)
    (target / "notes.txt").write_text("mine")
    (target / "logs").mkdir()
    (target / "logs" / "run.txt").write_text("mine")
    before = files(target)
    new = fit("kmeans")
    with monkeypatch.context() as patched:
        fail_at(patched, where, count)
        try:
            new.save_pretrained(target)
            failed = False
        except OSError:
            failed = True
    # an operation that this implementation does not use cannot fail it
    expected = before if failed else {**before, **files(new.save_pretrained(tmp_path / "fresh"))}
    assert files(target) == expected
    assert {p.name for p in tmp_path.iterdir()} <= {"t", "fresh"}
    assert failed or where in ("copy", "rename")


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_failed_first_save_leaves_nothing(where, tmp_path, monkeypatch):
    tokenizer = fit("binning")
    with monkeypatch.context() as patched:
        fail_at(patched, where, 1)
        with pytest.raises(OSError, match="No space left"):
            tokenizer.save_pretrained(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_is_saved_through(tmp_path):
    """`latest -> run7`: the link stays, the folder behind it gets the tokenizer."""
    (tmp_path / "run7").mkdir()
    (tmp_path / "latest").symlink_to("run7")
    tokenizer = fit("binning")
    tokenizer.save_pretrained(tmp_path / "latest")
    assert os.readlink(tmp_path / "latest") == "run7"
    assert set(files(tmp_path / "run7")) == ALWAYS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "run7"]


def test_saving_into_the_working_folder_leaves_one(tmp_path, monkeypatch):
    """A notebook saves to "." and goes on: relative paths must still work."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "data.txt").write_text("mine")
    tokenizer = fit("binning")
    monkeypatch.chdir(work)
    tokenizer.save_pretrained(".")
    assert Path("data.txt").exists()
    assert Path.cwd() == work
    assert ActionTokenizer.from_pretrained(".").vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("mode", [0o700, 0o750])
def test_permissions_of_the_folder_stay(mode, tmp_path):
    target = tmp_path / "t"
    target.mkdir()
    target.chmod(mode)
    fit("binning").save_pretrained(target)
    assert target.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("held", [CONFIG, TENSORS, "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("text", ["{}", '{"model_type": "llama"}', "not even JSON", "[" * 100_000])
def test_the_model_of_somebody_else_is_not_overwritten(held, text, tmp_path):
    (tmp_path / held).write_text(text)
    (tmp_path / CARD).write_text("theirs")
    before = files(tmp_path)
    with pytest.raises(FormatError, match=f"(?s)expected a new folder or one of ours.*{tmp_path}.*{held}"):
        fit("binning").save_pretrained(tmp_path)
    assert files(tmp_path) == before


def test_the_readme_of_a_project_is_not_overwritten(tmp_path):
    (tmp_path / CARD).write_text("# My project")
    with pytest.raises(FormatError, match=r"README\.md"):
        fit("binning").save_pretrained(tmp_path)
    assert files(tmp_path) == {CARD: b"# My project"}


# ---- what travels with it ---------------------------------------------------------------------------------------


def test_audit_vocabulary_and_license_travel_with_it(tmp_path):
    tokenizer = fit("kmeans")
    first = tokenizer.save_pretrained(tmp_path / "1", audit=AUDIT, vocabulary=Vocabulary(3, 2), license="apache-2.0")
    assert set(files(first)) == ALWAYS | {"audit.json", "vocabulary.json"}
    assert json.loads((first / "audit.json").read_text()) == AUDIT
    assert json.loads((first / "vocabulary.json").read_text()) == {"rows": [3, 2]}
    loaded = ActionTokenizer.from_pretrained(first)
    assert loaded.audit == AUDIT
    assert loaded.provenance["license"] == "apache-2.0"
    assert "license" not in tokenizer.provenance
    assert tokenizer.audit is None
    assert files(loaded.save_pretrained(tmp_path / "2")) == files(first)
    third = files(loaded.save_pretrained(tmp_path / "2", license="mit", vocabulary=Vocabulary(1)))
    assert json.loads(third["vocabulary.json"]) == {"rows": [1]}
    assert b'license: "mit"' in third[CARD]
    assert third["audit.json"] == files(first)["audit.json"]
    refitted = loaded.fit(fitted_on("kmeans"))
    assert set(files(refitted.save_pretrained(tmp_path / "2"))) == ALWAYS


class Measured:
    def to_json(self) -> dict[str, Any]:
        return AUDIT


def test_an_audit_may_be_an_object(tmp_path):
    folder = fit("binning").save_pretrained(tmp_path, audit=Measured())
    assert ActionTokenizer.from_pretrained(folder).audit == AUDIT


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"license": ""}, "license"),
        ({"license": 5}, "license"),
        ({"audit": [1]}, "audit"),
        ({"audit": {"measures": 5}}, "audit"),
        ({"audit": {"measures": [{"name": "mse", "value": 1.0}]}}, "measure 0"),
        ({"audit": {"more": float("nan")}}, "finite"),
        ({"audit": {"more": {1}}}, "set"),
        ({"vocabulary": Vocabulary(10_000)}, "vocabulary"),
    ],
)
def test_what_cannot_travel_is_refused_before_anything_is_written(given, says, tmp_path):
    with pytest.raises(ActionValueError, match=says):
        fit("kmeans").save_pretrained(tmp_path / "t", **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["audit.json", "vocabulary.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"measures": 5}'])
def test_a_damaged_companion_names_its_file(name, text, tmp_path):
    folder = fit("kmeans").save_pretrained(tmp_path, audit=AUDIT, vocabulary=Vocabulary(1))
    (folder / name).write_text(text)
    if (name, text) != ("vocabulary.json", '{"measures": 5}'):
        assert name in refused(folder)


# ---- loading what is not right ----------------------------------------------------------------------------------


def refused(folder: Path, says: str | None = None) -> str:
    """The message of the FormatError that loading must end in."""
    with pytest.raises(FormatError, match=says) as caught:
        ActionTokenizer.from_pretrained(folder)
    assert "expected" in str(caught.value)
    return str(caught.value)


def test_a_config_of_the_future_or_of_a_stranger(folder):
    """What `artifact` refuses is refused with the name of the file."""
    edit(folder, lambda config: config.update(format_version=2))
    assert str(folder / CONFIG) in refused(folder, "format_version")
    edit(folder, lambda config: config.update(format_version=1, tokenizer_type="theirs"))
    with pytest.raises(UnknownTokenizerError, match="theirs"):
        ActionTokenizer.from_pretrained(folder)
    edit(folder, lambda config: config.pop("tokenizer_type"))
    assert str(folder / CONFIG) in refused(folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_folder_where_a_file_should_be(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name in refused(folder)


def test_a_path_that_is_no_folder(tmp_path):
    refused(tmp_path / "nothing here", "nothing here")
    (tmp_path / "file").write_text("{}")
    refused(tmp_path / "file", "file")
    for name in (Path("owner/name"), "nothing", "a/b/c", "../name", "owner/"):
        refused(name, "owner/name on the Hub")


def test_unknown_files_are_ignored(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 not for us")
    ActionTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"text"', "{}", '{"model_type": "llama"}', "\ufeff{}", "[" * 100_000, '{"a": ' * 50_000],
)
def test_a_config_that_is_no_config(folder, text):
    (folder / CONFIG).write_text(text, encoding="utf-8")
    assert CONFIG in refused(folder)


def test_a_config_in_no_known_encoding(folder):
    (folder / CONFIG).write_bytes(b"\xff\xfe\xfa{}")
    assert CONFIG in refused(folder)


def test_a_config_that_is_cut_off(folder):
    text = (folder / CONFIG).read_text()
    for length in (1, 20, len(text) // 2, len(text) - 3):
        (folder / CONFIG).write_text(text[:length])
        assert CONFIG in refused(folder)


def test_a_huge_config_is_not_even_read(folder, monkeypatch):
    os.truncate(folder / CONFIG, (16 << 20) + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    assert CONFIG in refused(folder, "at most")


def test_a_huge_tensor_file_is_not_even_read(folder, monkeypatch):
    monkeypatch.setattr(hub, "MOST_TENSOR_BYTES", 100)
    assert TENSORS in refused(folder, "at most 100")


def test_another_family_than_asked_for(folder):
    with pytest.raises(FormatError, match=r"KMeansTokenizer.*FASTTokenizer"):
        KMeansTokenizer.from_pretrained(folder)
    with pytest.raises(FormatError, match="SlotTokenizer"):
        SlotTokenizer.from_pretrained(folder)
    assert type(FASTTokenizer.from_pretrained(folder)) is FASTTokenizer


# ---- tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 7, 50, -1])
def test_a_flipped_bit(folder, where):
    data = bytearray((folder / TENSORS).read_bytes())
    data[where] ^= 1
    (folder / TENSORS).write_bytes(bytes(data))
    assert TENSORS in refused(folder, "other bytes")


@pytest.mark.parametrize("value", ["", "0" * 64, 5, None])
def test_another_digest(folder, value):
    edit(folder, lambda config: config.update(sha256=value))
    refused(folder)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_tensor_file_even_with_its_own_digest(folder, length):
    data = (folder / TENSORS).read_bytes()[:length]
    (folder / TENSORS).write_bytes(data)
    refused(folder, TENSORS)
    edit(folder, lambda config: config.update(sha256=hashlib.sha256(data).hexdigest()))
    refused(folder, TENSORS)


def test_a_header_that_promises_too_much(folder):
    header = json.dumps({"alphabet": {"dtype": "I32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for data in (
        len(header).to_bytes(8, "little") + header,
        (1 << 62).to_bytes(8, "little") + header,
        b"\xff" * 8 + header,
    ):
        (folder / TENSORS).write_bytes(data)
        edit(folder, lambda config, data=data: config.update(sha256=hashlib.sha256(data).hexdigest()))
        refused(folder, TENSORS)


def test_the_tensor_file_of_another_tokenizer(folder, tmp_path):
    other = FASTTokenizer(horizon=6, vocab_size=150).fit(episodes()).save_pretrained(tmp_path / "other")
    shutil.copy(other / TENSORS, folder / TENSORS)
    refused(folder, "other bytes")
    digest = json.loads((other / CONFIG).read_text())["sha256"]
    edit(folder, lambda config: config.update(sha256=digest))
    assert str(folder) in refused(folder, "merges")


# ---- the Hub ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running():
    with FakeHub() as one:
        yield one


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(running, home):
    with hub_client(running.environment(home, HF_TOKEN=WRITER)) as one:
        yield one


@pytest.fixture(scope="module")
def offline(running, home):
    with hub_client(running.environment(home, HF_HUB_OFFLINE="1")) as one:
        yield one


@pytest.fixture
def remote(running):
    """The Hub, emptied."""
    running.models.clear()
    running.log.clear()
    return running


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("saved")
    return cache(lambda name: fit(name).save_pretrained(folder / name))


PUSH = "ActionTokenizer.from_pretrained(folder).push_to_hub(repo)"
IDS = "ActionTokenizer.from_pretrained(repo).encode(np.array(chunks, np.float32)).tolist()"


def pushed(remote, client, name: str, repo: str, saved) -> Repo:
    client(PUSH, folder=str(saved(name)), repo=repo)
    return remote.models[repo]


def cached(home: Path, repo: str) -> dict[str, bytes]:
    """What the cache shows of all commits of a repository."""
    return files(home / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots")


@pytest.mark.parametrize("name", FAMILIES)
def test_push_pull_encode(name, remote, client, home, saved):
    repo = f"lab/{name}"
    address = client(
        """
        tokenizer = ActionTokenizer.from_pretrained(folder)
        tokenizer.push_to_hub(repo, audit=audit, license="apache-2.0")
        """,
        folder=str(saved(name)),
        repo=repo,
        audit=AUDIT,
    )
    here = remote.models[repo]
    assert address.startswith(remote.url)
    assert address.endswith(here.sha("main"))
    foreign = {"pytorch_model.bin": b"\x80\x04K\x01.", "more/scripted.pkl": b"\x80\x04K\x01.", "notes.txt": b"mine"}
    here.commit("main", {**here.files, **foreign})
    remote.log.clear()
    answer = client(
        """
        import pickle, torch
        def refuse(*args, **kwargs):
            raise RuntimeError("a pickle was read")
        class Refuse:
            __init__ = refuse
        held = pickle.load, pickle.loads, pickle.Unpickler, torch.load
        pickle.load = pickle.loads = torch.load = refuse
        pickle.Unpickler = Refuse
        try:
            tokenizer = ActionTokenizer.from_pretrained(repo)
        finally:
            pickle.load, pickle.loads, pickle.Unpickler, torch.load = held
        ids = tokenizer.encode(np.array(chunks, np.float32))
        again = getattr(action_tokenizers, type(tokenizer).__name__).from_pretrained(repo)
        [type(again).__name__, ids.tolist(), tokenizer.decode(ids).tolist(), tokenizer.provenance["license"]]
        """,
        repo=repo,
        chunks=chunks().tolist(),
    )
    tokenizer = fit(name)
    ids = tokenizer.encode(chunks())
    assert answer == [type(tokenizer).__name__, ids.tolist(), tokenizer.decode(ids).tolist(), "apache-2.0"]
    # exactly the files of the artifact, and nothing of the foreign ones was asked for
    expected = ALWAYS | {"audit.json"} | ({"tokenizer.json"} & set(files(saved(name))))
    pulled = {Path(path).name: data for path, data in cached(home, repo).items()}
    assert set(pulled) == expected
    assert set(remote.requested()) == expected
    assert pulled == {path: data for path, data in here.files.items() if path in expected}
    no_pickle(pulled)


def test_another_family_than_asked_for_is_refused_before_its_tensors_come(remote, client, saved):
    pushed(remote, client, "kmeans", "lab/family", saved)
    remote.log.clear()
    said = client.refused('FASTTokenizer.from_pretrained("lab/family")')
    assert said.startswith("FormatError: model 'lab/family' of the Hub: expected a FASTTokenizer")
    assert "KMeansTokenizer; ActionTokenizer.from_pretrained loads any" in said
    assert TENSORS not in remote.requested()


def test_a_type_nobody_knows_names_what_wrote_it(remote, client, saved):
    there = pushed(remote, client, "binning", "lab/stranger", saved)
    config = json.loads(there.files[CONFIG])
    config["tokenizer_type"] = "splines_of_theirs"
    config["provenance"]["written_by"] = ["their-tokenizers"]
    there.commit("main", {**there.files, CONFIG: json.dumps(config).encode()})
    remote.log.clear()
    said = client.refused('ActionTokenizer.from_pretrained("lab/stranger")')
    assert said.startswith("UnknownTokenizerError: model 'lab/stranger' of the Hub: ")
    assert "it was written by their-tokenizers: install that" in said
    assert TENSORS not in remote.requested()


def test_what_is_not_ours_is_refused_before_its_weights_come(remote, client, saved):
    config = json.loads(files(saved("binning"))[CONFIG])
    newer = json.dumps({**config, "format_version": 2}).encode()
    weights = {TENSORS: bytes(1 << 20), "pytorch_model.bin": bytes(1 << 20)}
    for repo, held, says in (
        ("lab/llm", {CONFIG: b'{"model_type": "llama"}'}, "expected an action tokenizer's config"),
        ("lab/newer", {CONFIG: newer}, "a newer one needs a newer action-tokenizers"),
        ("lab/list", {CONFIG: b"[1]"}, "expected a JSON object"),
        ("lab/broken", {CONFIG: b"{"}, "the file is damaged"),
        ("lab/nothing", {}, "expected files config.json, processor_config.json"),
    ):
        remote.models[repo] = Repo({**held, **weights})
        said = client.refused("ActionTokenizer.from_pretrained(repo)", repo=repo)
        assert said.startswith(f"FormatError: model {repo!r} of the Hub: ")
        assert says in said
        assert CONFIG in said
    assert set(remote.requested()) == {CONFIG}


def test_damaged_files_of_a_repository_are_named(remote, client, saved):
    whole = files(saved("binning"))
    for repo, change, says in (
        ("lab/tensorless", {TENSORS: None}, "expected model.safetensors in"),
        ("lab/swapped", {TENSORS: files(saved("kmeans"))[TENSORS]}, "expected .*model.safetensors as saved"),
        ("lab/audited", {"audit.json": b"{"}, "audit.json"),
    ):
        held = {name: data for name, data in {**whole, **change}.items() if data is not None}
        remote.models[repo] = Repo(held)
        said = client.refused("ActionTokenizer.from_pretrained(repo)", repo=repo)
        assert said.startswith(f"FormatError: model {repo!r} of the Hub: ")
        assert re.search(says, said)


def test_revisions(remote, client, saved):
    repo = pushed(remote, client, "binning", "lab/revised", saved)
    first = repo.sha("main")
    repo.refs["v1"] = first
    load = "type(ActionTokenizer.from_pretrained('lab/revised', revision=revision)).__name__"
    client("ActionTokenizer.from_pretrained(folder).push_to_hub('lab/revised')", folder=str(saved("fast")))
    client(
        "ActionTokenizer.from_pretrained(folder).push_to_hub('lab/revised', revision='trial')",
        folder=str(saved("kmeans")),
    )
    for revision, family in (
        (None, "FASTTokenizer"),
        ("main", "FASTTokenizer"),
        ("v1", "BinningTokenizer"),
        (first, "BinningTokenizer"),
        ("trial", "KMeansTokenizer"),
    ):
        assert client(load, revision=revision) == family
    said = client.refused(load, revision="v9")
    assert said == "HubError: expected an existing revision, got none: model 'lab/revised' at revision 'v9'"


def test_the_cache_is_used_and_does_not_go_stale(remote, client, offline, saved):
    ids = {name: fit(name).encode(chunks()).tolist() for name in ("binning", "kmeans")}
    pull = {"repo": "lab/cached", "chunks": chunks().tolist()}
    said = offline.refused(IDS, **pull)
    assert said.startswith("HubError: could not fetch model 'lab/cached': the Hub is not reached")
    pushed(remote, client, "binning", "lab/cached", saved)
    assert client(IDS, **pull) == ids["binning"]
    remote.log.clear()
    assert client(IDS, **pull) == ids["binning"]
    assert remote.requested() == []
    remote.log.clear()
    assert offline(IDS, **pull) == ids["binning"]
    assert client(IDS.replace("(repo)", "(repo, local_files_only=True)"), **pull) == ids["binning"]
    assert remote.log == []
    pushed(remote, client, "kmeans", "lab/cached", saved)
    assert offline(IDS, **pull) == ids["binning"]
    assert client(IDS, **pull) == ids["kmeans"]
    assert offline(IDS, **pull) == ids["kmeans"]
    said = offline.refused("FASTTokenizer().fit(np.array(chunks)).push_to_hub('lab/x')", chunks=chunks().tolist())
    assert said.startswith("HubError: could not push to model 'lab/x'")


def test_a_push_while_it_is_loaded_does_not_mix_two_versions(remote, client, saved):
    there = pushed(remote, client, "binning", "lab/mixed", saved)
    older = fit("binning").encode(chunks()).tolist()

    def commit() -> None:
        there.commit("main", {**there.files, **files(saved("kmeans"))})

    with remote.failing("GET|HEAD", TENSORS, commit):
        assert client(IDS, repo="lab/mixed", chunks=chunks().tolist()) == older
    assert client(IDS, repo="lab/mixed", chunks=chunks().tolist()) == fit("kmeans").encode(chunks()).tolist()


def test_a_load_that_was_cut_off_is_completed_later(remote, client, offline, home, saved):
    pushed(remote, client, "binning", "lab/partial", saved)
    pull = {"repo": "lab/partial", "chunks": chunks().tolist()}
    with remote.failing("GET", TENSORS, "half"):
        said = client.refused(IDS, **pull)
    assert said.startswith("HubError: could not fetch model 'lab/partial'")
    assert TENSORS not in {Path(path).name for path in cached(home, "lab/partial")}
    assert "lab/partial" in offline.refused(IDS, **pull)
    assert client(IDS, **pull) == fit("binning").encode(chunks()).tolist()


@pytest.mark.parametrize(
    ("fault", "says"), [(401, "token"), (404, "404"), (429, "too many"), (500, "500"), ("cut", "")]
)
def test_a_hub_that_does_not_serve_is_named(fault, says, remote, client, home, saved):
    repo = f"lab/down-{fault}"
    pushed(remote, client, "binning", repo, saved)
    with remote.failing("GET|HEAD", repo, fault):
        said = client.refused("ActionTokenizer.from_pretrained(repo)", repo=repo)
    assert said.startswith(f"HubError: could not fetch model {repo!r}: ")
    assert says in said
    assert cached(home, repo) == {}


def test_private_repositories(remote, client, saved):
    client(
        "ActionTokenizer.from_pretrained(folder).push_to_hub('lab/private', private=True)", folder=str(saved("fast"))
    )
    assert remote.models["lab/private"].token == WRITER
    load = "type(ActionTokenizer.from_pretrained('lab/private', token=token)).__name__"
    for token in (False, READER):
        said = client.refused(load, token=token)
        assert said.startswith("HubError: expected a Hub repository or a local path, got none: model 'lab/private'")
        assert "If it is private, pass token=" in said
    assert "accept the token" in client.refused(load, token="hf_wrong")
    assert client(load, token=WRITER) == client(load, token=None) == "FASTTokenizer"


def test_whoever_may_not_push_changes_nothing(remote, client, saved):
    there = pushed(remote, client, "binning", "lab/closed", saved)
    before = dict(there.refs)
    push = "ActionTokenizer.from_pretrained(folder).push_to_hub(repo, token=token)"
    for repo in ("lab/closed", "lab/unmade"):
        for token, says in (("hf_wrong", "accept the token"), (False, "accept the token"), (READER, "may not do this")):
            said = client.refused(push, folder=str(saved("kmeans")), repo=repo, token=token)
            assert said.startswith(f"HubError: could not push to model {repo!r}: ")
            assert says in said
    assert there.refs == before
    assert set(remote.models) == {"lab/closed"}
    said = client.refused("ActionTokenizer.from_pretrained(folder).push_to_hub('no-owner')", folder=str(saved("fast")))
    assert said == "FormatError: expected owner/name on the Hub, got 'no-owner'"


def test_a_pull_request(remote, client, saved):
    there = pushed(remote, client, "binning", "lab/asked", saved)
    before = there.sha("main")
    push = "ActionTokenizer.from_pretrained(folder).push_to_hub('lab/asked', create_pr=True)"
    assert client(push, folder=str(saved("kmeans"))).endswith("/discussions/1")
    assert there.sha("main") == before
    load = "type(ActionTokenizer.from_pretrained('lab/asked', revision='refs/pr/1')).__name__"
    assert client(load) == "KMeansTokenizer"


@pytest.mark.parametrize("held", [CONFIG, "tokenizer.json"])
def test_the_repository_of_another_model_is_not_touched(held, remote, client, saved):
    remote.models["lab/llm"] = there = Repo({held: b"{}", TENSORS: b"weights", CARD: b"card"})
    said = client.refused(PUSH, folder=str(saved("binning")), repo="lab/llm")
    assert said.startswith("FormatError: expected a new repository or one of ours, got files of something else")
    assert "model 'lab/llm'" in said
    assert held in said
    assert list(there.commits) == [there.sha("main")]
    assert list(there.refs) == ["main"]


def test_a_push_replaces_what_was_ours_and_keeps_the_rest(remote, client, saved):
    save = "ActionTokenizer.from_pretrained(folder).push_to_hub('lab/again', audit=audit)"
    client(save, folder=str(saved("fast")), audit=AUDIT)
    there = remote.models["lab/again"]
    foreign = {"notes.txt": b"mine", "runs/config.json": b"{}", "pytorch_model.bin": b"x"}
    stale = {"vocabulary.json": b"{}", "tokenizer.json": b"{}"}
    there.commit("main", {**there.files, **foreign, **stale})
    pushed(remote, client, "kmeans", "lab/again", saved)
    assert there.files == {**files(saved("kmeans")), ".gitattributes": b"", **foreign}


@pytest.mark.parametrize("fault", ["cut", "lost", 500])
def test_a_push_that_is_cut_off_changes_nothing_or_all(fault, remote, client, saved):
    there = pushed(remote, client, "fast", "lab/cut", saved)
    before = there.files
    with remote.failing("POST", "/commit/", fault):
        said = client.refused(PUSH, folder=str(saved("kmeans")), repo="lab/cut")
    assert said.startswith("HubError: could not push to model 'lab/cut': ")
    after = {**files(saved("kmeans")), ".gitattributes": b""}
    assert there.files == (after if fault == "lost" else before)
    pushed(remote, client, "kmeans", "lab/cut", saved)
    assert there.files == after


@pytest.mark.parametrize("layout", ["root", "bpe_tokenizer"])
def test_a_published_fast_repository(layout, remote, client, home):
    folder = PRETRAINED / "physical-intelligence-fast"
    if not folder.is_dir():
        pytest.skip(f"the published files are not at {folder}")
    held = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}
    if layout != "root":
        held = {name if name == "processor_config.json" else f"{layout}/{name}": data for name, data in held.items()}
    owner = "physical-intelligence" if layout == "root" else "somebody"
    remote.models[f"{owner}/fast"] = Repo(
        {**held, "processing_action_tokenizer.py": b"raise SystemExit", CARD: b"card"}
    )
    golden = np.load(folder / "golden.npz")
    kind = sorted(name.rpartition("/")[0] for name in golden.files if name.endswith("/ids"))[0]
    actions, ids = golden[f"{kind}/actions"][:8], golden[f"{kind}/ids"][:8]
    answer = client(
        """
        tokenizer = ActionTokenizer.from_pretrained(repo)
        rows = tokenizer.encode(np.array(actions, np.float32))
        [type(tokenizer).__name__, [row[row != tokenizer.pad_id].tolist() for row in rows]]
        """,
        repo=f"{owner}/fast",
        actions=actions.tolist(),
    )
    assert answer == ["PublishedFASTTokenizer", [row[row >= 0].tolist() for row in ids]]
    inside = "tokenizer.json" if layout == "root" else "bpe_tokenizer/tokenizer.json"
    assert set(remote.requested()) == {"processor_config.json", inside}
    assert client.refused("FASTTokenizer.from_pretrained(repo)", repo=f"{owner}/fast").startswith("FormatError: ")
