"""Measure several tokenizers on the same held-out episodes, side by side."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data import Episodes
from action_tokenizers.data.fingerprint import recognised
from action_tokenizers.diagnostics.along import border_jump_of as border_jump
from action_tokenizers.diagnostics.along import drift_of as drift
from action_tokenizers.diagnostics.along import executed, two_valued
from action_tokenizers.diagnostics.along import gripper_flips_of as gripper_flips
from action_tokenizers.diagnostics.along import hold_bias_of as hold_bias
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.diagnostics.codebook import next_token_entropy, undecodable_rate
from action_tokenizers.diagnostics.codebook import shift_overlap_of as shift_overlap
from action_tokenizers.diagnostics.codebook import usage_of as usage
from action_tokenizers.diagnostics.error import error_split, half_range
from action_tokenizers.diagnostics.fitting import common_horizon, fit_all
from action_tokenizers.diagnostics.measure import plain
from action_tokenizers.diagnostics.report import AuditReport
from action_tokenizers.diagnostics.scene import Scene
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import ActionValueError

__all__ = ["COLUMNS", "SCHEMA_VERSION", "Column", "Comparison", "compare"]

SCHEMA_VERSION = 1  # of the JSON of a comparison
REPEATS = 3
NOT_HELD_OUT = "is NOT HELD OUT"


@dataclass(frozen=True)
class Column:
    """One number per tokenizer: its name in results, its heading, how to print it, and what it means."""

    name: str
    heading: str
    form: str
    meaning: str


COLUMNS = (
    Column("tokens", "tokens", ".1f", "ids per chunk, mean; the end mark does not count"),
    Column("tokens_p50", "tokens p50", ".0f", "median"),
    Column("tokens_p99", "tokens p99", ".0f", "99th percentile"),
    Column("vocab_size", "vocabulary", "d", "ids that exist, pad included"),
    Column("bits", "bits", ".0f", "bits per chunk: sum over its ids of log2(ids that could stand there)"),
    Column("mse", "error (MSE)", ".2e", "held-out squared error"),
    Column("clip_mse", "  of it clipping", ".2e", "error of clipping to the range alone"),
    Column("cell_mse", "  of it cells", ".2e", "error against the clipped actions"),
    Column(
        "fit_mse", "  on the fit", ".2e", "the same error on chunks it was fitted on; a learned code errs less there"
    ),
    Column("max", "error (max)", ".3f", "largest |error|"),
    Column("drift", "drift", ".4f", "largest mean error over 16 consecutive steps, mean over episodes"),
    Column("hold_bias", "hold bias", ".4f", "worst dim's mean error while it holds still for 8 steps or more"),
    Column("gripper_flips", "gripper flips", ".2%", "two-valued dims decoded to the other value"),
    Column("border_jump", "border jump", ".4f", "how much more the error changes across chunk borders than inside"),
    Column("overlap", "shift overlap", ".0%", "ids shared with the chunk one step later"),
    Column("usage", "vocabulary use", ".0%", "ids that occur on held-out chunks"),
    Column("entropy", "bits per id", ".2f", "next-id cross-entropy under a bigram model, two-fold"),
    Column("undecodable", "undecodable", ".1%", "chunks refused after one id was replaced at random"),
    Column("encode_per_s", "encode chunks/s", ",.0f", "on this machine, now"),
    Column("decode_per_s", "decode chunks/s", ",.0f", "on this machine, now"),
)
SPEEDS = ("encode_per_s", "decode_per_s")


@dataclass(frozen=True)
class Comparison:
    """Results per tokenizer, and what they were measured on.

    Attributes:
        rows: tokenizer name -> column name -> value; None or NaN where the data cannot show it. `mse_per_dim`,
            `drift_per_dim` and `hold_bias_per_dim` are lists.
        data: source, horizon, episodes, chunks, unit and split.
        notes: what a reader must know, such as skipped episodes.
        tokenizers: the fitted tokenizers that were measured.
        audits: their audits by name, where these were asked for.
    """

    rows: dict[str, dict[str, Any]]
    data: dict[str, Any]
    notes: tuple[str, ...] = ()
    tokenizers: Mapping[str, ActionTokenizer] = field(default_factory=dict, repr=False)
    audits: Mapping[str, AuditReport] = field(default_factory=dict, repr=False)

    def cells(self, column: Column) -> list[str]:
        """Return one printed value per tokenizer."""
        return [_printed(row.get(column.name), column.form) for row in self.rows.values()]

    def cells_of_dim(self, j: int) -> list[str]:
        """Return one printed mean squared error of dim `j` per tokenizer."""
        return [_printed(row["mse_per_dim"][j], ".2e") for row in self.rows.values()]

    def faults(self, name: str) -> list[str]:
        """Return why no good number speaks for this tokenizer, in words; nothing where none is known."""
        faults = []
        if any(note.startswith(f"{name} {NOT_HELD_OUT}") for note in self.notes):
            faults.append("was fitted on some of these episodes")
        report = self.audits.get(name)
        if report is not None and (report.silent_failure or report.failing):
            faults.append("has an audit that fails")
        return faults

    def to_markdown(self) -> str:
        """Return the table, what its rows mean, and the notes."""
        names = list(self.rows)
        lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
        lines += [f"| {c.heading.strip()} | {' | '.join(self.cells(c))} |" for c in COLUMNS]
        legend = [f"- **{c.heading.strip()}**: {c.meaning}" for c in COLUMNS]
        notes = [f"\nNote: {note}" for note in self.notes]
        return "\n".join([*lines, "", self.caption(), *notes, "", *self._verdicts(), *legend, "", *self._per_dim(), ""])

    def _verdicts(self) -> list[str]:
        return [f"- **{name}**: {report.verdict}" for name, report in self.audits.items()] + [""] * bool(self.audits)

    def _per_dim(self) -> list[str]:
        lines = [f"| error (MSE) of dim | {' | '.join(self.rows)} |", f"|---|{'---:|' * len(self.rows)}"]
        for j, name in enumerate(self.dims):
            lines.append(f"| {name} | {' | '.join(self.cells_of_dim(j))} |")
        return lines

    @property
    def dims(self) -> list[str]:
        """The names of the dims; their numbers where they have none."""
        return list(self.data["action_names"] or map(str, range(self.data["action_dim"])))

    def caption(self) -> str:
        """Return one line on the data and the unit."""
        d = self.data
        return (
            f"{d['source']}: {d['chunks']} chunks of {d['horizon']} steps x {d['action_dim']} dims from "
            f"{d['test_episodes']} held-out episodes; errors in units of half the range of each dim."
        )

    def audit(self, name: str) -> dict[str, Any]:
        """Return what `save_pretrained(audit=...)` keeps: its audit, or the numbers here but for the speeds."""
        if name in self.audits:
            return self.audits[name].to_json()
        row = self.rows[name]
        told = {
            "data": self.data,
            "caption": self.caption(),
            "measures": [
                {"name": c.name, "meaning": f"{c.heading.strip()}: {c.meaning}", "value": row.get(c.name)}
                for c in COLUMNS
                if c.name not in SPEEDS
            ],
        }
        plainly: dict[str, Any] = plain(told)
        return plainly

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types; `audits` is empty where none were asked for."""
        from action_tokenizers import __version__

        told = {
            "schema_version": SCHEMA_VERSION,
            "library": f"action-tokenizers {__version__}",
            "data": self.data,
            "tokenizers": self.rows,
            "notes": list(self.notes),
            "audits": {name: report.to_json() for name, report in self.audits.items()},
        }
        plainly: dict[str, Any] = plain(told)
        return plainly

    def to_json_text(self) -> str:
        """Return `to_json` as text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """Return one page that needs no network, with plots.

        Raises:
            MissingExtraError: matplotlib (the extra `plots`) is not installed.
        """
        from action_tokenizers.diagnostics.pages import comparison_html

        return comparison_html(self)


def _printed(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def compare(
    tokenizers: Mapping[str, ActionTokenizer],
    episodes: Episodes,
    *,
    test: float = 0.2,
    stride: int = 1,
    max_chunks: int = 4096,
    seed: int = 0,
    allow_single_episode: bool = False,
    audits: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Measure `tokenizers` on held-out episodes.

    Fitted tokenizers are measured on all `episodes`, which the caller held out. If any is not fitted, the episodes
    are split, copies of the unfitted ones are fitted on one part, and all are measured on the other. A tokenizer that
    was fitted elsewhere on some of these episodes is noted, by what its provenance tells of them.

    Args:
        tokenizers: name -> tokenizer; all of one horizon, or open. They stay as they are.
        episodes: demonstrations; padded steps (`action_is_pad`) count nowhere.
        test: share of the episodes to hold out where something must be fitted.
        stride: between the starts of chunks, in fit and in measurement.
        max_chunks: most held-out chunks to encode; more are sampled.
        seed: of the split and of all draws.
        allow_single_episode: a single episode is split in time; both halves are one recording, so say so.
        audits: audit each as well, on the same held-out episodes.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `Comparison`; all but the speeds depend on the arguments alone. Errors are of absolute actions, also for
        tokenizers of relative ones.

    Raises:
        ActionValueError: no tokenizer, or one single episode without `allow_single_episode`.
        ActionShapeError: tokenizers of different horizons, none that tells a horizon, or keys that do not match.
    """
    if not tokenizers:
        raise ActionValueError("expected at least one tokenizer to compare, got none")
    horizon = common_horizon(tokenizers, episodes)
    found = fit_all(
        tokenizers,
        episodes,
        horizon,
        test=test,
        stride=stride,
        seed=seed,
        allow_single_episode=allow_single_episode,
        progress=progress,
    )
    fitted, held_out = found.tokenizers, found.held_out
    scene = Scene.of(held_out, horizon, half_range(episodes), stride, max_chunks, seed)
    seen = None
    if found.train is not None:
        seen = Scene.of(found.train, horizon, scene.unit, stride, max_chunks, seed)
    notes = [*_overlaps(tokenizers, held_out, horizon), *found.notes]
    if scene.skipped:
        notes.append(f"{scene.skipped} held-out episodes are shorter than the horizon and were skipped")
    rows: dict[str, dict[str, Any]] = {}
    reports: dict[str, AuditReport] = {}
    for done, (name, tokenizer) in enumerate(fitted.items()):
        if progress is not None:
            progress("measure", done, len(fitted))
        rows[name] = {**_measure(tokenizer, scene, seed), "fit_mse": None}
        if seen is not None and name in found.fresh:
            rows[name]["fit_mse"] = _mse(tokenizer, seen)
        if audits:
            reports[name] = audit(tokenizer, held_out, seed=seed, horizon=horizon, unit=scene.unit)
    data = {
        "source": episodes.source,
        "key": episodes.key,
        "fps": episodes.fps,
        "horizon": horizon,
        "action_dim": episodes.action_dim,
        "action_names": list(episodes.action_names) if episodes.action_names else None,
        "test_episodes": len(held_out),
        "chunks": len(scene.chunks),
        "stride": stride,
        "seed": seed,
        "unit": scene.unit.tolist(),
    }
    return Comparison(rows, data, tuple(notes), fitted, reports)


def _overlaps(tokenizers: Mapping[str, ActionTokenizer], held_out: Episodes, horizon: int) -> list[str]:
    """Say which tokenizers were fitted before on some of the held-out episodes."""
    notes = []
    for name, tokenizer in tokenizers.items():
        told = tokenizer.provenance if tokenizer.is_fitted else {}
        known = told.get("fingerprints") or ()
        found = recognised(known, held_out, told.get("steps") or horizon, tokenizer.relative) if known else {}
        if found:
            notes.append(
                f"{name} {NOT_HELD_OUT}: it was fitted on some of these episodes, such as {min(found.values())}"
            )
        elif not known and held_out.source in told.get("sources", ()):
            notes.append(f"{name} was fitted before, on data of the same name; which episodes it does not tell")
    return notes


def _measure(tokenizer: ActionTokenizer, scene: Scene, seed: int) -> dict[str, Any]:
    key = scene.key_of(tokenizer)
    coded = scene.coded(tokenizer)
    ids, decoded = coded.quantize(tokenizer, key)
    lengths = tokenizer.length(ids, **coded.shape)
    real = ~coded.is_pad
    recorded = scene.chunks[real].astype(np.float64)
    total = (decoded[real] - recorded) / scene.unit
    clipping = (coded.clip(tokenizer, key)[real] - recorded) / scene.unit
    said = np.where(ids == tokenizer.pad_id, 0, ids) if tokenizer.pad_id is not None else ids
    has_later, later = scene.later(tokenizer)
    shifted = later.encode(tokenizer, key) if len(later.actions) else ids[:0]
    return {
        "type": tokenizer.tokenizer_type,
        "tokens": float(lengths.mean()),
        "tokens_p50": float(np.quantile(lengths, 0.5)),
        "tokens_p99": float(np.quantile(lengths, 0.99)),
        "vocab_size": tokenizer.vocab_size,
        "bits": float(tokenizer.bits(ids, **coded.shape).mean()),
        **error_split(total, clipping),
        **_along(tokenizer, scene),
        "overlap": shift_overlap(ids[has_later], shifted, tokenizer.pad_id),
        "usage": usage(tokenizer, ids, lengths),
        "entropy": next_token_entropy(said, lengths, scene.episode, tokenizer.vocab_size),
        "undecodable": undecodable_rate(tokenizer, ids, lengths, coded.shape, key, seed),
        "encode_per_s": _speed(lambda: tokenizer.encode(coded.actions, key=key), len(ids)),
        "decode_per_s": _speed(lambda: tokenizer.decode(ids, **coded.shape, key=key), len(ids)),
    }


def _mse(tokenizer: ActionTokenizer, scene: Scene) -> float:
    coded = scene.coded(tokenizer)
    _, decoded = coded.quantize(tokenizer, scene.key_of(tokenizer))
    real = ~coded.is_pad
    error = (decoded[real] - scene.chunks[real].astype(np.float64)) / scene.unit
    return float((error**2).mean())


def _along(tokenizer: ActionTokenizer, scene: Scene) -> dict[str, Any]:
    """Measure what adds up along an episode, chunk after chunk from its start."""
    subject = Subject.of(tokenizer, scene.episodes, scene.horizon, scene.unit)
    actions, errors = zip(*executed(subject), strict=True)
    bias = hold_bias(actions, errors)
    return {
        **drift(errors),
        "hold_bias": max((b for b in bias if b is not None), default=None),
        "hold_bias_per_dim": bias,
        "gripper_flips": gripper_flips(actions, errors, two_valued(actions)),
        "border_jump": border_jump(errors, scene.horizon),
    }


def _speed(call: Callable[[], Any], chunks: int) -> float:
    times: Sequence[float] = [_seconds(call) for _ in range(REPEATS)]
    return chunks / max(float(np.median(times)), 1e-9)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
