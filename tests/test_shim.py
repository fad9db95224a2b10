"""What `AutoProcessor` finds beside a saved tokenizer, and that it leads back to the tokenizer itself."""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from action_tokenizers import ActionTokenizer
from action_tokenizers.shim import MODULE, PROCESSOR, PROCESSOR_CLASS, SHIM
from tests.fakes.fitted import FAMILIES, chunks, fit


@pytest.fixture
def folder(tmp_path) -> Path:
    return fit("kmeans").save_pretrained(tmp_path / "saved")


def imported(folder: Path, monkeypatch) -> ModuleType:
    """Import the module of a folder as transformers does: from the file that processor_config.json names."""
    place = json.loads((folder / PROCESSOR).read_text())["auto_map"]["AutoProcessor"]
    stem, _, name = place.partition(".")
    assert name == PROCESSOR_CLASS
    spec = importlib.util.spec_from_file_location(f"copied_{stem}", folder / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_both_files_are_in_every_folder(folder):
    for name, data in SHIM.items():
        assert (folder / name).read_bytes() == data
    assert json.loads((folder / PROCESSOR).read_text())["processor_class"] == PROCESSOR_CLASS


@pytest.mark.parametrize("name", FAMILIES)
def test_the_processor_is_the_tokenizer(name, tmp_path, monkeypatch):
    folder = fit(name).save_pretrained(tmp_path)
    processor = getattr(imported(folder, monkeypatch), PROCESSOR_CLASS)
    processor.register_for_auto_class()
    processor.register_for_auto_class("AutoProcessor")
    loaded = processor.from_pretrained(str(folder), trust_remote_code=True, _from_auto=True, force_download=False)
    assert type(loaded) is type(fit(name))
    np.testing.assert_array_equal(loaded(chunks()), fit(name).encode(chunks()))


def test_what_from_pretrained_knows_is_passed_on(folder, monkeypatch):
    module = imported(folder, monkeypatch)
    asked = {}
    monkeypatch.setattr(ActionTokenizer, "from_pretrained", classmethod(lambda cls, *a, **k: asked.update(a=a, k=k)))
    options = {"revision": "v1", "token": "hf_x", "cache_dir": "/c", "local_files_only": True}
    module.ActionProcessor.from_pretrained("a/b", trust_remote_code=True, code_revision="x", subfolder="", **options)
    assert asked == {"a": ("a/b",), "k": options}
    module.ActionProcessor.from_pretrained("a/b")
    assert asked == {"a": ("a/b",), "k": {}}


def test_the_code_does_nothing_but_call_this_library():
    tree = ast.parse(SHIM[MODULE])
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"action_tokenizers"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called == {"ActionTokenizer.from_pretrained"}
