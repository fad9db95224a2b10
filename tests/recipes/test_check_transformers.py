"""The recipe's own rules; and its checks, run in this environment instead of two new ones."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

import check_transformers as recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment is made: this interpreter stands for all."""
    monkeypatch.setattr(recipe, "prepare", lambda folder, release, python: Path(sys.executable))


@pytest.mark.usefixtures("here")
def test_the_checks_hold_in_this_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr(recipe, "ROUTES", ("shim",))  # the others are cheaper without a process of their own
    assert recipe.main(["--releases", "5"]) == 0
    out = capsys.readouterr().out
    assert out.count("| ok |") == 4
    assert "| shim | residual_vq | ResidualVQTokenizer, 256 ids identical | ok |" in out
    assert "identical ids: yes" in out


def test_chunks_are_generated_in_this_process(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    recipe.save_tokenizers(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small only waits for them
    results = recipe.inside("generation", tmp_path)
    torch.set_num_threads(threads)
    assert [(r["tokenizer"], r["fine"]) for r in results] == [
        ("binning", True),
        ("fast", True),
        ("kmeans", True),
        ("residual_vq", True),
    ]
    assert {r["found"] for r in results} == {"9 of 9 chunks decode"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([{"transformers": "5", "tokenizer": "fast", "route": "shim", "fine": True, "found": "x"}], 0),
        ([{"transformers": "5", "tokenizer": "fast", "route": "shim", "fine": False, "found": "y"}], 1),
        ([], 1),
    ],
)
def test_exit_code(results: list[dict[str, Any]], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "save_tokenizers", lambda folder: None)
    monkeypatch.setattr(recipe, "check", lambda interpreter, route, folder: results)
    assert recipe.main([]) == code


def test_a_process_that_dies_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.CompletedProcess([], 1, "", "Traceback ...\nImportError: no such thing\n")
    monkeypatch.setattr(recipe.subprocess, "run", lambda *_, **__: dead)
    (result,) = recipe.check(Path("python"), "shim", tmp_path)
    assert (result["fine"], result["found"]) == (False, "ImportError: no such thing")


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[Any], check: bool) -> None:
        commands.append([str(part) for part in command])
        (tmp_path / "transformers-4").mkdir(exist_ok=True)

    monkeypatch.setattr(recipe.subprocess, "run", run)
    first = recipe.prepare(tmp_path, "4", "python3.11")
    assert commands[0][:3] == ["python3.11", "-m", "venv"]
    assert commands[1][-1].startswith("torch==")  # first, or the newest with its GPU libraries would come
    assert "+" not in commands[1][-1]
    assert commands[2][-3:] == ["transformers>=4.57,<5", "-e", str(ROOT)]
    assert recipe.prepare(tmp_path, "4", "python3.11") == first
    assert len(commands) == 3


def test_an_environment_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "save_tokenizers", lambda folder: None)
    assert recipe.main(["--python", "no-such-python"]) == 2
    assert "cannot make an environment" in capsys.readouterr().err


def test_the_checkout_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        recipe.main(["--keep", str(ROOT / "environments")])
    assert caught.value.code == 2
    assert "expected --keep outside" in capsys.readouterr().err
