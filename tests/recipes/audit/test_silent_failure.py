"""The recipe of the flag in its smoke form: it fires on the trap, and on nothing ordinary."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_smoke(monkeypatch, capsys, tmp_path):
    spec = importlib.util.spec_from_file_location("silent_failure", ROOT / "recipes" / "audit" / "silent_failure.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(sys, "argv", ["silent_failure.py", "--smoke", "--json", str(tmp_path / "flag.json")])
    recipe.main()
    found = json.loads((tmp_path / "flag.json").read_text())
    assert found["trap"] == {**found["trap"], "runs": 2, "fired": 2}
    families = found["data"]["synthetic"]["families"]
    assert list(families) == list(recipe.FAMILIES)
    assert all(f == {**f, "runs": 20, "alarms": 0} for f in families.values())
    assert "fires on the trap in 2 of 2" in capsys.readouterr().out


def test_the_page_shows_the_committed_counts():
    spec = importlib.util.spec_from_file_location("silent_failure", ROOT / "recipes" / "audit" / "silent_failure.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    found = json.loads((ROOT / "recipes" / "audit" / "silent_failure.json").read_text())
    page = (ROOT / "action_tokenizers" / "diagnostics" / "README.md").read_text(encoding="utf-8")
    assert f"<!-- flag -->\n{recipe.table(found)}\n<!-- /flag -->" in page
    assert found["trap"]["fired"] >= 99
    assert all(c["alarms"] == 0 for row in found["data"].values() for c in row["families"].values())
