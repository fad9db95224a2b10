"""The page of the audit lists every estimator as the code has it."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("write_tables", ROOT / "recipes" / "audit" / "write_tables.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    page = recipe.PAGE.read_text(encoding="utf-8")
    assert recipe.written(page) == page, "run python recipes/audit/write_tables.py"
    assert page.count("\n| ") > 40
