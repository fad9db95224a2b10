"""Put the table of estimators into action_tokenizers/diagnostics/README.md.

python recipes/audit/write_tables.py
"""

from __future__ import annotations

from pathlib import Path

from action_tokenizers.diagnostics.catalogue import table

PAGE = Path(__file__).resolve().parents[2] / "action_tokenizers" / "diagnostics" / "README.md"
BEGIN, END = "<!-- estimators -->", "<!-- /estimators -->"


def written(text: str) -> str:
    """Return the page with today's table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
