"""The smoke form of the acceptance comparison, and the rules by which it judges."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the recorded episodes are parquet files")
pytest.importorskip("scipy", reason="the FAST stand-in uses scipy")
pytest.importorskip("tokenizers", reason="the FAST stand-in uses tokenizers")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

import compare_with_reference_fast as recipe

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")

REFERENCE: dict[str, Any] = {
    "data": "pusht",
    "seed": 0,
    "train_chunks": 500,
    "test_chunks": 100,
    "reference_tokens": 5.0,
    "reference_vocab_size": 1024,
    "reference_lost": 0,
    "reference_mse": 4.0e-4,
    "reference_mse_clamped": 3.9e-4,
    "reference_mse_with_lost": 4.0e-4,
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rayon's pool must not be alive when a later test forks."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def run(tokens: float, mse: float) -> recipe.Run:
    return recipe.Run(**REFERENCE, ours_tokens=tokens, ours_vocab_size=1024, ours_lost=0, ours_mse=mse)


@needs_shared
@pytest.mark.parametrize("extra", [["--reference-only"], []])
def test_smoke(extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fast.json"
    assert recipe.main(["--data", str(DATA), "--smoke", "--json", str(file), *extra]) == 0
    report = json.loads(file.read_text())

    (row,) = report["runs"]
    rounding = 0.25 / recipe.SCALE**2
    assert (row["data"], row["seed"], row["train_chunks"], row["test_chunks"]) == ("pusht", 0, 500, 500)
    assert 0 < row["reference_mse_clamped"] <= row["reference_mse"] <= rounding
    assert 2 < row["reference_tokens"] < 20
    if extra:
        assert report["holds"] is None
        assert row["ours_tokens"] is None
    else:
        assert report["holds"] is (not row["failed"])
        assert 2 < row["ours_tokens"] < 20
        assert 0 < row["ours_mse"] <= rounding
    assert "| pusht | 0 | 500 / 500 |" in capsys.readouterr().out


def test_judges_tokens_strictly_and_errors_within_two_percent() -> None:
    assert run(5.0, 3.97e-4).failed == []
    assert run(4.0, 1.0e-4).failed == []
    assert run(5.01, 3.9e-4).failed == ["more tokens"]
    # within 2 % of the unclamped error, but not of the clamped one
    assert run(5.0, 4.0e-4).failed == ["larger error"]
    assert run(5.0, float("nan")).failed == ["larger error"]
    assert recipe.Run(**REFERENCE).failed == []


def test_splits_by_episode_and_caps_both_parts() -> None:
    # every episode has a level of its own, so a chunk tells where it comes from
    episodes = [np.full((length, 2), level, dtype=np.float32) for level, length in enumerate(range(4, 44, 4))]
    assert len(recipe.cut(episodes, 8)) == sum((length - 8) // 3 + 1 for length in range(8, 44, 4))

    data = recipe.split(episodes, 8, seed=0, max_chunks=10_000)
    order = np.random.default_rng(0).permutation(10)
    held_out = [episodes[i] for i in order[:2]]
    assert data.test.shape == (len(recipe.cut(held_out, 8)), 8, 2)
    assert data.train.dtype == np.float32
    assert np.abs(data.train).max() <= 1
    assert not set(np.unique(data.train)) & set(np.unique(data.test[np.abs(data.test) < 1]))

    capped = recipe.split(episodes, 8, seed=0, max_chunks=5)
    assert (len(capped.train), len(capped.test)) == (5, min(5, len(data.test)))


def test_strict_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "read_episodes", lambda folder: [np.zeros((20, 2), np.float32)] * 10)
    measured = {name: value for name, value in REFERENCE.items() if name not in ("data", "seed")}
    monkeypatch.setattr(recipe, "compare", lambda *_: {**measured, "ours_tokens": 9.0, "ours_mse": 1e-4})
    assert recipe.main(["--smoke", "--strict"]) == 1
    assert recipe.main(["--smoke"]) == 0
