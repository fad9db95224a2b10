"""The README's table is the demo's: whoever types the command sees it."""

import re
from pathlib import Path

import pytest

from action_tokenizers import Episodes
from action_tokenizers.cli import DEMO_DATA, DEMO_HORIZON, DEMO_STRIDE
from action_tokenizers.diagnostics.compare import compare
from action_tokenizers.registry import FAMILIES, tokenizer_class

README = Path(__file__).parents[1] / "README.md"


def table_in(text):
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows if len(row) == len(FAMILIES) + 1 and not row[0].startswith("-")}


def number(text):
    return float(text.rstrip("%"))


def test_demo_table():
    block = README.read_text().split("<!-- demo table -->")[1].split("<!-- /demo table -->")[0]
    tokenizers = {name: tokenizer_class(name)(horizon=DEMO_HORIZON) for name in FAMILIES}
    fresh = compare(tokenizers, Episodes.load(DEMO_DATA), stride=DEMO_STRIDE)
    printed, measured = table_in(block), table_in(fresh.to_markdown().split("\n- **")[0])
    assert list(printed) == list(measured)
    for name, cells in measured.items():
        if "chunks/s" in name:
            continue  # of the machine it was made on
        for told, found in zip(printed[name], cells, strict=True):
            assert told == found or number(told) == pytest.approx(number(found), rel=0.03), name
