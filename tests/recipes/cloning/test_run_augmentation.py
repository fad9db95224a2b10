"""The augmentation for real on what needs no simulator, and the published tables."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "cloning"
sys.path.insert(0, str(FOLDER))

import cloning_tables  # noqa: E402
import run_augmentation as recipe  # noqa: E402


def test_smoke(capsys):
    assert recipe.main(["--smoke"]) == 0
    told = capsys.readouterr().out
    assert "| 2^-5 | 200 | fitted | all |" in told
    assert "| made-up reach | rvq4x128 | 4 |" in told


def test_regret_of_the_trap_is_known():
    """Theory: .60444 per step over the whole horizon at 2^-5, .11081 with an exact model to its end."""
    rows = recipe.trap_rows(2.0**-5, smoke=True)
    found = {(row["model"], row["sub_horizon"]): row["regret"] for row in rows if row["tokenizer"] == "trap"}
    assert found["-", 1] == pytest.approx(0.60, abs=0.02)
    assert found["exact", 200] == pytest.approx(0.1108, rel=0.03)
    assert found["fitted", 200] == pytest.approx(found["exact", 200], rel=0.05)
    assert found["exact", 4] > 2 * found["exact", 200]


def test_what_holds_and_what_does_not():
    rows = [
        {"tokenizer": "trap", "epsilon": 0.01, "steps": 50, "model": model, "sub_horizon": k, "regret": regret}
        for model, k, regret in (("-", 1, 0.7), ("exact", 50, 0.05), ("fitted", 50, 0.06))
    ]
    assert recipe.holds({"trap": rows, "tasks": []})
    rows[2]["regret"] = 0.2
    assert not recipe.holds({"trap": rows, "tasks": []})


def test_the_pendulum_falls_without_its_expert():
    pytest.importorskip("gymnasium", reason="needs the extra sim, which CI does not install")
    pytest.importorskip("mujoco", reason="needs the extra sim, which CI does not install")
    robot = recipe.Pendulum()
    state, scores = robot.reset(3), []
    for _ in range(100):
        state, score = robot.step(robot.GAIN[None] @ state)
        scores.append(score)
    assert scores[-1] == 0.5
    robot.reset(3)
    for _ in range(100):
        state, score = robot.step(robot.GAIN[:1] * 0)
    assert score < 0.4
    assert robot.has_fallen


class TestPublished:
    def test_the_tables_are_those_of_the_results(self):
        found = json.loads(recipe.RESULTS.read_text(encoding="utf-8"))
        text = cloning_tables.README.read_text(encoding="utf-8")
        told = text.split("<!-- augmentation -->")[1].split("<!-- /augmentation -->")[0]
        assert told.strip() == recipe.text(found)
        assert recipe.holds(found)
        assert recipe.FIGURE.is_file()
