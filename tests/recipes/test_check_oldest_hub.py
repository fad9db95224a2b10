"""What the recipe reads, writes and refuses; the environment itself is built by whoever runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

import check_oldest_hub as recipe

ROOT = recipe.ROOT


def test_the_floor_is_that_of_the_package():
    oldest = recipe.floor((ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", oldest)
    assert f"huggingface-hub>={oldest}," in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("requirement", "says"),
    [("huggingface-hub>=0.34", "0.34"), ("huggingface-hub >= 1.2.3, <3", "1.2.3")],
)
def test_floors(requirement, says):
    assert recipe.floor(f'[project]\ndependencies = ["huggingface-hub-more>=9", "{requirement}"]') == says


@pytest.mark.parametrize("requirement", ["huggingface-hub", "huggingface-hub<3", "hub>=1"])
def test_no_floor(requirement):
    with pytest.raises(ValueError, match="huggingface-hub"):
        recipe.floor(f'[project]\ndependencies = ["{requirement}"]')


def test_all_other_pins_stay():
    pins = (ROOT / "tests" / "constraints.txt").read_text()
    kept = recipe.without_hub(pins)
    assert set(pins.splitlines()) - set(kept.splitlines()) == {
        line for line in pins.splitlines() if line.startswith("huggingface-hub==")
    }
    assert recipe.without_hub("huggingface-hub-more==1\n") == "huggingface-hub-more==1\n"


def test_its_tests_exist():
    assert [name for name in recipe.TESTS if not (ROOT / name).is_file()] == []


def test_an_environment_inside_the_tree_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        recipe.main(["--venv", str(ROOT / "oldest")])
    assert refused.value.code == 2
    assert "outside" in capsys.readouterr().err
    assert not (ROOT / "oldest").exists()


def test_exit_codes_and_arguments_are_passed_on(monkeypatch, tmp_path, capsys):
    calls = []

    def run(command, **options):
        calls.append((command, options))
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(recipe.subprocess, "run", run)
    monkeypatch.setattr(recipe.venv, "create", lambda *a, **k: calls.append("venv"))
    assert recipe.main(["--venv", str(tmp_path / "v"), "-k", "push"]) == 5
    made, (pip, _), (pytest_command, options) = calls
    assert made == "venv"
    assert f"huggingface-hub=={recipe.floor((ROOT / 'pyproject.toml').read_text())}" in pip
    assert pytest_command[-2:] == ["-k", "push"]
    assert options["cwd"] == ROOT
    assert "huggingface-hub" in capsys.readouterr().out

    def fail(command, **options):
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(recipe.subprocess, "run", fail)
    assert recipe.main(["--venv", str(tmp_path / "v")]) == 3
