"""The cards in the repository are the ones the code writes today: text exactly, numbers to three digits."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"-?\d+\.\d+(?:[eE][+-]?\d+)?|-?\d+[eE][+-]?\d+")


@pytest.fixture(scope="module")
def fresh():
    spec = importlib.util.spec_from_file_location("make_model_cards", ROOT / "recipes" / "make_model_cards.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.cards()


def test_no_card_is_missing_and_none_is_left_over(fresh):
    assert {path.stem for path in (ROOT / "model_cards").glob("*.md")} == set(fresh)


@pytest.mark.parametrize("name", ["binning", "fast", "kmeans", "residual_vq"])
def test_a_card_is_what_the_code_writes(fresh, name):
    kept, made = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8"), fresh[name]
    assert NUMBER.sub("#", kept) == NUMBER.sub("#", made)
    told, measured = ([float(n) for n in NUMBER.findall(text)] for text in (kept, made))
    assert len(told) > 20
    # three digits, as printed; a second machine may round the last of them otherwise
    assert told == pytest.approx(measured, rel=2e-3, abs=1e-12)
