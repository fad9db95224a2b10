"""What a crash cut off is left out, and what comes after it is not lost with it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

import json_lines


def test_rows_survive_a_crash(tmp_path):
    file = tmp_path / "task.jsonl"
    json_lines.append(file, {"a": 1})
    file.write_text(file.read_text() + '{"a": 2, "cut')
    json_lines.append(file, {"a": 3})
    json_lines.append(tmp_path / "other.jsonl", {"a": 0})
    assert json_lines.read_rows(tmp_path) == [{"a": 0}, {"a": 1}, {"a": 3}]
    assert json_lines.read_rows(tmp_path / "nothing") == []
