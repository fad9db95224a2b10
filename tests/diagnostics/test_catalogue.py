"""The table of estimators is complete, and what it points to exists."""

import ast
import importlib
from pathlib import Path

import pytest

from action_tokenizers.diagnostics.catalogue import CATALOGUE, MODULES
from action_tokenizers.diagnostics.measure import Kind

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "action_tokenizers" / "diagnostics"
ROWS = [row for module in MODULES for row in module.ESTIMATORS]


def found_in(path):
    """The test functions of a file, those of its classes among them."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else [node]
        found |= {each.name for each in inside if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")}
    return found


TESTS = {path.name: found_in(path) for path in HERE.glob("test_*.py")}


def test_names_are_unique():
    assert len(CATALOGUE) == len(ROWS)
    assert [row.name for row in CATALOGUE.values()] == list(CATALOGUE)


def test_every_module_with_estimators_is_in_it():
    listed = {Path(module.__file__).name for module in MODULES}
    with_rows = {
        path.name
        for path in PACKAGE.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
        if getattr(target, "id", "") == "ESTIMATORS"
    }
    assert listed == with_rows


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
class TestRow:
    def test_its_function_exists(self, row):
        module, _, name = row.function.partition(".")
        assert callable(getattr(importlib.import_module(f"action_tokenizers.diagnostics.{module}"), name))

    def test_its_function_is_public(self, row):
        module, _, name = row.function.partition(".")
        assert name in importlib.import_module(f"action_tokenizers.diagnostics.{module}").__all__

    def test_its_test_exists(self, row):
        file, _, name = row.test.partition("::")
        assert name in TESTS.get(file, ())

    def test_it_can_be_of_some_kind(self, row):
        assert row.kinds
        assert len(set(row.kinds)) == len(row.kinds)
        assert all(isinstance(kind, Kind) for kind in row.kinds)

    def test_it_has_something_to_say(self, row):
        for text in (row.heading, row.unit, row.meaning, row.caution, row.advice, row.source):
            assert text.strip() == text
            assert text
        for sentence in (row.meaning, row.caution, row.advice):
            assert sentence.endswith(".")


def test_the_search_for_tests_finds_them():
    assert {"test_names_are_unique", "test_its_test_exists"} <= TESTS["test_catalogue.py"]
    assert "found_in" not in TESTS["test_catalogue.py"]


@pytest.mark.parametrize("name", ["full_report", "fast_report", "bare_report"])
def test_what_an_audit_finds_is_in_it(name, request):
    """With a kind and a unit that its row allows, and its caution said."""
    report = request.getfixturevalue(name)
    for measure in report.measures:
        row = CATALOGUE[measure.name]
        assert measure.kind in row.kinds, measure.name
        assert measure.unit == row.unit
        assert measure.caveat.startswith(row.caution)


def test_an_audit_that_is_given_everything_takes_every_measure(full_report):
    assert {measure.name for measure in full_report.measures} == set(CATALOGUE)


def test_conditions_rest_on_measures_of_it(full_report):
    assert {name for condition in full_report.conditions for name in condition.measures} <= set(CATALOGUE)


def test_the_page_repeats_what_the_replays_measured():
    """The worst task's rank correlation of the drift over 16 steps is below .90, and is not to be rounded up to it."""
    replays = HERE.parents[1] / "recipes" / "replay" / "README.md"
    if not replays.exists():
        pytest.skip("the recipes are not part of an installed package")
    assert ".897, on door-open" in " ".join(replays.read_text(encoding="utf-8").split())
    assert "worst task .91 for the leaky sum, .897 for 16 steps" in (PACKAGE / "README.md").read_text(encoding="utf-8")
