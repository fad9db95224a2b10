"""Tables: means, pairs, and that the published ones are those of the published results."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "cloning"
sys.path.insert(0, str(FOLDER))

import cloning_tables as recipe  # noqa: E402


def row(tokenizer, seed, scores, task="reach-v3"):
    law = {"scores": scores, "stopped": 0, "looks": 3.0, "s": 1.0}
    return {
        "task": task,
        "tokenizer": tokenizer,
        "seed": seed,
        "tokens": 4.0,
        "train_s": 10.0 + seed,
        "starts": list(range(len(scores))),
        "drawn": law,
        "likeliest": law,
        "mean": {},
    }


def audit(tokenizer, task="reach-v3"):
    verdict = "Conditions that fail: no drift. Not shown: small gain."
    facts = {"verdict": verdict, "silent_failure": False, "vocab_size": 8, "measures": {"drift_leaky": 0.25}}
    return {"task": task, "tokenizer": tokenizer, "seed": None, **facts}


ROWS = [
    audit("bins256"),
    row("bins256", 1, [1, 1, 0, 0, 0, 0]),
    row("bins256", 0, [1, 0, 0, 0, 0, 0]),
    row("other", 0, [1, 1, 1, 0, 0, 1]),
    row("other", 1, [1, 1, 1, 1, 0, 0]),
]


def test_scores_are_over_seeds_and_starts():
    results = recipe.collect(ROWS)
    assert recipe.scores(results["reach-v3"]["bins256"], "drawn").tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert recipe.scores(results["reach-v3"]["bins256"], "by hand") is None


def test_differences_are_taken_in_pairs():
    lines = recipe.table(recipe.collect(ROWS)).splitlines()
    assert lines[0] == "### reach-v3: success, 6 starts, 2 seeds"
    bins, other = ([cell.strip() for cell in line.split("|")] for line in lines[-2:])
    assert bins[1:5] == ["bins256", "4.0", "10", bins[4]]
    assert bins[4].startswith("0.25 [")
    assert bins[5:7] == ["0.17 0.33", "-"]
    assert bins[8:10] == ["0.250", "Conditions that fail: no drift."]
    assert other[6].startswith("+0.42 [")
    assert other[8:10] == ["-", "-"]


def test_intervals_stay_inside_and_exist_where_all_score_alike():
    same = recipe.table(recipe.collect([row("bins256", 0, [1.0] * 6)]))
    assert "1.00 [0.45, 1.00]" in same  # Hoeffding: 1 - sqrt(ln 40 / 12)


def test_what_works():
    assert recipe.works(recipe.collect(ROWS))
    assert not recipe.works(recipe.collect([row("bins256", 0, [1, 0, 0, 0])]))
    assert not recipe.works(recipe.collect([row("bins256", 0, [1, 1], task="pusht")]))
    assert not recipe.works({})
    # the baseline without tokens proves nothing about a tokenizer
    baseline = [row("bins256", 0, [0, 0, 0, 1]), row("regression", 0, [1, 1, 1, 1])]
    assert not recipe.works(recipe.collect(baseline))


def test_rows_written_twice_count_once_and_audits_alone_not_at_all():
    twice = recipe.collect([*ROWS, row("other", 1, [0] * 6), audit("unfinished")])
    assert recipe.scores(twice["reach-v3"]["other"], "drawn").tolist() == [[1, 1, 1, 0, 0, 1], [0] * 6]
    assert list(twice["reach-v3"]) == ["bins256", "other"]
    assert recipe.collect([audit("unfinished")]) == {}


class TestPublished:
    @pytest.fixture
    def results(self):
        return json.loads(recipe.RESULTS.read_text(encoding="utf-8"))

    def test_the_tables_are_those_of_the_results(self, results):
        text = recipe.README.read_text(encoding="utf-8")
        told = text.split("<!-- results -->")[1].split("<!-- /results -->")[0]
        assert told.strip() == recipe.table(results)

    def test_what_was_promised_was_run(self, results):
        assert set(results) == {"pick-place-v3", "pusht", "reach-v3"}
        for entries in results.values():
            executed = [name for name, entry in entries.items() if "audit" in entry]
            assert len(executed) >= 4
            assert all(len(entry["runs"]) == 3 for entry in entries.values())
            assert len({tuple(run["starts"]) for entry in entries.values() for run in entry["runs"]}) == 1
        assert recipe.works(results)
