"""The intervals cover what they promise, and the page says what the recipe measures."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location(
        "interval_coverage", ROOT / "recipes" / "audit" / "interval_coverage.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_smoke(recipe, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "SIZES", (20,))
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- coverage -->\nold\n<!-- /coverage -->\nafter\n")
    monkeypatch.setattr(recipe, "PAGE", page)
    monkeypatch.setattr(
        sys, "argv", ["interval_coverage.py", "--smoke", "--write", "--json", str(tmp_path / "rows.json")]
    )
    recipe.main()
    shown = capsys.readouterr().out.strip()
    assert page.read_text() == f"before\n<!-- coverage -->\n{shown}\n<!-- /coverage -->\nafter\n"
    assert len(shown.splitlines()) == 2 + sum(len(laws) for *_, laws in recipe.METHODS.values())
    # 100 repetitions: only a gross fault shows
    assert all(row.coverage >= 0.93 for row in recipe.measure(100) if row.guaranteed)


@pytest.mark.slow
def test_a_thousand_repetitions(recipe):
    rows = recipe.measure()
    assert all(row.coverage >= 0.94 for row in rows if row.guaranteed)
    usual = [r for r in rows if r.method == "bootstrap-t" and r.law in ("normal", "exponential") and r.episodes >= 20]
    assert len(usual) == 6
    assert all(0.93 <= row.coverage <= 0.97 for row in usual)
    shown = (ROOT / "action_tokenizers" / "diagnostics" / "README.md").read_text(encoding="utf-8")
    assert recipe.table(rows) in shown
