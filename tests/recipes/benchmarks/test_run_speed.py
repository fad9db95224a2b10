"""The benchmark runs, its page says what it measured, and what is missing is said to be missing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the FAST stand-in uses scipy")
pytest.importorskip("tokenizers", reason="the FAST stand-in uses tokenizers")
pytest.importorskip("matplotlib", reason="the recipe draws a figure")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))

import run_speed
from contests import MODULES, OURS, PER_CHUNK, RESIDUAL


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        # Rayon's pool must not be alive when a later test forks
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        assert run_speed.main(["--smoke", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def report(out: Path) -> dict:
    return json.loads((out / "speed.json").read_text())


def test_everything_is_measured(report: dict) -> None:
    names = [found["name"].split(",")[0] for found in report["contests"]]
    assert names[:2] == ["FAST", "FAST fit"]
    for found in report["contests"]:
        for sides in found["operations"].values():
            for row in sides.values():
                assert row["per_second"] > 0
                repeats = "fit_repeats" if found["name"].startswith("FAST fit") else "repeats"
                assert len(row["seconds"]) == report["settings"][repeats]
    assert report["matmul_gflops"] > 0
    assert report["first_call_ms"]["ours, kernels from the cache"]["first encode"] > 0
    assert set(report["memory_mb"]) == {f"{operation} | ours" for operation in ("encode", "decode", "fit")}
    assert {"1"} <= set(report["cores"])
    for name, values in run_speed.SMOKE["scaling"].items():
        assert list(report["scaling"][name]) == [str(value) for value in values]


def test_what_is_missing_is_said(out: Path, report: dict) -> None:
    page = (out / "README.md").read_text()
    assert report["missing"]["FAST, adroit_door"] == "data not given"
    assert "| FAST, adroit_door |  |  | data not given |" in page
    assert "| published FAST+ |  |  | folder not given |" in page
    for side in MODULES:
        assert (side in report["missing"]) == (f"| {side} | not installed |" in page)


def test_the_page_keeps_what_people_wrote(out: Path) -> None:
    page, template = (out / "README.md").read_text(), (run_speed.HERE / "README.md").read_text()
    assert page.split(run_speed.BEGIN)[0] == template.split(run_speed.BEGIN)[0]
    assert page.split(run_speed.END)[1] == template.split(run_speed.END)[1]
    for heading in ("Throughput", "One chunk a call", "First calls", "Peak memory", "FAST as batch grows", "Cores"):
        assert f"### {heading}" in page
    assert (out / "speed.png").stat().st_size > 1000


def test_tables_are_made_of_the_numbers_again(out: Path, report: dict, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / "README.md").read_text()
    assert run_speed.main(["--tables", "--out", str(out)]) == 0
    assert (out / "README.md").read_text() == before
    assert json.loads((out / "speed.json").read_text()) == report
    assert "| encode | FAST | ours |" in capsys.readouterr().out


def test_ratios_and_verdicts() -> None:
    def contest(name: str, operation: str, notes: dict | None = None, **sides: float) -> dict:
        rows = {side: {"per_second": speed, "gb_per_second": speed} for side, speed in sides.items()}
        return {"name": name, "items": 1, "notes": notes or {}, "operations": {operation: rows}}

    report = {
        "contests": [
            contest("FAST, smooth 50 x 14", "encode", **{OURS: 80.0, PER_CHUNK: 2.0}),
            contest("FAST fit, smooth", "fit", **{OURS: 9.0, PER_CHUNK: 2.0}),
            contest("256 uniform bins, 5,000 chunks", "encode", **{OURS: 1.0, run_speed.PREALLOCATED: 1.0})
            | {"items": 0},
            contest("256 uniform bins, 50,000 chunks", "encode", **{OURS: 3.0, run_speed.PREALLOCATED: 6.0}),
            contest("copying 1024 MB", "copy", **{run_speed.COPY: 10.0}),
            contest(
                "residual VQ 8 x 256",
                "encode",
                {OURS: {"mse": 0.2}, RESIDUAL: {"mse": 0.1}},
                **{OURS: 5.0, RESIDUAL: 2.0},
            ),
            contest("published FAST+, smooth", "decode", {"identical ids": False}, **{OURS: 1.0}),
        ],
        "latency_us": {
            f"{operation} | FAST | {side}": {"p50": time}
            for operation in ("encode", "decode")
            for side, time in ((OURS, 10.0), (PER_CHUNK, 40.0))
        },
        "missing": {run_speed.UNIFORM: "not installed", "FAST, adroit_door": "data not given"},
    }
    found = {asked: (measured, met) for asked, _, measured, met in run_speed.verdicts(report)}
    assert found[f"FAST, smooth: encode, times faster than {PER_CHUNK}"] == ("40.0", True)
    assert found[f"FAST, smooth: decode, times faster than {PER_CHUNK}"] == ("not measured", None)
    assert found[f"FAST, adroit_door: encode, times faster than {PER_CHUNK}"] == ("data not given", None)
    assert found[f"FAST fit: fit, times faster than {PER_CHUNK}"] == ("4.5", False)
    assert found[f"256 uniform bins: encode, times faster than {run_speed.UNIFORM}"] == ("not installed", None)
    assert found["FAST, one chunk a call: encode (p50)"] == ("4.0", False)
    share = f"256 uniform bins: encode, {run_speed.PREALLOCATED}, share of copy bandwidth"
    assert found[share] == ("0.60", True)
    assert found["residual VQ: error at most the peer's"][1] is False
    assert found["published FAST+: the stand-in's ids"] == ("not all", False)


def test_the_accelerators_table() -> None:
    """Bytes are those of each family, copying is a job of its own, and only binning is held to it."""
    settings = {**run_speed.SMOKE, "fit_chunks": 300, "copy_mb": 2}
    operations = run_speed.on_accelerator(settings, 0, "cpu")["operations"]
    assert set(operations) == {"encode", "decode", "copy"}
    chunks, (t, d) = settings["accelerator_chunks"], (settings["horizon"], settings["action_dim"])
    for operation in ("encode", "decode"):
        for name, ids in ((run_speed.BINS, t * d), ("k-means 256 per step", t), ("residual VQ 8 x 256", 8)):
            row = operations[operation][name]
            assert row["gb_per_second"] == pytest.approx((4 * t * d + 8 * ids) * row["per_second"] / 1e9)
            assert row["per_second"] == pytest.approx(chunks / np.median(row["seconds"]))
    copied = operations["copy"][run_speed.COPY]
    assert copied["gb_per_second"] == pytest.approx(4 * 2**20 / np.median(copied["seconds"]) / 1e9)
    assert run_speed.FULL["copy_mb"] >= 1024
    table = [line.split(" | ") for line in run_speed._accelerator_table(operations, 2)[2:]]
    assert {row[1] for row in table if row[-1].strip("| ")} == {run_speed.BINS}
    assert [row[0] for row in table if not row[2].strip()] == ["| copy of 2 MB"] * 2


def test_a_smoke_run_does_not_replace_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_speed.main(["--smoke"])
    assert "expected --out" in capsys.readouterr().err


def test_the_published_page_is_made_of_the_published_numbers() -> None:
    file = run_speed.HERE / "speed.json"
    if not file.is_file():
        pytest.skip("nothing published yet")
    report = json.loads(file.read_text(encoding="utf-8"))
    assert run_speed.markdown(report) in (run_speed.HERE / "README.md").read_text(encoding="utf-8")
