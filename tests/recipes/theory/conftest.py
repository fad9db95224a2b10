"""The scripts of the theory are found by name, and each is run once in its smoke form."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "theory"
sys.path.insert(0, str(FOLDER))


@pytest.fixture(scope="module")
def smoke(request):
    """What the script that a test file is named after finds in its smoke form."""
    return importlib.import_module(request.module.__name__.rpartition(".")[2].removeprefix("test_")).run(smoke=True)


@pytest.fixture(scope="module")
def measured(smoke):
    """The number of the one row whose text begins so."""

    def number(begins, claim=""):
        found = [r["measured"] for r in smoke["rows"] if r["shows"].startswith(begins) and r["claim"].startswith(claim)]
        assert len(found) == 1, f"{len(found)} rows begin with {begins!r}"
        return found[0]

    return number


@pytest.fixture(scope="module")
def verdicts(smoke):
    """How many rows have which verdict."""
    return {verdict: [r["verdict"] for r in smoke["rows"]].count(verdict) for verdict in ("holds", "differs", "misses")}
