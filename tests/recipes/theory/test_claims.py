"""Rows, numbers and the command line that the scripts share."""

import json
import math
import sys

import claims
import pytest


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, ".5"), (-0.035, "-.035"), (0.0, "0"), (12, "12"), (1e-6, "1e-6"), (123456.0, "1.23e5"), (math.inf, "∞")],
)
def test_numbers_as_shown(value, text):
    assert claims.number(value) == text


def test_verdicts():
    assert claims.near("T", "s", 1.0, 1.05, absolute=0.1).verdict == "holds"
    assert claims.near("T", "s", 1.0, 1.05, percent=1).verdict == "misses"
    assert claims.near("T", "s", 2, 2).verdict == "holds"
    assert claims.near("T", "s", 2, 1).verdict == "misses"
    assert claims.at_most("T", "s", 1, 1).verdict == "holds"
    assert claims.at_least("T", "s", 1, 0.9).verdict == "misses"
    assert claims.between("T", "s", 0, 1, math.nan).verdict == "misses"
    assert claims.differs("T", "s", 0.0, 0.3, known=0.3, absolute=0.1, note="why").verdict == "differs"
    assert claims.differs("T", "s", 0.0, 0.0, known=0.3, absolute=0.1, note="why").verdict == "misses"


def test_slopes():
    x = [1, 2, 4, 8]
    assert claims.slope(x, [3 * v**-0.5 for v in x]) == pytest.approx(-0.5)
    assert claims.rate(x, [math.exp(0.3 * v) for v in x]) == pytest.approx(0.3)
    assert claims.explained(x, [2 - v for v in x]) == pytest.approx(1)


def test_command_line(monkeypatch, capsys, tmp_path):
    def run(smoke):
        return claims.results([claims.near("T", "a | b", 1.0, 1.0, absolute=0.1)], x=[1, 2], y=[1.0, 1 / 3])

    def plot(found):
        made, (axes,) = claims.figure()
        axes.plot(found["x"], found["y"])
        return made

    files = tmp_path / "f.json", tmp_path / "f.svg"
    monkeypatch.setattr(sys, "argv", ["s.py", "--smoke", "--json", str(files[0]), "--plot", str(files[1])])
    claims.main("What it is.", run, plot)
    assert json.loads(files[0].read_text())["y"] == [1.0, 0.333333]
    first = files[1].read_bytes()
    claims.main("What it is.", run, plot)
    assert files[1].read_bytes() == first
    assert "| T | a \\| b | 1 | 1 | ±0.1 | holds |" in capsys.readouterr().out


def test_a_missed_claim_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["s.py"])
    with pytest.raises(SystemExit, match="expected 1, measured 2"):
        claims.main("What it is.", lambda smoke: claims.results([claims.near("T", "s", 1, 2)]), None)
