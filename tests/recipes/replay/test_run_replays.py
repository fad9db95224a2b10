"""The smoke form of the replay study, on a made-up linear robot: what an error does there is known."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "replay"))

import replay_tables
import replay_tokenizers
import run_replays as recipe

from action_tokenizers.diagnostics import learnability
from action_tokenizers.diagnostics.execution import Outcome


@pytest.fixture
def quick(monkeypatch):
    """The probe hardly trains, which takes most of an audit's time; six tokenizers are enough to rank."""
    monkeypatch.setattr(learnability, "learnability", partial(learnability.learnability, steps=4))
    kept = [name for name in replay_tokenizers.SMOKE if not name.startswith(("fast", "quantile"))]
    monkeypatch.setattr(replay_tokenizers, "SMOKE", tuple(kept))


def test_smoke(quick, tmp_path, capsys, monkeypatch):
    assert recipe.main(["--smoke", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "above MSE on average: holds" in told
    rows = replay_tables.read_rows(tmp_path)
    exact, *measured = rows
    assert exact["exact"]["score"] == 1
    assert exact["exact"]["largest_state_error"] < 1e-7
    assert [row["tokenizer"] for row in measured] == list(replay_tokenizers.SMOKE)
    for row in measured:
        assert row["measures"]["replay_deviation"]["interval"][0] > 0
        assert row["measures"]["replay_deviation"]["parts"]["failed"] == []
        assert set(row["measures"]["replay_deviation"]["parts"]["per_group"]) == {"hand", "object"}

    # a second run measures only what a crash cut off
    file = tmp_path / "linear-robot.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:100])
    asked = []
    monkeypatch.setattr(recipe, "measure", lambda task, name, entry: asked.append(name) or measured[-1])
    assert recipe.main(["--smoke", "--out", str(tmp_path)]) == 0
    assert recipe.main(["--smoke", "--out", str(tmp_path)]) == 0
    assert asked == [replay_tokenizers.SMOKE[-1]]
    assert replay_tables.read_rows(tmp_path) == rows


def test_publishing_is_asked_for(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(replay_tokenizers, "SMOKE", ("bins6",))
    published = []
    monkeypatch.setattr(replay_tables, "publish", published.append)
    assert recipe.main(["--smoke", "--out", str(tmp_path)]) == 1  # one tokenizer has no rank
    assert published == []
    recipe.main(["--smoke", "--out", str(tmp_path), "--publish"])
    assert [results["tokenizers"] for results in published] == [["bins6"]]
    monkeypatch.setattr(replay_tables, "publish_confirmation", published.append)
    recipe.main(["--smoke", "--out", str(tmp_path), "--publish", "--confirm"])
    assert len(published) == 2


def test_recorded_actions_are_executed_once():
    calls = []

    def replay(name, actions):
        calls.append(name)
        return Outcome(np.cumsum(actions, 0), 1.0)

    task = recipe.linear(0)
    remembered = recipe.Remembered(replay, task.held_out)
    actions = task.held_out.actions[2]
    first = remembered(2, actions)
    assert remembered(2, actions.copy()) is first
    assert remembered(2, actions + 1) is not first
    assert calls == [2, 2]


def test_tasks_are_the_asked_ones(tmp_path):
    def asked(*arguments):
        return list(recipe.tasks(recipe.parse(list(arguments))))

    assert asked() == list(recipe.META_WORLD)
    assert len(recipe.META_WORLD) == 8
    assert asked("--data", str(tmp_path)) == [*recipe.META_WORLD, "pusht"]
    assert asked("--data", str(tmp_path), "--tasks", "pusht", "push-v3") == ["pusht", "push-v3"]
    assert asked("--confirm") == [*recipe.META_WORLD, *recipe.NEW_META_WORLD]
    with pytest.raises(SystemExit, match=r"pusht: with --data.*got \['fold', 'pusht'\]"):
        asked("--tasks", "pusht", "fold")


def test_the_repetition_audits_other_demonstrations():
    first, again = recipe.PUBLISHED, recipe.CONFIRMING
    assert not set(first.held_out_starts) & set(again.held_out_starts)
    assert not set(first.noise_seeds) & set(again.noise_seeds)
    for split in (first, again):
        assert not set(split.fit_starts) & set(split.held_out_starts)


def test_rows_hold_single_numbers_only():
    measure = {"name": "drift", "value": 1.0, "interval": None, "kind": "unbiased", "n": {}}
    row = recipe.kept({**measure, "parts": {"per_dim": [1.0], "window": 16, "note": "x"}})
    assert row["parts"] == {"window": 16}
    replayed = {"per_group": {"hand": 1.0}, "curve": {"hand": [1.0]}, "failed": []}
    row = recipe.kept({**measure, "name": "replay_deviation", "parts": replayed})
    assert row["parts"] == {"per_group": {"hand": 1.0}, "failed": []}
    json.dumps(row)


class TestRealSimulators:
    def test_meta_world(self):
        pytest.importorskip("metaworld", reason="needs the extra sim, which CI does not install")
        few = replace(recipe.PUBLISHED, fit_starts=range(1), held_out_starts=range(25, 27), noise_seeds=range(1))
        task = recipe.meta_world("push-v3", few)
        exact = task.exact()
        assert (exact["score"], exact["largest_state_error"], exact["episodes"]) == (1, 0, 2)
        assert task.fit.source != task.held_out.source

    def test_pusht(self):
        pytest.importorskip("gym_pusht", reason="needs the extra sim, which CI does not install")
        pytest.importorskip("pyarrow", reason="the recorded data are parquet files")
        folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "pusht"
        if not folder.is_dir():
            pytest.skip("needs the recorded PushT demonstrations, which are not part of the repository")
        task = recipe.pusht(folder, recipe.PUBLISHED)
        again = recipe.pusht(folder, recipe.CONFIRMING)
        assert not set(task.held_out.names) & set(again.held_out.names)
        assert (len(again.fit), len(again.held_out)) == (166, 40)
        assert (len(task.fit), len(task.held_out)) == (166, 40)
        assert not set(task.fit.names) & set(task.held_out.names)
        exact = task.exact()
        assert exact["largest_state_error"] < 1e-5
        assert exact["score"] > 0.85
