import json
from dataclasses import replace

import numpy as np
import pytest

from action_tokenizers import (
    ActionShapeError,
    ActionValueError,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    Relative,
    ResidualVQTokenizer,
)
from action_tokenizers.data import chunks, smooth_episodes
from action_tokenizers.diagnostics.compare import COLUMNS, SCHEMA_VERSION, compare


@pytest.fixture(scope="module")
def episodes():
    return smooth_episodes(20, length=(40, 90), action_dim=3, seed=0)


def families():
    return {
        "binning": BinningTokenizer(horizon=10, bins=32),
        "kmeans": KMeansTokenizer(horizon=10, codebook_size=16),
        "residual_vq": ResidualVQTokenizer(horizon=10, levels=2, codebook_size=16),
        "fast": FASTTokenizer(horizon=10, vocab_size=256),
    }


@pytest.fixture(scope="module")
def comparison(episodes):
    return compare(families(), episodes)


def test_every_column_is_there_for_every_family(comparison):
    assert list(comparison.rows) == list(families())
    for row in comparison.rows.values():
        assert set(row) >= {column.name for column in COLUMNS}
        assert row["mse"] > 0
        assert len(row["mse_per_dim"]) == 3


def test_numbers_are_what_the_tokenizers_do(episodes):
    train, test = episodes.split(0.2, seed=0)
    tokenizer = BinningTokenizer(horizon=10, bins=32).fit(train)
    row = compare({"b": tokenizer}, test).rows["b"]
    windows = np.concatenate([np.lib.stride_tricks.sliding_window_view(a, 10, 0).swapaxes(1, 2) for a in test.actions])
    unit = (np.concatenate(test.actions).max(0) - np.concatenate(test.actions).min(0)).astype(float) / 2
    error = (tokenizer.quantize(windows) - windows.astype(float)) / unit
    assert row["mse"] == pytest.approx((error**2).mean())
    assert row["max"] == pytest.approx(np.abs(error).max())
    assert row["tokens"] == row["tokens_p99"] == 30
    bins = [len(centres) for centres in tokenizer.scalar_cells().centres]
    assert row["bits"] == pytest.approx(10 * np.log2(bins).sum())


def test_the_parts_of_the_error_explain_it(comparison):
    for row in comparison.rows.values():
        assert row["clip_mse"] == pytest.approx(comparison.rows["binning"]["clip_mse"])  # one range for all
        assert row["cell_mse"] <= (np.sqrt(row["mse"]) + np.sqrt(row["clip_mse"])) ** 2 + 1e-12


def test_results_but_the_speeds_depend_on_the_arguments_alone(episodes, comparison):
    again = compare(families(), episodes)
    for name, row in comparison.rows.items():
        for column in row:
            if not column.endswith("_per_s"):
                assert again.rows[name][column] == row[column], (name, column)


def test_fitted_tokenizers_are_measured_on_all_episodes(episodes):
    tokenizer = BinningTokenizer(horizon=10).fit(episodes)
    result = compare({"b": tokenizer}, episodes, max_chunks=50)
    assert result.data["test_episodes"] == len(episodes)
    assert result.data["chunks"] == 50


def test_one_episode_must_be_asked_for(episodes):
    single = episodes[:1]
    with pytest.raises(ActionValueError, match="allow-single-episode"):
        compare({"b": BinningTokenizer(horizon=5)}, single)
    result = compare({"b": BinningTokenizer(horizon=5)}, single, allow_single_episode=True)
    assert "not independent" in result.notes[0]


def test_short_episodes_are_counted(episodes):
    short = Episodes.from_arrays([*episodes.actions, *(a[:4] for a in episodes.actions[:10])], fps=10)
    result = compare({"b": BinningTokenizer(horizon=10)}, short)
    assert sum(int(note.split()[0]) for note in result.notes) == 10


def test_what_cannot_be_compared_is_refused(episodes):
    with pytest.raises(ActionValueError, match="at least one"):
        compare({}, episodes)
    with pytest.raises(ActionShapeError, match="one horizon"):
        compare({"a": BinningTokenizer(horizon=5), "b": BinningTokenizer(horizon=6)}, episodes)
    bare = Episodes.from_arrays(episodes.actions)
    with pytest.raises(ActionShapeError, match="fps"):
        compare({"a": BinningTokenizer()}, bare)
    with pytest.raises(ActionShapeError, match="the longest of 89"):
        compare({"a": BinningTokenizer(horizon=500)}, episodes)
    fitted = BinningTokenizer(horizon=40).fit(episodes)
    with pytest.raises(ActionShapeError, match="of at most 20"):
        compare({"a": fitted}, Episodes.from_arrays([a[:20] for a in episodes.actions], fps=10))


def test_tokenizers_are_left_as_they_were(episodes):
    asked = families()
    result = compare(asked, episodes)
    assert not any(t.is_fitted for t in asked.values())
    assert all(t.is_fitted for t in result.tokenizers.values())
    assert compare(asked, episodes).rows["fast"]["mse"] == result.rows["fast"]["mse"]


def test_a_tokenizer_fitted_on_the_held_out_episodes_is_noted(episodes):
    fitted = KMeansTokenizer(horizon=10, codebook_size=16).fit(episodes)
    notes = compare({"mine": fitted, "new": BinningTokenizer(horizon=10)}, episodes).notes
    assert any(note.startswith("mine is NOT HELD OUT") for note in notes)


def test_a_tokenizer_fitted_on_other_episodes_of_the_same_data_is_not(episodes):
    train, test = episodes.split(0.5, seed=0)
    fitted = KMeansTokenizer(horizon=10, codebook_size=16).fit(train)
    assert not compare({"mine": fitted}, test).notes


def test_one_that_does_not_tell_which_chunks_it_saw_is_noted_by_the_name_of_its_data(episodes):
    fitted = KMeansTokenizer(horizon=10, codebook_size=16).fit(episodes)
    del fitted.provenance["fingerprints"]
    notes = compare({"mine": fitted, "new": BinningTokenizer(horizon=10)}, episodes).notes
    assert any("mine was fitted before" in note and "it does not tell" in note for note in notes)
    assert not any(note.startswith("new") for note in notes)
    elsewhere = replace(episodes, source="elsewhere")
    assert compare({"mine": fitted}, elsewhere).notes == ()


@pytest.mark.parametrize("mode", ["state", "previous"])
def test_relative_tokenizers_are_judged_by_absolute_actions(mode):
    rng = np.random.default_rng(0)
    actions = [np.cumsum(rng.normal(size=(60, 2)), 0).astype(np.float32) for _ in range(10)]
    states = [a + rng.normal(size=a.shape).astype(np.float32) / 10 for a in actions]
    episodes = Episodes(actions, states=states, fps=10)
    sample = ChunkSample().add(episodes, 6, 1, Relative(mode))
    tokenizer = BinningTokenizer(bins=256, range="minmax").fit(sample)
    row = compare({"r": tokenizer}, episodes).rows["r"]
    found = chunks(episodes, 6, 1, tokenizer.relative)
    absolute = chunks(episodes, 6).actions
    decoded = tokenizer.relative.invert(tokenizer.quantize(found.actions), found.reference)
    unit = np.array(compare({"r": tokenizer}, episodes).data["unit"])
    assert row["mse"] == pytest.approx((((decoded - absolute.astype(float)) / unit) ** 2).mean(), rel=1e-4)
    assert row["mse"] < 1e-3
    assert row["drift"] < 0.05


def test_padded_steps_count_nowhere(episodes):
    masks = [np.arange(len(a)) >= len(a) - 10 for a in episodes.actions]
    wild = [np.where(m[:, None], 1000, a).astype(np.float32) for a, m in zip(episodes.actions, masks, strict=True)]
    padded = Episodes(wild, fps=20.0, action_is_pad=masks)
    row = compare({"b": BinningTokenizer(horizon=10)}, padded)
    assert row.rows["b"]["mse"] < 1e-3
    assert row.rows["b"]["drift"] < 0.05
    assert max(row.data["unit"]) < 2


def test_markdown_and_json_hold_the_table(comparison):
    text = comparison.to_markdown()
    for column in COLUMNS:
        assert f"| {column.heading.strip()} |" in text
        assert column.meaning in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == len(families()) + 2 for line in table)
    data = comparison.to_json()
    assert json.loads(comparison.to_json_text()) == data
    assert comparison.to_json_text().endswith("}\n")
    assert data["audits"] == {}
    assert data["schema_version"] == SCHEMA_VERSION == 1
    assert data["library"].startswith("action-tokenizers ")
    assert data["tokenizers"]["fast"]["tokens"] == comparison.rows["fast"]["tokens"]
    assert data["data"]["horizon"] == 10


def test_numbers_that_json_lacks_are_none(comparison):
    rows = {"a": {**comparison.rows["fast"], "drift": float("nan")}}
    changed = replace(comparison, rows=rows)
    assert changed.to_json()["tokenizers"]["a"]["drift"] is None
    kept = {m["name"]: m["value"] for m in changed.audit("a")["measures"]}
    assert kept["drift"] is None
    json.dumps(changed.audit("a"), allow_nan=False)
    for unknown in (None, float("nan")):
        rows["a"] |= {"drift": unknown, "mse_per_dim": [unknown, 0.5, 0.5]}
        assert changed.cells(next(c for c in COLUMNS if c.name == "drift")) == ["-"]
        assert "| - |" in changed.to_markdown()


def test_a_tokenizer_has_faults_where_its_numbers_speak_for_nothing(episodes):
    fitted = KMeansTokenizer(horizon=10, codebook_size=16).fit(episodes)
    found = compare({"mine": fitted, "mine too": BinningTokenizer(horizon=10)}, episodes)
    assert found.faults("mine") == ["was fitted on some of these episodes"]
    assert found.faults("mine too") == []


def test_the_page_names_every_tokenizer(comparison):
    page = comparison.to_html()
    for name in comparison.rows:
        assert name.replace("_", "_<wbr>") in page
    assert page.count("<svg") == 5


def test_the_error_on_the_fit_stands_beside_the_held_out_one(episodes):
    train, _ = episodes.split(0.5, seed=0)
    mine = KMeansTokenizer(horizon=10, codebook_size=16).fit(train)
    asked = {"mine": mine, "new": KMeansTokenizer(horizon=10, codebook_size=256, scope="chunk")}
    rows = compare(asked, episodes, test=0.5).rows
    # more codewords than it can learn from so few chunks: it knows its own far better
    assert rows["new"]["fit_mse"] < 0.8 * rows["new"]["mse"]
    assert rows["mine"]["fit_mse"] is None
