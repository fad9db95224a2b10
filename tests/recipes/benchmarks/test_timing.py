"""Jobs are warmed up and shuffled, single calls counted, processes fresh; times themselves are never asserted."""

import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "benchmarks"))

import timing

import action_tokenizers


@pytest.mark.parametrize(("warm", "times"), [(False, 1), (True, 2)])
def test_jobs_are_warmed_up_and_shuffled(warm: bool, times: int) -> None:
    calls: list[str] = []
    jobs = {name: partial(calls.append, name) for name in "abcd"}
    seconds = timing.time_jobs(jobs, repeats=5, seed=0, warm=warm)
    assert "".join(calls[:4]) == "abcd"
    before, timed = calls[4::times], calls[3 + times :: times]  # warm ones twice in a row
    assert before == timed
    rounds = ["".join(timed[start : start + 4]) for start in range(0, len(timed), 4)]
    assert len(rounds) == 5
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 2
    assert {len(times) for times in seconds.values()} == {5}


def test_seconds_are_those_of_the_clock() -> None:
    ticks = count(0, 3)
    assert timing.time_jobs({"a": int}, 4, 0, clock=lambda: next(ticks)) == {"a": [3, 3, 3, 3]}


def test_single_calls_alternate_in_blocks_and_get_their_number() -> None:
    calls: list[tuple[str, int]] = []
    jobs = {name: lambda i, name=name: calls.append((name, i)) for name in "ab"}
    found = timing.single_calls(jobs, 120, seed=0)
    assert calls[:100] == [("a", i) for i in range(50)] + [("b", i) for i in range(50)]
    for name in "ab":
        assert [i for other, i in calls[100:] if other == name] == list(range(120))
        assert 0 < found[name]["p50"] <= found[name]["p99"]


def test_spread() -> None:
    assert timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_a_process_says_json_or_what_went_wrong(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint('noise')\nprint('{\"x\": \"' + sys.argv[1] + os.environ['Y'] + '\"}')")
    assert timing.fresh_process(script, "a", environment={"Y": "b"}) == {"x": "ab"}
    script.write_text("raise ValueError('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"):
        timing.fresh_process(script)


def test_what_was_measured_on() -> None:
    assert timing.matmul_limit(64, 2, 0) > 0
    found = timing.versions()
    assert found["numpy"] != "not installed"
    assert set(found) == {"action-tokenizers", *timing.PACKAGES}
    assert found["action-tokenizers"] == action_tokenizers.__version__
    assert timing.machine()["cores"] >= 1


def test_a_missing_package_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PACKAGES", ("no-such-distribution",))
    assert timing.versions()["no-such-distribution"] == "not installed"
