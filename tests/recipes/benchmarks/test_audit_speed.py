"""The benchmark of the audit runs and fills its table."""

import importlib.util
import json
import sys
from pathlib import Path

from action_tokenizers.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[3]


def test_smoke(monkeypatch, capsys, tmp_path):
    spec = importlib.util.spec_from_file_location("audit_speed", ROOT / "recipes" / "benchmarks" / "audit_speed.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(sys, "argv", ["audit_speed.py", "--smoke", "--json", str(tmp_path / "speed.json")])
    recipe.main()
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in (*FAMILIES, "together"))
    told = json.loads((tmp_path / "speed.json").read_text())
    assert told["peak_gb"] > 0
    assert all(seconds > 0 for times in told["seconds"].values() for seconds in times.values())
