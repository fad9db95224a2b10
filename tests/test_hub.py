"""Folders: what is saved comes back, whole or not at all, and what is not ours to load is refused."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
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
    Episodes,
    FASTTokenizer,
    FormatError,
    KMeansTokenizer,
    NotFittedError,
    Range,
    ResidualVQTokenizer,
    UnknownTokenizerError,
    hub,
    registry,
)
from action_tokenizers.slots import SlotTokenizer

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"


def episodes(key: str = "default") -> Episodes:
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.1, (n, 3)), axis=0).astype(np.float32) for n in (30, 41, 55)]
    for walk in walks:
        walk[:, 2] = walk[:, 2] > 0  # a gripper
    return Episodes.from_arrays(walks, fps=10.0, key=key, source="some/data")


def chunks() -> np.ndarray:
    return np.stack([walk[s : s + 6] for walk in episodes().actions for s in range(0, 24, 5)])


MADE: dict[str, Callable[[], ActionTokenizer]] = {
    "binning": lambda: BinningTokenizer(horizon=6, bins=[16, 8, 2], strategy="quantile"),
    "open binning": lambda: BinningTokenizer(bins=9, shared_ids=False, range=["minmax", "quantile", "unit"]),
    "kmeans": lambda: KMeansTokenizer(horizon=6, codebook_size=8, groups=[[0, 1], [2]]),
    "chunk kmeans": lambda: KMeansTokenizer(horizon=6, codebook_size=8, scope="chunk"),
    "residual_vq": lambda: ResidualVQTokenizer(horizon=6, levels=2, codebook_size=6),
    "pca residual_vq": lambda: ResidualVQTokenizer(horizon=6, levels=2, codebook_size=6, latent="pca", latent_dim=4),
    "fast": lambda: FASTTokenizer(horizon=6, vocab_size=160),
    "plain fast": lambda: FASTTokenizer(horizon=6, vocab_size=64, scale=2),
    "given range": lambda: FASTTokenizer(horizon=6, range=Range([-1.0, -2.0, 0.0], [1.0, 2.0, 1.0]), vocab_size=128),
}


def data(name: str) -> Any:
    """What it is fitted on; bare arrays know no fps, so that the horizon may stay open."""
    return episodes().actions if name == "open binning" else episodes()


installed = cache(packages_distributions)


@pytest.fixture(autouse=True)
def quick_look_up(monkeypatch):
    """Ask the environment once which distributions it holds, not at every save."""
    monkeypatch.setattr(hub, "packages_distributions", installed, raising=False)


@cache
def fit(name: str) -> ActionTokenizer:
    """One fit for all tests, which leave it as it is."""
    return MADE[name]().fit(data(name))


@pytest.fixture(params=MADE)
def fitted(request) -> ActionTokenizer:
    return fit(request.param)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved tokenizer to spoil."""
    return fit("fast").save_pretrained(tmp_path / "saved")


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
    refitted = loaded.fit(data(name))
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
    first, second = (MADE[name]().fit(data(name)) for _ in range(2))
    first, second = first.save_pretrained(tmp_path / "one"), second.save_pretrained(tmp_path / "elsewhere" / "two")
    assert files(first) == files(second)
    assert set(files(first)) == {CONFIG, TENSORS, CARD}


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
    """No file begins like a pickle, and loading never reaches for the unpickler."""
    for kind in MADE:
        for name, data in files(fit(kind).save_pretrained(tmp_path / kind)).items():
            assert not data.startswith((b"\x80", b"PK\x03\x04")), name  # torch.save writes zip files
            assert b"ctorch\n" not in data
            assert b"c__builtin__" not in data
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
    assert set(files(tmp_path / "run7")) == {CONFIG, TENSORS, CARD}
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


# ---- loading what is not right ----------------------------------------------------------------------------------


def refused(folder: Path, says: str | None = None) -> str:
    """The message of the FormatError that loading must end in."""
    with pytest.raises(FormatError, match=says) as caught:
        ActionTokenizer.from_pretrained(folder)
    assert "expected" in str(caught.value)
    return str(caught.value)


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


@pytest.mark.parametrize("version", [2, 1000, "1", None, 1.5, [1]])
def test_a_format_version_of_the_future_or_of_no_kind(folder, version):
    edit(folder, lambda config: config.update(format_version=version))
    refused(folder, "format_version")


@pytest.mark.parametrize("version", [0, -1, True])
def test_a_format_version_that_never_was(folder, version):
    edit(folder, lambda config: config.update(format_version=version))
    refused(folder, "format_version")


@pytest.mark.parametrize("place", [(), ("params",), ("fitted",), ("fitted", "sizes")])
def test_an_unknown_key(folder, place):
    def add(config: dict[str, Any]) -> None:
        for name in place:
            config = config[name]
        config["surprise"] = 1

    edit(folder, add)
    assert CONFIG in refused(folder, "surprise")


@pytest.mark.parametrize("name", sorted(hub.KEYS))
def test_a_missing_key(folder, name):
    edit(folder, lambda config: config.pop(name))
    assert CONFIG in refused(folder)


@pytest.mark.parametrize("name", sorted(hub.FACTS))
def test_a_missing_fact(folder, name):
    edit(folder, lambda config: config["fitted"].pop(name))
    assert CONFIG in refused(folder)


@pytest.mark.parametrize("name", sorted(hub.KEYS))
@pytest.mark.parametrize("value", [None, 7, "text", [1], {"a": 1}])
def test_a_key_of_another_type(folder, name, value):
    legal = {"provenance": (dict,), "format_version": ()}
    if isinstance(value, legal.get(name, ())):
        return
    edit(folder, lambda config: config.update({name: value}))
    refused(folder)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("horizon", None),
        ("horizon", 7),
        ("horizon", 0),
        ("horizon", -6),
        ("horizon", "6"),
        ("horizon", 10**30),
        ("horizon", float("inf")),
        ("action_dim", None),
        ("action_dim", 4),
        ("action_dim", -3),
        ("action_dim", 2.5),
        ("vocab_size", 159),
        ("max_tokens", 1),
        ("pad_id", None),
        ("pad_id", 0),
        ("range_keys", []),
        ("range_keys", ["a", "b"]),
        ("range_keys", 5),
        ("range_keys", [["default"]]),
        ("sizes", {}),
        ("sizes", None),
        ("sizes", {"alphabet": -1, "radix": 0, "merges": 0}),
        ("sizes", {"alphabet": "many", "radix": 0, "merges": 0}),
    ],
)
@pytest.mark.parametrize("name", ["fast", "binning", "chunk kmeans", "residual_vq"])
def test_facts_that_contradict_the_rest(name, fact, value, tmp_path):
    folder = fit(name).save_pretrained(tmp_path / "t")
    facts = json.loads((folder / CONFIG).read_text())["fitted"]
    if facts[fact] == value:
        return
    edit(folder, lambda config: config["fitted"].update({fact: value}))
    refused(folder)


@pytest.mark.parametrize(
    "value",
    [
        {"range": {"keys": ["a"], "low": [1.0], "high": [0.0]}},
        {"range": {"keys": ["a"], "low": [0.0]}},
        {"range": 5},
        {"nonsense": 1},
        {"tokenizer_type": "binning", "params": {}, "fitted": {}},
        {"tokenizer_type": "no_such_type", "params": {}, "fitted": None},
        {"tokenizer_type": ["binning"], "params": {}, "fitted": None},
        {"tokenizer_type": "binning", "params": [], "fitted": None},
        [{"nonsense": [1]}],
    ],
)
def test_params_that_are_no_params(folder, value):
    edit(folder, lambda config: config["params"].update(range=value))
    refused(folder)


@pytest.mark.parametrize(
    "value", ["ten", None, [10], -1.0, 0, float("nan"), float("inf"), 1e300, pytest.param(10**400, id="10**400")]
)
def test_a_scale_that_is_no_scale(folder, value):
    edit(folder, lambda config: config["params"].update(scale=value))
    refused(folder)


def test_another_family_than_asked_for(folder):
    with pytest.raises(FormatError, match=r"KMeansTokenizer.*FASTTokenizer"):
        KMeansTokenizer.from_pretrained(folder)
    with pytest.raises(FormatError, match="SlotTokenizer"):
        SlotTokenizer.from_pretrained(folder)
    assert type(FASTTokenizer.from_pretrained(folder)) is FASTTokenizer


@pytest.mark.parametrize("kind", ["binning", "kmeans", "residual_vq"])
def test_the_config_of_another_family(folder, kind):
    edit(folder, lambda config: config.update(tokenizer_type=kind))
    refused(folder)


def test_an_unknown_tokenizer_type_names_what_is_known(folder):
    edit(folder, lambda config: config.update(tokenizer_type="no_such_type"))
    with pytest.raises(UnknownTokenizerError, match=r"binning.*no_such_type"):
        ActionTokenizer.from_pretrained(folder)


def test_an_unknown_tokenizer_type_names_the_distribution_that_wrote_it(tmp_path, monkeypatch):
    """A third party's tokenizer, saved where it is installed and loaded where it is not."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))

    class Theirs(BinningTokenizer, name="theirs"):
        pass

    Theirs.__module__ = "their_module.bins"
    monkeypatch.setattr(hub, "packages_distributions", lambda: {"their_module": ["their-tokenizers"]})
    folder = Theirs(horizon=6, bins=4).fit(episodes()).save_pretrained(tmp_path / "t")
    assert type(ActionTokenizer.from_pretrained(folder)) is Theirs
    del registry._classes["theirs"]
    with pytest.raises(UnknownTokenizerError, match="their-tokenizers"):
        ActionTokenizer.from_pretrained(folder)


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


def test_the_tensors_of_another_tokenizer(folder, tmp_path):
    other = FASTTokenizer(horizon=6, vocab_size=150).fit(episodes()).save_pretrained(tmp_path / "other")
    shutil.copy(other / TENSORS, folder / TENSORS)
    refused(folder, "other bytes")
    digest = json.loads((other / CONFIG).read_text())["sha256"]
    edit(folder, lambda config: config.update(sha256=digest))
    refused(folder, TENSORS)


def test_missing_and_unknown_tensors(fitted, tmp_path):
    folder = fitted.save_pretrained(tmp_path / "t")
    before = files(folder)
    for name in tensors_of(folder):
        refill(folder, lambda tensors, name=name: tensors.pop(name))
        refused(folder, name.split(".")[0])
        (folder / TENSORS).write_bytes(before[TENSORS])
    refill(folder, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    refused(folder, "surprise")


def test_tensors_of_another_shape_or_dtype(fitted, tmp_path):
    folder = fitted.save_pretrained(tmp_path / "t")
    original = tensors_of(folder)
    for name, tensor in original.items():
        wrong = [torch.cat([tensor, tensor]), tensor[None], tensor.double() if tensor.is_floating_point() else None]
        wrong.append(tensor.to(torch.int16 if tensor.dtype != torch.int16 else torch.int64))
        for other in (w for w in wrong if w is not None and (w.shape, w.dtype) != (tensor.shape, tensor.dtype)):
            refill(folder, lambda tensors, name=name, other=other: tensors.update({name: other}))
            refused(folder, name.split(".")[0])
        refill(folder, lambda tensors: tensors.update(original))
    ActionTokenizer.from_pretrained(folder)


def test_tensors_that_hold_no_numbers(fitted, tmp_path):
    """They would come out as actions of a robot."""
    folder = fitted.save_pretrained(tmp_path / "t")
    original = tensors_of(folder)
    for name, tensor in original.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        for value in (float("nan"), float("inf"), -float("inf")):
            spoiled = tensor.clone()
            spoiled.view(-1)[0] = value
            refill(folder, lambda tensors, name=name, spoiled=spoiled: tensors.update({name: spoiled}))
            refused(folder)
        refill(folder, lambda tensors: tensors.update(original))


@pytest.mark.parametrize("name", ["binning", "fast"])
def test_a_range_upside_down(name, tmp_path):
    folder = fit(name).save_pretrained(tmp_path / "t")
    refill(folder, lambda t: t.update({"range.low": t["range.high"] + 1, "range.high": t["range.low"]}))
    refused(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fast", lambda t: t["alphabet"].flip(0)),
        ("fast", lambda t: t["alphabet"] * 0),
        ("fast", lambda t: t["alphabet"] + 1_000_000),
        ("fast", lambda t: -t["alphabet"].abs() - 1),
    ],
)
def test_an_alphabet_that_is_none(name, change, tmp_path):
    folder = fit(name).save_pretrained(tmp_path / "t")
    refill(folder, lambda tensors: tensors.update(alphabet=change(tensors)))
    refused(folder)


@pytest.mark.parametrize("bad", [[-1, 0], [0, 10**6], [5, 2**31 - 1], "itself", "twice", "digit", "doubling"])
def test_merges_that_are_none(folder, bad):
    config = json.loads((folder / CONFIG).read_text())["fitted"]
    base = config["vocab_size"] - 1 - config["sizes"]["merges"]
    assert config["sizes"]["radix"] > 0
    assert config["sizes"]["merges"] > 8

    def change(tensors: dict[str, torch.Tensor]) -> None:
        merges = tensors["merges"].clone()
        if bad == "itself":
            merges[3] = torch.tensor([base + 3, 0])
        elif bad == "twice":
            merges[3] = merges[2]
        elif bad == "digit":
            merges[3] = torch.tensor([base - 1, 0])
        elif bad == "doubling":
            merges[0] = torch.tensor([0, 0])
            for i in range(1, len(merges)):
                merges[i] = base + i - 1
        else:
            merges[3] = torch.tensor(bad)
        tensors["merges"] = merges

    refill(folder, change)
    refused(folder)


def test_binning_cells_that_do_not_exist(tmp_path):
    folder = fit("binning").save_pretrained(tmp_path / "t")
    original = tensors_of(folder)
    for name, value in [("neutral", 99), ("neutral", -1), ("centres", 1.5), ("edges", float("nan"))]:
        spoiled = original[name].clone()
        spoiled.view(-1)[0] = value
        refill(folder, lambda tensors, name=name, spoiled=spoiled: tensors.update({**original, name: spoiled}))
        refused(folder)
    refill(folder, lambda tensors: tensors.update({**original, "edges": original["edges"].flip(1)}))
    refused(folder)


# ---- configs that ask for the moon ------------------------------------------------------------------------------

ENORMOUS = 10**15


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("fast", ("fitted", "sizes", "alphabet"), ENORMOUS),
        ("fast", ("fitted", "sizes", "merges"), ENORMOUS),
        ("fast", ("fitted", "sizes", "radix"), ENORMOUS),
        ("fast", ("fitted", "action_dim"), ENORMOUS),
        ("fast", ("fitted", "horizon"), ENORMOUS),
        ("fast", ("params", "scale"), float(ENORMOUS)),
        ("binning", ("fitted", "sizes", "bins"), [ENORMOUS] * 3),
        ("binning", ("fitted", "horizon"), ENORMOUS),
        ("binning", ("fitted", "action_dim"), ENORMOUS),
        ("kmeans", ("fitted", "sizes", "codewords"), [ENORMOUS, 2]),
        ("kmeans", ("fitted", "horizon"), ENORMOUS),
        ("kmeans", ("fitted", "action_dim"), 10**8),
        ("chunk kmeans", ("fitted", "horizon"), ENORMOUS),
        ("residual_vq", ("fitted", "sizes", "codewords"), [ENORMOUS] * 2),
        ("residual_vq", ("fitted", "sizes", "basis"), ENORMOUS),
        ("residual_vq", ("fitted", "horizon"), ENORMOUS),
    ],
)
def test_an_enormous_size_is_refused_without_memory(name, place, value, tmp_path):
    """Sizes are compared with the file before anything of that size exists."""
    folder = fit(name).save_pretrained(tmp_path / "t")

    def change(config: dict[str, Any]) -> None:
        for part in place[:-1]:
            config = config[part]
        config[place[-1]] = value

    edit(folder, change)
    tracemalloc.start()
    try:
        message = refused(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    # torch's CPU allocator was never asked
    assert "allocate" not in message
    assert "memory" not in message


# configs whose facts agree with each other, and with their small tensor file, yet mean tables of many GiB
CONSISTENT_AND_ENORMOUS = """
    import hashlib, json, resource, sys
    from pathlib import Path
    import numpy as np, torch
    from safetensors.torch import load_file, save
    from action_tokenizers import ActionTokenizer, FormatError
    from action_tokenizers.codecs.dct import coefficient_bound
    from action_tokenizers.codecs.symbols import Alphabet

    file, tensors = Path(sys.argv[1]) / "config.json", Path(sys.argv[1]) / "model.safetensors"
    found = load_file(tensors)
    found["alphabet"], found["merges"] = torch.zeros(1, dtype=torch.int32), torch.zeros(0, 2, dtype=torch.int32)
    data = save(found)
    tensors.write_bytes(data)
    config = json.loads(file.read_text())
    config["sha256"] = hashlib.sha256(data).hexdigest()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    said = []
    for scale, radix in json.loads(sys.argv[2]):
        size = Alphabet(np.zeros(1, np.int32), coefficient_bound(6, scale), radix).size
        config["params"]["scale"] = scale
        config["fitted"].update(vocab_size=size + 1, pad_id=size, max_tokens=36)
        config["fitted"]["sizes"] = {"alphabet": 1, "radix": radix, "merges": 0}
        file.write_text(json.dumps(config))
        try:
            tokenizer = ActionTokenizer.from_pretrained(file.parent)
            # small after all: then it must also work
            tokenizer.decode(tokenizer.encode(torch.zeros(1, 6, 3)))
            said.append("works")
        except FormatError:
            said.append("refused")
        except MemoryError:
            said.append("out of memory")
    print(json.dumps(said))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_a_consistent_config_cannot_ask_for_tables_larger_than_memory(folder):
    asked = [(2e8, 1), (1e9, 70_000), (1e17, 10**9), (10.0, 7)]
    command = [sys.executable, "-c", textwrap.dedent(CONSISTENT_AND_ENORMOUS), str(folder), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-600:]
    assert json.loads(done.stdout) == ["refused", "refused", "refused", "works"]
