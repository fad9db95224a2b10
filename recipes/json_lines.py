"""Files of JSON lines that a run appends to and goes on with after a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of all `*.jsonl` files in a folder; one that a crash cut off is left out."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a line, on a line of its own also after one that a crash cut off."""
    is_cut = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * is_cut + json.dumps(row) + "\n")
