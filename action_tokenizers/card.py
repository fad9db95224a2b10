"""The model card that stands beside every saved tokenizer, written from its config."""

from collections.abc import Mapping
from typing import Any

__all__ = ["model_card"]


def model_card(config: Mapping[str, Any]) -> str:
    """Return README.md for a tokenizer folder: Hub front matter, the facts, and how to use it."""
    facts, provenance = config["fitted"], config["provenance"]
    kind = config["tokenizer_type"]
    sources = provenance.get("sources") or []
    horizon = facts["horizon"]
    rows = [
        ("tokenizer", kind),
        ("chunk", f"{'any' if horizon is None else horizon} steps x {facts['action_dim']} dims"),
        ("vocabulary", _vocabulary(facts)),
        (
            "ids per chunk",
            "set by the horizon" if facts["max_tokens"] is None else f"at most {facts['max_tokens']}",
        ),
        ("range keys", ", ".join(facts["range_keys"])),
        ("fitted on", ", ".join(sources) or "arrays"),
        ("chunks seen", ", ".join(f"{key}: {n}" for key, n in provenance.get("keys", {}).items())),
        ("parameters", ", ".join(f"{name}={value}" for name, value in config["params"].items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    ids = "horizon=...)" if horizon is None else ")"
    return f"""---
library_name: action-tokenizers
pipeline_tag: robotics
tags:
- action-tokenizer
- vla
- {kind}
---

# {kind} tokenizer of robot actions

| | |
|---|---|
{table}

```python
from action_tokenizers import ActionTokenizer

tokenizer = ActionTokenizer.from_pretrained("path/to/this/folder")
ids = tokenizer.encode(actions)     # (..., t, d) float32 -> (..., n) int64
actions = tokenizer.decode(ids{", " if horizon is None else ""}{ids}
```
"""


def _vocabulary(facts: Mapping[str, Any]) -> str:
    pad = facts["pad_id"]
    return f"{facts['vocab_size']} ids" + ("" if pad is None else f", of which {pad} is the pad and end mark")
