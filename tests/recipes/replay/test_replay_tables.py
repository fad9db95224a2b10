"""The tables of the replay study: rank correlations, the criterion, and that the README is what the results say."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "replay"))

import replay_tables as recipe

NAMES = [f"bins{i}" for i in range(8)]
GROUPS = ["conventional"] * 6 + ["probe", "probe"]


def row(task, name, drift, mse, deviation, loss, group="conventional"):
    values = {
        "drift": drift,
        "drift_leaky": drift,
        "error_mean": mse**0.5,
        "replay_deviation": deviation,
        "replay_score": loss,
    }
    measures = {n: {"value": v, "interval": None, "parts": {}} for n, v in values.items()}
    measures["error_mean"]["parts"]["mse"] = mse
    measures["replay_deviation"]["interval"] = [deviation / 2, deviation * 2]
    return {
        "task": task,
        "tokenizer": name,
        "group": group,
        "silent_failure": loss > 0.6,
        "measures": measures,
        "seconds": {"fit": 1.0, "audit": 2.0},
    }


def rows(drift_of=lambda i: i + 1.0, mse_of=lambda i: (i % 4) + 1.0, tasks=("push", "pull")):
    exact = {"score": 1.0, "median_state_error": 0.0, "largest_state_error": 0.0}
    exact |= {"episodes": 25, "fit_episodes": 100, "mean_length": 60.0}
    found = [{"task": task, "exact": exact, "seconds": 1.0} for task in tasks]
    for task in tasks:
        for i, (name, group) in enumerate(zip(NAMES, GROUPS, strict=True)):
            found.append(row(task, name, drift_of(i), mse_of(i), 0.01 * (i + 1), i / 10, group))
    return found


class TestSpearman:
    def test_equals_scipy_with_ties(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            a, b = rng.integers(0, 5, (2, 12)).tolist()
            assert recipe.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)

    def test_leaves_out_what_is_missing(self):
        a, b = [1, 2, None, 3, 4, 5, 6, 7], [7, 6, 0, 5, 4, 3, 2, None]
        assert recipe.spearman(a, b) == -1

    def test_is_none_for_constants_and_few(self):
        assert recipe.spearman([1] * 8, list(range(8))) is None
        assert recipe.spearman([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) is None


class TestCollect:
    def test_numbers_stand_in_the_order_of_the_tokenizers(self):
        results = recipe.collect(rows())
        assert results["tokenizers"] == NAMES
        assert results["groups"] == GROUPS
        assert results["seconds"] == 48
        push = results["tasks"]["push"]
        assert push["measures"]["drift"] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert push["measures"]["error_mean: mse"] == [1, 2, 3, 4, 1, 2, 3, 4]
        assert push["intervals"]["replay_deviation"][1] == [0.01, 0.04]
        assert push["intervals"]["replay_score"] == [None] * 8
        assert push["silent_failure"][-1] is True

    def test_what_is_not_run_yet_is_none(self):
        results = recipe.collect(rows()[:-3])
        assert results["tasks"]["pull"]["measures"]["drift"] == [1, 2, 3, 4, 5, None, None, None]
        assert recipe.correlations(results, "drift", "replay_deviation") == {"push": 1.0}
        assert not recipe.holds(results)

    def test_lines_that_a_crash_cut_off_are_left_out(self, tmp_path):
        lines = [json.dumps(each) for each in rows()]
        (tmp_path / "push.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:40])
        assert recipe.read_rows(tmp_path) == rows()[:5]
        assert recipe.read_rows(tmp_path / "nowhere") == []


class TestCriterion:
    def test_holds_where_drift_ranks(self):
        results = recipe.collect(rows())
        assert recipe.holds(results)
        assert "holds" in recipe.summary(results)

    @pytest.mark.parametrize(
        ("drift_of", "mse_of"),
        [(lambda i: (i % 2) * 10.0 + i, lambda i: 1.0 + i % 4), (lambda i: i + 1.0, lambda i: i + 1.0)],
        ids=["drift ranks badly", "MSE ranks as well"],
    )
    def test_fails_otherwise(self, drift_of, mse_of):
        results = recipe.collect(rows(drift_of, mse_of))
        assert not recipe.holds(results)
        assert "does not hold" in recipe.summary(results)

    def test_conventional_tokenizers_stand_apart(self):
        results = recipe.collect(rows(lambda i: i + 1.0 if i < 6 else -i))
        assert recipe.correlations(results, "drift", "replay_deviation", recipe.CONVENTIONAL)["push"] == 1
        assert recipe.correlations(results, "drift", "replay_deviation")["push"] < 0.5

    def test_extras_stand_outside(self):
        results = recipe.collect(rows(lambda i: i + 1.0 if i < 7 else -i))
        results["groups"][7] = "extra"
        assert recipe.holds(results)
        assert recipe.correlations(results, "drift", "replay_deviation", recipe.EVERY)["push"] < 0.5
        assert "| with the extras | .33 | .33 |" in recipe.readme(results)


class TestTables:
    def test_numbers_are_short(self):
        told = [recipe._number(v) for v in (0.876, -0.876, 1.0, 0.0, -0.001, 12.3, None)]
        assert told == [".88", "-.88", "1.00", "0.00", "0.00", "12.30", "-"]
        assert recipe._number(float("-inf")) == "-inf"

    def test_tables_say_what_was_collected(self):
        results = recipe.collect(rows())
        text = recipe.readme(results)
        assert "2 tasks, 8 tokenizers (6 conventional, 2 probe, 0 extra); 1 minutes of one core." in text
        assert "| push | 100 | 25 | 60 | 1.000 | 0 | 0 |" in text
        assert "| `drift_leaky` | 1.00 (1.00) | 1.00 (1.00) |" in text
        assert "| bins1 | .0200 [.0100, .0400] | .0200 [.0100, .0400] |" in recipe.outcomes(results)
        assert "| `mse` | .49" in text

    def test_the_alarm_needs_both_sizes(self):
        assert "It rings for no tokenizer." in recipe.readme(recipe.collect(rows()))
        alarmed = rows()
        for each in alarmed:
            if "measures" in each:
                low = 0.02 if each["tokenizer"] in ("bins3", "bins7") else 0.0
                each["measures"]["episode_jump"] = {"value": 0.4, "interval": [low, 0.7], "parts": {}}
                fine = [0.02 if each["tokenizer"] == "bins7" else 0.01, 0.5]
                each["measures"]["episode_jump_fine"] = {"value": 0.2, "interval": fine, "parts": {}}
        text = recipe.readme(recipe.collect(alarmed))
        assert "| *bins7* | .40 | .20 | 2 | push (.70), pull (.70) |" in text
        assert "| bins3 |" not in text

    def test_detection_is_the_area_under_the_curve(self):
        results = recipe.collect(rows())
        results["tokenizers"][5:7] = ["trap0.4%", "trap0.1%"]
        assert recipe.detection(results, "drift") == {"push": 10 / 12, "pull": 10 / 12}
        results["tasks"]["push"]["measures"]["drift"] = [3] * 7 + [None]
        assert list(recipe.detection(results, "drift")) == ["pull"]


@pytest.fixture
def results():
    return json.loads(recipe.RESULTS.read_text(encoding="utf-8"))


def section(name):
    text = recipe.README.read_text(encoding="utf-8")
    return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


class TestPublished:
    def test_the_tables_are_those_of_the_results(self, results):
        assert section("results") == recipe.readme(results).strip()
        again = json.loads(recipe.CONFIRMATION.read_text(encoding="utf-8"))
        assert section("confirmation") == recipe.confirmation(again).strip()
        assert recipe.OUTCOMES.read_text(encoding="utf-8").strip() == recipe.outcomes(results).strip()

    def test_the_criterion_holds(self, results):
        assert recipe.holds(results)
        assert len(results["tasks"]) == 9
        assert results["groups"].count("conventional") >= 20

    def test_exact_actions_reproduce_the_recordings(self, results):
        for task, numbers in results["tasks"].items():
            exact = numbers["exact"]
            if task == "pusht":
                assert exact["median_state_error"] < 1e-7  # widths of the field: float32
                assert exact["largest_state_error"] < 1e-5
            else:
                assert (exact["score"], exact["largest_state_error"]) == (1, 0)

    def test_publishing_again_changes_nothing(self, tmp_path, monkeypatch):
        for name in ("RESULTS", "README", "OUTCOMES", "CONFIRMATION"):
            path = getattr(recipe, name)
            shutil.copy(path, tmp_path)
            monkeypatch.setattr(recipe, name, tmp_path / path.name)
        assert recipe.main([]) == 0
        recipe.main(["--confirm"])
        for path in tmp_path.iterdir():
            assert path.read_bytes() == (recipe.HERE / path.name).read_bytes()
