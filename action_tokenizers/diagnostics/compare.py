"""Measure several tokenizers on the same held-out episodes, side by side."""

import copy
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data import ChunkSample, Episodes, default_horizon
from action_tokenizers.diagnostics.codebook import next_token_entropy, shift_overlap, undecodable_rate, usage
from action_tokenizers.diagnostics.error import (
    border_jump,
    drift,
    error_split,
    gripper_flips,
    hold_bias,
    two_valued,
    unit_of,
)
from action_tokenizers.diagnostics.scene import Scene
from action_tokenizers.errors import ActionShapeError, ActionValueError
from action_tokenizers.ranges import OpenRange
from action_tokenizers.tokenizers.published_fast import PublishedFASTTokenizer

__all__ = ["COLUMNS", "Column", "Comparison", "compare"]

REPEATS = 3


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
        rows: tokenizer name -> column name -> value; None where the data cannot show it. `mse_per_dim`,
            `drift_per_dim` and `hold_bias_per_dim` are lists.
        data: source, horizon, episodes, chunks, unit and split.
        notes: what a reader must know, such as skipped episodes.
        tokenizers: the fitted tokenizers that were measured.
    """

    rows: dict[str, dict[str, Any]]
    data: dict[str, Any]
    notes: tuple[str, ...] = ()
    tokenizers: Mapping[str, ActionTokenizer] = field(default_factory=dict, repr=False)

    def cells(self, column: Column) -> list[str]:
        """Return one printed value per tokenizer."""
        values = (row.get(column.name) for row in self.rows.values())
        return ["-" if value is None else format(value, column.form) for value in values]

    def to_markdown(self) -> str:
        """Return the table, what its rows mean, and the notes."""
        names = list(self.rows)
        lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
        lines += [f"| {c.heading.strip()} | {' | '.join(self.cells(c))} |" for c in COLUMNS]
        legend = [f"- **{c.heading.strip()}**: {c.meaning}" for c in COLUMNS]
        notes = [f"\nNote: {note}" for note in self.notes]
        return "\n".join([*lines, "", self.caption(), *notes, "", *legend, "", *self._per_dim(), ""])

    def _per_dim(self) -> list[str]:
        names = self.data["action_names"] or [str(j) for j in range(self.data["action_dim"])]
        lines = [f"| error (MSE) of dim | {' | '.join(self.rows)} |", f"|---|{'---:|' * len(self.rows)}"]
        for j, name in enumerate(names):
            values = (format(row["mse_per_dim"][j], ".2e") for row in self.rows.values())
            lines.append(f"| {name} | {' | '.join(values)} |")
        return lines

    def caption(self) -> str:
        """Return one line on the data and the unit."""
        d = self.data
        return (
            f"{d['source']}: {d['chunks']} chunks of {d['horizon']} steps x {d['action_dim']} dims from "
            f"{d['test_episodes']} held-out episodes; errors in units of half the range of each dim."
        )

    def audit(self, name: str) -> dict[str, Any]:
        """Return what `save_pretrained(audit=...)` keeps of one tokenizer's numbers; speeds are no property of it."""
        row = self.rows[name]
        return {
            "data": self.data,
            "caption": self.caption(),
            "measures": [
                {"name": c.name, "meaning": f"{c.heading.strip()}: {c.meaning}", "value": row.get(c.name)}
                for c in COLUMNS
                if c.name not in SPEEDS
            ],
        }

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps({"data": self.data, "tokenizers": self.rows, "notes": list(self.notes)}, indent=2)


def compare(
    tokenizers: Mapping[str, ActionTokenizer],
    episodes: Episodes,
    *,
    test: float = 0.2,
    stride: int = 1,
    max_chunks: int = 4096,
    seed: int = 0,
    allow_single_episode: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Measure `tokenizers` on held-out episodes.

    Fitted tokenizers are measured on all `episodes`, which the caller held out. If any is not fitted, the episodes
    are split, copies of the unfitted ones are fitted on one part, and all are measured on the other. A tokenizer that
    was fitted elsewhere on data of the same name is noted: only the caller knows on which episodes.

    Args:
        tokenizers: name -> tokenizer; all of one horizon, or open. They stay as they are.
        episodes: demonstrations; padded steps (`action_is_pad`) count nowhere.
        test: share of the episodes to hold out where something must be fitted.
        stride: between the starts of chunks, in fit and in measurement.
        max_chunks: most held-out chunks to encode; more are sampled.
        seed: of the split and of all draws.
        allow_single_episode: a single episode is split in time; both halves are one recording, so say so.
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
    horizon = _common_horizon(tokenizers, episodes)
    notes = [
        f"{name} was fitted before, on data of the same name: it is held out only if these episodes were kept from it"
        for name, tokenizer in tokenizers.items()
        if tokenizer.is_fitted and episodes.source in tokenizer.provenance.get("sources", ())
    ]
    fitted, held_out, told = _fit_all(tokenizers, episodes, horizon, test, stride, seed, allow_single_episode, progress)
    scene = Scene.of(held_out, horizon, unit_of(_real_steps(episodes)), stride, max_chunks, seed)
    notes += told
    if scene.skipped:
        notes.append(f"{scene.skipped} held-out episodes are shorter than the horizon and were skipped")
    rows: dict[str, dict[str, Any]] = {}
    for done, (name, tokenizer) in enumerate(fitted.items()):
        if progress is not None:
            progress("measure", done, len(fitted))
        rows[name] = _measure(tokenizer, scene, seed)
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
    return Comparison(rows, data, tuple(notes), fitted)


def _common_horizon(tokenizers: Mapping[str, ActionTokenizer], episodes: Episodes) -> int:
    asked = {h for h in (t.horizon if t.is_fitted else t.asked_horizon for t in tokenizers.values()) if h is not None}
    if len(asked) > 1:
        raise ActionShapeError(f"expected tokenizers of one horizon to compare, got {sorted(asked)}")
    horizon = asked.pop() if asked else default_horizon(episodes)
    if horizon is None:
        raise ActionShapeError(
            f"expected a horizon, but {episodes.source} has no fps to take one second of; give horizon= (--horizon)"
        )
    return horizon


def _fit_all(
    tokenizers: Mapping[str, ActionTokenizer],
    episodes: Episodes,
    horizon: int,
    test: float,
    stride: int,
    seed: int,
    allow_single_episode: bool,
    progress: Progress | None,
) -> tuple[dict[str, ActionTokenizer], Episodes, list[str]]:
    notes: list[str] = []
    if all(t.is_fitted and not _takes_normalised(t) for t in tokenizers.values()):
        return dict(tokenizers), episodes, notes
    if len(episodes) == 1 and not allow_single_episode:
        raise ActionValueError(
            f"expected two or more episodes to hold some out, got the single one of {episodes.source}; to split it in "
            "time and call the halves held-out all the same, pass allow_single_episode (--allow-single-episode)"
        )
    train, held_out = episodes.split(test, seed=seed, horizon=horizon)
    if not held_out.independent:
        notes.append("both halves come from one recording: the numbers are not independent of the fit")
    sample = ChunkSample().add(train, horizon, stride)
    if sample.skipped:
        notes.append(f"{sample.skipped} training episodes are shorter than the horizon and were skipped")
    fitted: dict[str, ActionTokenizer] = {}
    for done, (name, tokenizer) in enumerate(tokenizers.items()):
        if progress is not None:
            progress("fit", done, len(tokenizers))
        if _takes_normalised(tokenizer):
            fitted[name] = tokenizer.with_range(sample)
            notes.append(f"{name} takes normalised actions: it was given the q01-q99 range of the training episodes")
            continue
        if tokenizer.is_fitted:
            fitted[name] = tokenizer
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*shorter than the horizon")  # the note says it
            fitted[name] = copy.deepcopy(tokenizer).fit(sample)
    return fitted, held_out, notes


def _takes_normalised(tokenizer: ActionTokenizer) -> TypeGuard[PublishedFASTTokenizer]:
    """Say whether it was imported without a normaliser, so that raw actions mean nothing to it."""
    return isinstance(tokenizer, PublishedFASTTokenizer) and isinstance(tokenizer.range, OpenRange)


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
        **_along(tokenizer, scene, key),
        "overlap": shift_overlap(ids[has_later], shifted, tokenizer.pad_id),
        "usage": usage(tokenizer, ids, lengths),
        "entropy": next_token_entropy(said, lengths, scene.episode, tokenizer.vocab_size),
        "undecodable": undecodable_rate(tokenizer, ids, lengths, coded.shape, key, seed),
        "encode_per_s": _speed(lambda: tokenizer.encode(coded.actions, key=key), len(ids)),
        "decode_per_s": _speed(lambda: tokenizer.decode(ids, **coded.shape, key=key), len(ids)),
    }


def _along(tokenizer: ActionTokenizer, scene: Scene, key: str) -> dict[str, Any]:
    """Measure what adds up along an episode, chunk after chunk from its start."""
    actions, errors = [], []
    for recorded, coded in scene.tiled(tokenizer):
        real = ~coded.is_pad
        _, decoded = coded.quantize(tokenizer, key)
        actions.append(recorded[real] / scene.unit)
        errors.append((decoded[real] - recorded[real].astype(np.float64)) / scene.unit)
    bias = hold_bias(actions, errors)
    return {
        **drift(errors),
        "hold_bias": max((b for b in bias if b is not None), default=None),
        "hold_bias_per_dim": bias,
        "gripper_flips": gripper_flips(actions, errors, two_valued(actions)),
        "border_jump": border_jump(errors, scene.horizon),
    }


def _real_steps(episodes: Episodes) -> list[npt.NDArray[np.float32]]:
    masks = episodes.action_is_pad or [np.zeros(len(a), np.bool_) for a in episodes.actions]
    return [a[~m] for a, m in zip(episodes.actions, masks, strict=True) if not m.all()]


def _speed(call: Callable[[], Any], chunks: int) -> float:
    times: Sequence[float] = [_seconds(call) for _ in range(REPEATS)]
    return chunks / max(float(np.median(times)), 1e-9)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
