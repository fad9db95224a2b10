"""The scale recipe runs, sampling and streaming agree, and the page is made of the published numbers."""

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the data are parquet")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))

import fit_scale

from action_tokenizers.data import Episodes, smooth_chunks
from action_tokenizers.data.index import Runs, tabulate
from action_tokenizers.data.readers.frames import FrameFiles


def test_the_data_are_the_chunks_of_the_generator(tmp_path: Path) -> None:
    fit_scale.write_shards(tmp_path / "chunks", fit_scale.SMOKE)
    episodes = Episodes.load(tmp_path / "chunks")
    assert len(episodes) == fit_scale.SMOKE["chunks"]
    first = smooth_chunks(100, 10, 3, seed=0)
    assert (episodes.actions[7] == first[7]).all()
    part = fit_scale.first_files(tmp_path / "chunks", 200, fit_scale.SMOKE)
    assert len(Episodes.load(part)) == 200


def test_one_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "chunks"
    fit_scale.write_shards(data, fit_scale.SMOKE)
    assert fit_scale.main(["--only", "sampled", str(data), "100", "10", str(tmp_path / "sampled")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["chunks"], found["sample"]) == (400, 100)
    assert found["peak_bytes"] > 10_000_000
    assert found["seconds"] == pytest.approx(
        found["index_seconds"] + found["sample_seconds"] + found["fit_seconds"], abs=1e-6
    )
    code = fit_scale.held_out(tmp_path / "sampled", fit_scale.SMOKE)
    assert 0 < code["tokens"] <= 30
    assert 0 < code["mse"] < 0.01


def test_the_index_takes_the_memory_that_the_plan_says() -> None:
    count, files = 200_000, 20
    names = np.arange(count, dtype=np.int64).reshape(files, -1)
    described = FrameFiles(
        Path("x"), tuple(map(str, range(files))), ("action",), (), "episode_index", "frame_index", False, 10.0, None
    )
    tracemalloc.start()
    try:
        found = [Runs(one.copy(), np.full(len(one), 50), (14, 0), 0, False, 1, "") for one in names]
        table = tabulate(described, found)
        peak = tracemalloc.get_traced_memory()[1]
        del found
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(table.name) == count
    assert held / count == pytest.approx(fit_scale.TABLE, rel=0.05)
    assert peak / count == pytest.approx(fit_scale.PEAK, rel=0.1)


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    given = ["--smoke", "--json", str(tmp_path / "r.json"), "--page", str(tmp_path / "r.md")]
    assert fit_scale.main(given) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert [one["chunks"] for one in report["growth"]] == fit_scale.SMOKE["growth"]
    assert set(report["held_out"]) == {"whole", "50", "100"}
    assert report["whole"]["chunks"] == 200
    if report["ray"]:
        assert report["ray"]["digest"] == report["growth"][-1]["digest"]
    assert (tmp_path / "r.md").read_text() == fit_scale.page(report)


@pytest.mark.skipif(not fit_scale.RESULTS.is_file(), reason="no results are published")
def test_the_page_is_made_of_the_published_numbers_and_they_hold_what_is_promised() -> None:
    report = json.loads(fit_scale.RESULTS.read_text())
    assert fit_scale.PAGE.read_text() == fit_scale.page(report)
    assert report["settings"] == fit_scale.FULL
    said = fit_scale.PAGE.read_text()
    for one in report["growth"]:  # what was measured is said, with how many chunks the fit saw
        assert f"{one['fit_seconds']:.1f} s on {one['sample']:,} chunks of {one['chunks']:,}" in said
        assert f"| {one['chunks']:,} | {one['sample']:,} |" in said
    assert "does not grow" not in said
    for name in (
        "`Shards`, with that table, is on every machine",
        f"up to {fit_scale.PEAK} while",
        "hashing the place",
    ):
        assert name in said
    sampled = report["sampled"][str(fit_scale.FULL["sample"])]
    assert (sampled["chunks"], sampled["sample"]) == (1_000_000, 30_000)
    assert sampled["peak_bytes"] < 4e9
    assert sampled["seconds"] < 300
    base, code = report["held_out"]["whole"], report["held_out"][str(fit_scale.FULL["sample"])]
    for number in ("tokens", "mse"):
        assert abs(code[number] / base[number] - 1) < 0.01
