"""The model card beside every saved tokenizer, written from the artifact and, where it has one, its audit."""

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from action_tokenizers.errors import ActionValueError

__all__ = ["check_audit", "model_card"]

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(config: Mapping[str, Any], decode_alone: str = "", audit: Mapping[str, Any] | None = None) -> str:
    """Return README.md for a tokenizer folder: Hub front matter, the facts, what was measured, how to use it.

    Args:
        config: as in config.json.
        decode_alone: Python lines of the family that set `actions (t, d)` from `ids`, `config` and `tensors` with
            numpy; empty where it has none.
        audit: as `check_audit` takes it.
    """
    facts, provenance = config["fitted"], config["provenance"]
    kind = config["tokenizer_type"]
    sources, seen = [str(source) for source in provenance.get("sources") or ()], provenance.get("keys") or {}
    rows = [
        ("tokenizer", kind),
        ("chunk", f"{_open(facts['horizon'])} steps x {_open(facts['action_dim'])} dims"),
        ("vocabulary", _vocabulary(facts)),
        ("ids per chunk", "set by the shape" if facts["max_tokens"] is None else f"at most {facts['max_tokens']}"),
        ("range", _range(config["params"].get("range"))),
        ("range keys", ", ".join(facts["range_keys"])),
        ("fitted on", ", ".join(sources) or ("arrays" if seen else "not told")),
        ("chunks seen", ", ".join(f"{key}: {n}" for key, n in seen.items())),
        ("parameters", ", ".join(f"{k}={_short(v)}" for k, v in config["params"].items() if k != "range")),
    ]
    parts = [
        _front_matter(kind, provenance.get("license"), [s for s in sources if HUB_ID.fullmatch(s)], audit),
        f"# {kind} tokenizer of robot actions\n",
        "Encodes chunks of continuous robot actions as ids for a transformer policy, and decodes them.\n",
        _table(rows),
        _measured(audit),
        _use(facts),
        _alone(facts, decode_alone),
    ]
    return "\n".join(part for part in parts if part)


def check_audit(audit: Any) -> None:
    """Refuse what the card cannot tell.

    Args:
        audit: None, or a mapping: `measures` is a list of mappings with the texts `name` and `meaning` and a number
            or None as `value`; `data`, a mapping, names its `source`; `caption` is a text. All may be missing, more
            is allowed; of an `AuditReport` the card tells verdict, conditions, intervals and kinds.

    Raises:
        ActionValueError: anything else; says where.
    """
    if audit is None:
        return
    kinds = {"data": dict, "measures": list, "caption": str, "conditions": list}
    if not isinstance(audit, Mapping) or not all(
        isinstance(audit.get(name, kind()), kind) for name, kind in kinds.items()
    ):
        raise ActionValueError(f"expected an audit as a mapping with data and measures, got {_short(audit)}")
    for i, measure in enumerate(audit.get("measures", [])):
        told = measure if isinstance(measure, Mapping) else {}
        value = told.get("value", "")
        if not all(isinstance(told.get(text), str) for text in ("name", "meaning")) or not (
            value is None or isinstance(value, int | float)
        ):
            raise ActionValueError(
                f"expected measure {i} of the audit with name and meaning as text and a number or None as value, "
                f"got {_short(measure)}"
            )
        interval = told.get("interval")
        if interval is not None and not (
            isinstance(interval, list | tuple)
            and len(interval) == 2
            and all(end is None or isinstance(end, int | float) for end in interval)
        ):
            raise ActionValueError(f"expected the interval of measure {i} as two numbers, got {_short(interval)}")
    for i, condition in enumerate(audit.get("conditions", [])):
        if not isinstance(condition, Mapping) or not {"name", "status", "evidence"} <= set(condition):
            raise ActionValueError(
                f"expected condition {i} of the audit with name, status and evidence, got {_short(condition)}"
            )


def _front_matter(kind: str, license_id: str | None, datasets: list[str], audit: Mapping[str, Any] | None) -> str:
    lines = ["---", "library_name: action-tokenizers", "pipeline_tag: robotics"]
    if license_id:
        lines.append(f"license: {_yaml(license_id)}")
    lines += ["tags:", "- action-tokenizer", "- vla", f"- {_yaml(kind)}"]
    if datasets:
        lines += ["datasets:", *(f"- {_yaml(name)}" for name in datasets)]
    measures = [m for m in (audit or {}).get("measures", []) if m["value"] is not None]
    if audit is not None and measures:
        source = _yaml(audit.get("data", {}).get("source", "held-out episodes"))
        lines += [
            "model-index:",
            f"- name: {_yaml(kind)}",
            "  results:",
            "  - task: {type: robotics, name: action tokenization}",
            f"    dataset: {{type: {source}, name: {source}}}",
            "    metrics:",
        ]
        for measure in measures:
            name, meaning = _yaml(measure["name"]), _yaml(_told(measure))
            lines.append(f"    - {{type: {name}, name: {meaning}, value: {_yaml_number(measure['value'])}}}")
    return "\n".join([*lines, "---", ""])


def _measured(audit: Mapping[str, Any] | None) -> str:
    if audit is None:
        return "## Measured\n\nNothing yet: this tokenizer was saved without an audit.\n"
    shown = [m for m in audit.get("measures", []) if m["value"] is not None or "heading" not in m]
    verdict = audit.get("verdict")
    parts = [
        "## Measured",
        f"**{_line(verdict)}**" if verdict else None,
        audit.get("caption"),
        "\n".join(f"Note: {_line(note)}\n" for note in audit.get("notes") or ()) or None,
        _conditions(audit.get("conditions") or []),
        _table([(_told(m), _number(m["value"]) + _beside(m)) for m in shown]),
    ]
    return "\n\n".join(part for part in parts if part)


def _conditions(conditions: list[Mapping[str, Any]]) -> str:
    """Return what the audit of this tokenizer says of each condition, as a table."""
    return _table([(str(c["name"]).replace("_", " "), f"{c['status']}: {c['evidence']}") for c in conditions])


def _told(measure: Mapping[str, Any]) -> str:
    """Return what stands before a number: an audit's own heading, or else what the number means."""
    return str(measure.get("heading") or measure["meaning"])


def _beside(measure: Mapping[str, Any]) -> str:
    """Return what an audit knows of a number beside it: interval, unit and kind."""
    interval = measure.get("interval")
    ends = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
    return ends + "".join(f", {measure[what]}" for what in ("unit", "kind") if measure.get(what))


def _use(facts: Mapping[str, Any]) -> str:
    keys = facts["range_keys"]
    key = f", key={keys[0]!r}" if len(keys) > 1 else ""
    axes = (("horizon", -2), ("action_dim", -1))
    given = "".join(f", {name}=actions.shape[{axis}]" for name, axis in axes if facts[name] is None)
    return f"""## Use

```python
from action_tokenizers import ActionTokenizer

tokenizer = ActionTokenizer.from_pretrained("path/to/this/folder")  # or the id of this repository
ids = tokenizer.encode(actions{key})  # (..., t, d) float32 -> (..., n) int64
actions = tokenizer.decode(ids{given}{key})
```

`AutoProcessor.from_pretrained(..., trust_remote_code=True)` of transformers returns the same object.
"""


def _alone(facts: Mapping[str, Any], lines: str) -> str:
    if not lines:
        return ""
    strip = "" if facts["pad_id"] is None else f"ids = ids[ids != {facts['pad_id']}]\n"
    keys = facts["range_keys"]
    several = (
        f" The rows of `range.low` and `range.high` belong to the keys {', '.join(keys)}." if len(keys) > 1 else ""
    )
    return f"""## Decode without this library

`ids` are those of one chunk, a numpy array; run it beside these files.{several}

```python
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

config, tensors = json.loads(Path("config.json").read_text()), load_file("model.safetensors")
{strip}{textwrap.dedent(lines).strip()}
```
"""


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [(name, " ".join(value.split()).replace("|", "\\|")) for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells), ""])


def _yaml(text: Any) -> str:
    """Quote for YAML: a JSON text is one, except for characters that YAML does not take at all."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return json.dumps(" ".join(plain.split()), ensure_ascii=False)


def _yaml_number(value: float) -> str:
    text = json.dumps(value)
    return text if "." in text else text.replace("e", ".0e")  # YAML reads 1e-05 as text


def _line(text: Any) -> str:
    return " ".join(str(text).split())


def _open(fact: int | None) -> str:
    return "any" if fact is None else str(fact)


def _range(value: Any) -> str:
    return "given" if isinstance(value, Mapping) else ", ".join(value) if isinstance(value, list) else str(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _vocabulary(facts: Mapping[str, Any]) -> str:
    pad = facts["pad_id"]
    return f"{facts['vocab_size']} ids" + ("" if pad is None else f", of which {pad} is the pad and end mark")
