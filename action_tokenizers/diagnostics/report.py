"""`AuditReport`: what an audit found, in words and numbers, as Markdown, JSON and one HTML page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from action_tokenizers.diagnostics.catalogue import CATALOGUE
from action_tokenizers.diagnostics.measure import Measure, plain
from action_tokenizers.errors import ActionValueError

__all__ = ["FRONT_PAGE", "SCHEMA_VERSION", "AuditReport", "Condition", "Status"]

SCHEMA_VERSION = 1

# what a reader sees first, in this order: what predicts execution before what is a worst case
FRONT_PAGE = (
    ("Drift", "ranks tokenizers on the same data as execution does", ("drift", "drift_leaky", "border_jump")),
    ("Values held still", "a grip that is a little off all the time", ("hold_bias", "gripper_flips")),
    ("Learnability", "compare only at equal data and chunk length", ("tokens", "bits", "probe_nll", "probe_error")),
    (
        "Smoothness alarm",
        "a possible worst case, not a forecast",
        ("episode_jump", "episode_jump_fine", "excess_jump", "expert_spread"),
    ),
    (
        "Size of error",
        "misleads where errors cancel, or are rare and large",
        ("error_mean", "error_quantiles", "error_max", "error_sup", "clipping"),
    ),
)


# what a tokenizer and enough episodes decide
BY_EPISODES = ("mean_error", "rare_errors", "smooth_tokenizer")


class Status(StrEnum):
    """What the evidence says of a condition."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Condition:
    """A condition of the theory, or of a sound audit, and what the evidence says of it.

    Attributes:
        name: unique within an audit.
        statement: what it says.
        status: holds, fails, or not shown.
        evidence: the numbers behind the status, in words.
        source: the theorem or equation it comes from.
        measures: names of the measures it rests on.
        needs: which input would decide it, where it is not shown.
        advisory: whether its failing alone is no fault, so that neither the verdict nor `failing` counts it.
    """

    name: str
    statement: str
    status: Status
    evidence: str
    source: str
    measures: tuple[str, ...] = ()
    needs: str = ""
    advisory: bool = False


@dataclass(frozen=True, repr=False)
class AuditReport:
    """What an audit found.

    Attributes:
        tokenizer: type, parameters, horizon, action_dim, vocab_size and provenance of what was audited.
        data: source, key, episodes, chunks, steps, unit and seed.
        measures: every number.
        conditions: what holds, fails, or is not shown.
        silent_failure: whether the flag fires; None where the data cannot show it. It fires where, at two sizes of
            perturbation, more than 1 % of the episodes hold an action near which the decoded action jumps, and the
            expert is nearly deterministic at that scale: the situation in which Theorem 6 of Cao & Xie 2026 lets a
            tokenized policy fail whatever its error on the demonstrations.
        regime: in words, how the theory's bounds grow with the horizon.
        advice: what to do, most urgent first.
        notes: what a reader must know about this run.
        examples: of the episode of median drift, the dims that drift most, as `recorded` and `decoded`, to be drawn.

    Example:
        >>> from action_tokenizers import BinningTokenizer
        >>> from action_tokenizers.data import smooth_episodes
        >>> from action_tokenizers.diagnostics.audit import audit
        >>> train, test = smooth_episodes(24, seed=0).split(0.5)
        >>> report = audit(BinningTokenizer(horizon=16).fit(train), test)
        >>> report.silent_failure, str(report.condition("held_out").status)
        (False, 'holds')
    """

    tokenizer: dict[str, Any]
    data: dict[str, Any]
    measures: tuple[Measure, ...]
    conditions: tuple[Condition, ...]
    silent_failure: bool | None
    regime: str
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    examples: tuple[dict[str, Any], ...] = ()

    def __repr__(self) -> str:
        """Return the verdict, not the numbers."""
        return f"AuditReport({self.tokenizer['type']} on {self.data['source'] or 'arrays'}: {self.verdict})"

    @cached_property
    def _by_name(self) -> Mapping[str, Measure]:
        return {measure.name: measure for measure in self.measures}

    def measure(self, name: str) -> Measure | None:
        """Return the measure of this name; None where it was not taken."""
        return self._by_name.get(name)

    def condition(self, name: str) -> Condition:
        """Return the condition of this name.

        Raises:
            ActionValueError: there is none; lists the names.
        """
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise ActionValueError(f"expected a condition among {[c.name for c in self.conditions]}, got {name!r}")

    @property
    def failing(self) -> tuple[Condition, ...]:
        """The conditions that fail, but for those whose failing alone is no fault."""
        return tuple(c for c in self.conditions if c.status is Status.FAILS and not c.advisory)

    @property
    def verdict(self) -> str:
        """One or two sentences: the flag first, then what fails, then what is not shown."""
        fails = [c.name.replace("_", " ") for c in self.failing]
        hidden = [c.name.replace("_", " ") for c in self.conditions if c.status is Status.NOT_SHOWN]
        if self.silent_failure:
            said = (
                "Silent failure risk: a small change of the action can decode to a far one, and the expert is nearly "
            )
            said += "deterministic there. A possible worst case, not a forecast: confirm it by replay."
            others = [name for name in fails if name not in ("smooth tokenizer", "no silent failure")]
            said += f" Conditions that fail besides: {', '.join(others)}." if others else ""
        elif fails:
            said = f"Conditions that fail: {', '.join(fails)}."
        elif any(c.name in BY_EPISODES and c.status is Status.NOT_SHOWN for c in self.conditions):
            said = "Too little to judge."
        else:
            said = "Nothing measured here speaks against cloning with this tokenizer."
        return said + (f" Not shown: {', '.join(hidden)}." if hidden else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, as `audit.schema.json` beside this module describes them."""
        from action_tokenizers import __version__

        measures = [
            {**m.to_json(), "heading": CATALOGUE[m.name].heading, "meaning": CATALOGUE[m.name].meaning}
            for m in self.measures
        ]
        found = {
            "schema_version": SCHEMA_VERSION,
            "library": f"action-tokenizers {__version__}",
            "verdict": self.verdict,
            "silent_failure": self.silent_failure,
            "regime": self.regime,
            "caption": self.caption,
            "tokenizer": self.tokenizer,
            "data": self.data,
            "conditions": [asdict(c) for c in self.conditions],
            "measures": measures,
            "advice": list(self.advice),
            "notes": list(self.notes),
            "examples": list(self.examples),
        }
        plainly: dict[str, Any] = plain(found)
        return plainly

    def to_json_text(self) -> str:
        """Return `to_json` as text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"

    @property
    def caption(self) -> str:
        """One line on the data and the unit."""
        d = self.data
        return (
            f"{d['source'] or 'arrays'}: {d['episodes']} episodes, {d['chunks']} chunks of {d['horizon']} "
            f"steps x {d['action_dim']} dims; actions and errors in units of half the range of each dim."
        )

    def to_markdown(self) -> str:
        """Return verdict, conditions, the numbers of the first page, all numbers, and what they mean."""
        from action_tokenizers.diagnostics.tables import markdown

        return markdown(self)

    def to_html(self) -> str:
        """Return one page that needs no network, with plots.

        Raises:
            MissingExtraError: matplotlib (the extra `plots`) is not installed.
        """
        from action_tokenizers.diagnostics.pages import html

        return html(self)
