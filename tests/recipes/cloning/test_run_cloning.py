"""The smoke form for real: policies learn the made-up reach, and what is done is not done again."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "cloning"
sys.path.insert(0, str(FOLDER))

import cloning_tables  # noqa: E402
import run_cloning as recipe  # noqa: E402


def test_smoke(tmp_path, capsys, monkeypatch):
    assert recipe.main(["--smoke", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "### made-up reach: success, 20 starts, 1 seeds" in told
    rows = cloning_tables.read_rows(tmp_path)
    assert [(row["tokenizer"], row["seed"]) for row in rows] == [
        *[("fast512", None), ("fast512", 0), ("rvq4x128", None), ("rvq4x128", 0)],
        ("regression", 0),
    ]
    results = cloning_tables.collect(rows)
    best = cloning_tables.scores(results["made-up reach"]["rvq4x128"], "drawn")
    assert best.shape == (1, 20)
    assert best.mean() > 0.6
    assert all(row["drawn"]["stopped"] == 0 for row in rows if row["seed"] is not None)

    # a second run does only what a crash cut off
    file = tmp_path / "made-up-reach.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:3]) + "\n" + lines[3][:50])
    asked = []
    monkeypatch.setattr(recipe, "audited", lambda *given: asked.append("audit"))
    monkeypatch.setattr(recipe, "executed", lambda task, tokenizer, *rest: asked.append(type(tokenizer)) or {})
    monkeypatch.setattr(cloning_tables, "collect", lambda rows: {})
    recipe.main(["--smoke", "--out", str(tmp_path)])
    assert [getattr(each, "__name__", each) for each in asked] == ["ResidualVQTokenizer", "NoneType"]


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    row = {"task": "made-up reach", "tokenizer": "fast512", "seed": 0, "settings": [1, 2, 3]}
    recipe.append(tmp_path / "made-up-reach.jsonl", row)
    with pytest.raises(SystemExit, match="give another --out"):
        recipe.main(["--smoke", "--out", str(tmp_path)])


def test_unknown_tasks(tmp_path):
    with pytest.raises(SystemExit, match=r"pusht: with --data.*got \['fold'\]"):
        recipe.main(["--tasks", "fold", "--out", str(tmp_path)])
