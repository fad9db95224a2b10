"""What a fresh process measures, called here in this one."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="the FAST stand-in uses tokenizers")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))

import fresh_process


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rayon's pool must not be alive when a later test forks."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.mark.parametrize("side", ["ours", "stand-in"])
def test_first_calls(side: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fresh_process.main(["first_call", side, "6", "2"]) == 0
    taken = json.loads(capsys.readouterr().out)
    steps = {f"{which} {operation}" for which in ("first", "second") for operation in ("encode", "decode")}
    assert set(taken) == {"import", "fit"} | steps
    assert min(taken.values()) >= 0


@pytest.mark.parametrize("operation", ["encode", "decode", "fit"])
@pytest.mark.parametrize("side", ["ours", "stand-in"])
def test_memory(side: str, operation: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fresh_process.main(["memory", side, operation, "1500", "6", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 10 < found["before"] <= found["peak"]


def test_the_peak_is_that_of_this_program() -> None:
    before = fresh_process._peak()
    block = bytearray(200 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert fresh_process._peak() >= before
    assert fresh_process._peak() > 200
