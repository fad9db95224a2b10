"""The speed recipe runs and both sides decode what they encode; timings are never asserted."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="the FAST stand-in uses scipy")
pytest.importorskip("tokenizers", reason="the FAST stand-in uses tokenizers")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))

import fast_speed


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rayon's pool must not be alive when a later test forks."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fast_speed.json"
    assert fast_speed.main(["--smoke", "--json", str(file)]) == 0
    report = json.loads(file.read_text())

    sides = {fast_speed.OURS, fast_speed.PER_CHUNK, fast_speed.BATCH}
    for operation in ("encode", "decode"):
        assert set(report["chunks_per_second"][operation]) == sides
        assert set(report["ratio"][operation]) == sides - {fast_speed.OURS}
        for seconds in report["seconds"][operation].values():
            assert len(seconds) == report["settings"]["repeats"]
            assert min(seconds) > 0
    assert set(report["codes"]) == {fast_speed.OURS, "stand-in"}
    for code in report["codes"].values():
        assert 0 < code["mse"] < 0.25 / fast_speed.SCALE**2
        assert 0 < code["tokens"] <= 30
        assert 0 < code["vocab_size"] <= fast_speed.VOCAB_SIZE
    # ours gives every chunk back; the stand-in may lose some whose coefficients its fit has not seen
    assert report["codes"][fast_speed.OURS]["lost"] == 0
    assert report["codes"]["stand-in"]["lost"] < report["settings"]["chunks"] / 4
    assert {"tokenizers", "numpy", "scipy", "action-tokenizers"} <= set(report["versions"])

    printed = capsys.readouterr().out
    assert "| encode |" in printed
    assert "| decode |" in printed


def test_jobs_are_warmed_up_and_shuffled() -> None:
    calls: list[str] = []
    jobs = {("encode", name): partial(calls.append, name) for name in "abcd"}
    seconds = fast_speed.time_jobs(jobs, repeats=5, seed=0)
    rounds = ["".join(calls[start : start + 4]) for start in range(0, len(calls), 4)]
    assert rounds[0] == "abcd"
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 2
    assert {len(times) for times in seconds.values()} == {5}
