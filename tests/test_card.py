"""The card says what the config and the audit say, in front matter that the Hub reads, and its code runs."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from action_tokenizers import ActionTokenizer, ActionValueError, BinningTokenizer, Episodes, FASTTokenizer, Range
from action_tokenizers.card import check_audit, model_card
from tests.fakes.fitted import FAMILIES, MADE, chunks, episodes, fit

PUBLISHED = Path(__file__).resolve().parents[1].parent / "shared" / "pretrained" / "physical-intelligence-fast"
AUDIT = {
    "data": {"source": "org/one"},
    "caption": "On 12 episodes that the fit did not see.",
    "measures": [
        {"name": "mse", "meaning": "held-out squared error, in range units", "value": 1e-5},
        {"name": "tokens", "meaning": "ids per chunk", "value": 31.25},
        {"name": "failures", "meaning": "sequences that do not decode", "value": 0},
        {"name": "smoothness", "meaning": "not measured here", "value": None},
    ],
}
NASTY = 'a "quoted": name | with {braces}, # and \\ and \x07\x7f and \n two lines and ü and 🤖'


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


def front_of(card: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def code_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


# ---- what it says -----------------------------------------------------------------------------------------------


def test_says_every_fact():
    assert rows(model_card(config())) == {
        "tokenizer": "fast",
        "chunk": "8 steps x 7 dims",
        "vocabulary": "513 ids, of which 512 is the pad and end mark",
        "ids per chunk": "at most 56",
        "range": "quantile",
        "range keys": "bridge, droid",
        "fitted on": "org/one, two",
        "chunks seen": "bridge: 100, droid: 7",
        "parameters": "scale=10",
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [("minmax", "minmax"), (["unit", "minmax"], "unit, minmax"), ({"range": {"low": [0.0]}}, "given"), (None, "None")],
)
def test_says_the_range(asked, said):
    assert rows(model_card(config(params={"range": asked})))["range"] == said


def test_no_pad_is_not_mentioned():
    card = model_card(config(fitted={"pad_id": None}), "actions = ids")
    assert rows(card)["vocabulary"] == "513 ids"
    assert "ids = ids[" not in card
    assert "ids = ids[ids != 512]\n" in model_card(config(), "actions = ids")


@pytest.mark.parametrize("sources", [[], None])
def test_plain_arrays_have_no_source(sources):
    assert rows(model_card(config(provenance={"sources": sources, "keys": {"default": 3}})))["fitted on"] == "arrays"


def test_a_foreign_provenance_may_say_nothing():
    said = rows(model_card(config(provenance={})))
    assert (said["fitted on"], said["chunks seen"]) == ("not told", "")


def test_a_family_without_lines_has_no_section_for_them():
    assert "Decode without this library" not in model_card(config())
    assert "Decode without this library" in model_card(config(), "actions = ids")


def test_says_what_was_measured():
    assert "saved without an audit" in model_card(config())
    card = model_card(config(), audit=AUDIT)
    assert "saved without an audit" not in card
    assert AUDIT["caption"] in card
    said = rows(card)
    assert said["held-out squared error, in range units"] == "1e-05"
    assert said["ids per chunk"] == "31.2"
    assert said["sequences that do not decode"] == "0"
    assert said["not measured here"] == "-"


def test_names_cannot_break_the_table():
    facts = {"range_keys": [NASTY]}
    card = model_card(config(fitted=facts, provenance={"sources": [NASTY], "keys": {NASTY: 1}}))
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in card.splitlines() if line.startswith("|")] == [3] * 11


@pytest.mark.parametrize(
    "audit",
    [
        [],
        "text",
        {"measures": 5},
        {"measures": {}},
        {"data": "some/data"},
        {"caption": 5},
        {"measures": [5]},
        {"measures": [{}]},
        {"measures": [{"name": "mse", "meaning": "error"}]},
        {"measures": [{"name": "mse", "meaning": None, "value": 1.0}]},
        {"measures": [{"name": 5, "meaning": "error", "value": 1.0}]},
        {"measures": [{"name": "mse", "meaning": "error", "value": "1.0"}]},
    ],
)
def test_an_audit_that_cannot_be_told(audit):
    with pytest.raises(ActionValueError, match=r"expected .*audit"):
        check_audit(audit)


@pytest.mark.parametrize("audit", [None, {}, AUDIT, {"measures": [], "more": {"of": "it"}}])
def test_an_audit_may_say_less_or_more(audit):
    check_audit(audit)
    assert "model-index" not in front_of(model_card(config(), audit=audit)) or audit is AUDIT


# ---- front matter -----------------------------------------------------------------------------------------------


def test_front_matter_is_what_the_hub_reads():
    assert front_of(model_card(config())) == {
        "library_name": "action-tokenizers",
        "pipeline_tag": "robotics",
        "tags": ["action-tokenizer", "vla", "fast"],
        "datasets": ["org/one"],
    }
    provenance = {"license": "apache-2.0", "sources": ["a folder"]}
    assert front_of(model_card(config(provenance=provenance))) == {
        "library_name": "action-tokenizers",
        "pipeline_tag": "robotics",
        "license": "apache-2.0",
        "tags": ["action-tokenizer", "vla", "fast"],
    }


def test_numbers_are_numbers():
    """YAML reads 1e-05 as text."""
    metrics = front_of(model_card(config(), audit=AUDIT))["model-index"][0]["results"][0]["metrics"]
    assert [metric["value"] for metric in metrics] == [1e-5, 31.25, 0]
    values = [1e-300, -2.5e-7, 1e22, 123456789.0, 3, -1.0]
    audit = {"measures": [{"name": "m", "meaning": "m", "value": value} for value in values]}
    metrics = front_of(model_card(config(), audit=audit))["model-index"][0]["results"][0]["metrics"]
    assert [metric["value"] for metric in metrics] == values


@pytest.mark.parametrize("audit", [None, AUDIT], ids=["no audit", "audit"])
@pytest.mark.parametrize("name", [*FAMILIES, NASTY])
def test_the_hubs_own_reader_understands_it(name, audit):
    hub = pytest.importorskip("huggingface_hub")
    provenance = {"sources": ["org/one", NASTY], "keys": {NASTY: 3}, "license": "mit"}
    text = model_card(config(tokenizer_type=name, provenance=provenance, fitted={"range_keys": [NASTY]}), audit=audit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = hub.ModelCard(text)
    plain = name if name in FAMILIES else 'a "quoted": name | with {braces}, # and \\ and and two lines and ü and 🤖'
    assert card.data.library_name == "action-tokenizers"
    assert card.data.pipeline_tag == "robotics"
    assert card.data.license == "mit"
    assert card.data.tags == ["action-tokenizer", "vla", plain]
    assert card.data.datasets == ["org/one"]
    results = card.data.eval_results
    if audit is None:
        assert results is None
        return
    assert card.data.model_name == plain
    told = [m for m in AUDIT["measures"] if m["value"] is not None]
    assert [(r.metric_type, r.metric_name, r.metric_value) for r in results] == [
        (m["name"], m["meaning"], m["value"]) for m in told
    ]
    assert {(r.task_type, r.dataset_type, r.dataset_name) for r in results} == {("robotics", "org/one", "org/one")}
    index = card.data.to_dict()["model-index"]
    model, again = hub.repocard_data.model_index_to_eval_results(index)
    assert (model, again) == (plain, results)


# ---- its code ---------------------------------------------------------------------------------------------------


def several_keys(tokenizer: ActionTokenizer) -> ActionTokenizer:
    other = [walk * 2 - 1 for walk in episodes().actions]
    return tokenizer.fit([episodes("left"), Episodes.from_arrays(other, fps=10.0, key="right")])


def demonstrated_and_wild() -> np.ndarray:
    """Chunks as they were fitted, and some whose coefficients no chunk of the fit had."""
    wild = np.random.default_rng(1).choice([-9.0, 9.0], (4, 6, 3))
    return np.concatenate([chunks(), wild.astype(np.float32)])


CASES = {name: lambda name=name: fit(name) for name in MADE} | {
    f"{name} of several keys": lambda name=name: several_keys(MADE[name]()) for name in FAMILIES
}
# a vocabulary so small that most coefficients are spelt with two digits
CASES["tight fast"] = lambda: FASTTokenizer(horizon=6, vocab_size=40, scale=30).fit(episodes())


@pytest.mark.parametrize("name", CASES)
def test_the_code_of_the_card_runs(name, tmp_path, monkeypatch):
    """As it stands, with only the folder put in; actions and ids are the caller's."""
    tokenizer = CASES[name]()
    folder = tokenizer.save_pretrained(tmp_path / "saved", license="mit")
    use, alone = code_of((folder / "README.md").read_text(encoding="utf-8"))
    key, actions = tokenizer.range_keys[0], demonstrated_and_wild()
    names: dict[str, Any] = {"actions": actions}
    exec(use.replace("path/to/this/folder", str(folder)), names)
    ids = tokenizer.encode(actions, key=key)
    decoded = tokenizer.decode(ids, horizon=6, key=key)
    np.testing.assert_array_equal(names["ids"], ids)
    np.testing.assert_array_equal(names["actions"], decoded)
    assert len(use.strip().splitlines()) == 5
    monkeypatch.chdir(folder)
    for row, expected in zip(ids, decoded, strict=True):
        names = {"ids": row}
        exec(alone, names)
        np.testing.assert_allclose(names["actions"], expected, rtol=0, atol=1e-5)
        assert names["actions"].shape == (6, 3)
    assert not {"action_tokenizers", "torch"} & set(re.findall(r"^(?:import|from) (\w+)", alone, re.MULTILINE))


def test_the_cases_are_the_hard_ones():
    """Escape digits and merges, padded rows, ids of one's own per dim, groups that are not in order."""
    for fast, kind in ((fit("fast"), "merges"), (CASES["tight fast"](), "digits")):
        sizes, ids = fast._facts()["sizes"], fast.encode(demonstrated_and_wild())
        first_merge = fast.vocab_size - 1 - sizes["merges"]
        used = {"digits": (ids >= sizes["alphabet"]) & (ids < first_merge), "merges": ids >= first_merge}
        assert (used[kind] & (ids != fast.pad_id)).mean() > 0.1
        assert (ids == fast.pad_id).any()
    assert fit("open binning").get_params()["shared_ids"] is False
    assert fit("kmeans").get_params()["groups"] == [[0, 2], [1]]


def test_a_constant_dim_comes_back(tmp_path, monkeypatch):
    still = [np.concatenate([walk[:, :2], np.full((len(walk), 1), 0.25, np.float32)], 1) for walk in episodes().actions]
    for tokenizer in (BinningTokenizer(horizon=6, bins=4), FASTTokenizer(horizon=6, vocab_size=128)):
        folder = tokenizer.fit(still).save_pretrained(tmp_path / tokenizer.tokenizer_type)
        monkeypatch.chdir(folder)
        names: dict[str, Any] = {"ids": tokenizer.encode(still[0][:6])}
        exec(code_of(Path("README.md").read_text(encoding="utf-8"))[1], names)
        np.testing.assert_array_equal(names["actions"][:, 2], np.float32(0.25))


@pytest.mark.parametrize("ranged", [False, True])
def test_the_code_of_an_imported_tokenizer_runs(ranged, tmp_path, monkeypatch):
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published files are not at {PUBLISHED}")
    golden = np.load(PUBLISHED / "golden.npz")
    name = sorted(key.rpartition("/")[0] for key in golden.files if key.endswith("/ids"))[0]
    actions = golden[f"{name}/actions"][:3]
    d = actions.shape[-1]
    tokenizer: Any = ActionTokenizer.from_pretrained(PUBLISHED)
    if ranged:
        tokenizer = tokenizer.with_range(Range([-0.5] * d, [0.25] * d))
    folder = tokenizer.save_pretrained(tmp_path / "saved")
    use, alone = code_of((folder / "README.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"actions": actions}
    exec(use.replace("path/to/this/folder", str(folder)), names)
    if not ranged:
        np.testing.assert_allclose(names["actions"], golden[f"{name}/decoded"][:3], rtol=0, atol=1e-6)
    monkeypatch.chdir(folder)
    for ids, expected in zip(names["ids"], names["actions"], strict=True):
        given = {"ids": ids}
        exec(alone.replace(" or 7", f" or {d}"), given)
        np.testing.assert_allclose(given["actions"], expected, rtol=0, atol=1e-6)
