"""The card says what the config says, in Hub front matter and a table."""

import re
from typing import Any

import numpy as np
import pytest

from action_tokenizers import BinningTokenizer, Episodes, FASTTokenizer, KMeansTokenizer, Range
from action_tokenizers.card import model_card


def config(**changes: Any) -> dict[str, Any]:
    facts = {
        "horizon": 8,
        "action_dim": 7,
        "vocab_size": 513,
        "max_tokens": 56,
        "pad_id": 512,
        "range_keys": ["bridge", "droid"],
        "sizes": {},
    }
    provenance = {"sources": ["org/one", "two"], "keys": {"bridge": 100, "droid": 7}}
    whole = {"tokenizer_type": "fast", "params": {"scale": 10, "range": "quantile"}, "provenance": provenance}
    return {**whole, "fitted": {**facts, **changes.pop("fitted", {})}, **changes}


def rows(card: str) -> dict[str, str]:
    found = re.findall(r"^\| ([^|]+) \| (.*) \|$", card, re.MULTILINE)
    return dict(found)


def test_says_every_fact():
    said = rows(model_card(config()))
    assert said == {
        "tokenizer": "fast",
        "chunk": "8 steps x 7 dims",
        "vocabulary": "513 ids, of which 512 is the pad and end mark",
        "ids per chunk": "at most 56",
        "range keys": "bridge, droid",
        "fitted on": "org/one, two",
        "chunks seen": "bridge: 100, droid: 7",
        "parameters": "scale=10, range=quantile",
    }


def test_front_matter_is_what_the_hub_reads():
    yaml = pytest.importorskip("yaml")
    card = model_card(config())
    assert card.startswith("---\n")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "library_name": "action-tokenizers",
        "pipeline_tag": "robotics",
        "tags": ["action-tokenizer", "vla", "fast"],
    }


def test_an_open_horizon_must_be_given_at_decode():
    said = model_card(config(fitted={"horizon": None, "max_tokens": None}))
    assert "tokenizer.decode(ids, horizon=...)" in said
    assert rows(said)["chunk"] == "any steps x 7 dims"
    assert rows(said)["ids per chunk"] == "set by the horizon"
    assert "tokenizer.decode(ids)\n" in model_card(config())


def test_no_pad_is_not_mentioned():
    assert rows(model_card(config(fitted={"pad_id": None})))["vocabulary"] == "513 ids"


@pytest.mark.parametrize("sources", [[], None])
def test_plain_arrays_have_no_source(sources):
    assert rows(model_card(config(provenance={"sources": sources, "keys": {"default": 3}})))["fitted on"] == "arrays"


def test_a_foreign_provenance_may_say_nothing():
    assert rows(model_card(config(provenance={})))["chunks seen"] == ""


def test_the_code_of_the_card_runs(tmp_path):
    """Executed as it stands, with the folder put in; fixed and open horizon."""
    rng = np.random.default_rng(0)
    episodes = [rng.uniform(-1, 1, (30, 2)).astype(np.float32) for _ in range(4)]
    fitted = [
        FASTTokenizer(horizon=5, vocab_size=256).fit(episodes),
        BinningTokenizer(bins=8).fit(episodes),
        KMeansTokenizer(horizon=5, codebook_size=4, range=Range([-1.0, -1.0], [1.0, 1.0])).fit(
            Episodes.from_arrays(episodes, source="some/data", key="arm")
        ),
    ]
    for i, tokenizer in enumerate(fitted):
        folder = tokenizer.save_pretrained(tmp_path / str(i))
        card = (folder / "README.md").read_text()
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("path/to/this/folder", str(folder))
        names: dict[str, Any] = {"actions": rng.uniform(-1, 1, (3, 5, 2)).astype(np.float32)}
        exec(code.replace("horizon=...", "horizon=5"), names)
        assert names["actions"].shape == (3, 5, 2)
        assert names["ids"].shape[0] == 3
    assert "some/data" in card
    assert "arm: " in card
