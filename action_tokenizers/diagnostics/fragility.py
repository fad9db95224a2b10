"""How far a decoded chunk moves when one of its ids is wrong."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.domains import size
from action_tokenizers.diagnostics.error import episode_means, mean_over_episodes
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import ActionShapeError

__all__ = ["ESTIMATORS", "wrong_token"]

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

VALUES = 1 << 20  # numbers in one block of decoded chunks: bounds the memory
ALLOWED = 1 << 21  # chunks times ids in one block of what may stand somewhere
SUBSTITUTIONS = 8192  # chunks times positions to try, unless the chunks get fewer than 64

WRONG_TOKEN = Estimator(
    name="wrong_token",
    heading="damage of one wrong id",
    unit="half range",
    kinds=(Kind.CONSISTENT,),
    meaning="How far the decoded chunk moves, on average, when the policy says one other id that may stand there.",
    caution="Of ids drawn evenly; a trained policy errs towards likely ids. Chunks that no longer decode are left "
    "out (see `undecodable`). Only of bins does a neighbouring id mean a neighbouring action.",
    advice="If the damage is large, the policy must be sure of its ids: prefer ids that each say little.",
    source="Cao & Xie 2026, section 2",
    function="fragility.wrong_token",
    test="test_fragility.py::test_one_wrong_id_of_bins_moves_one_step_by_known_cells",
)
ESTIMATORS: tuple[Estimator, ...] = (WRONG_TOKEN,)


def wrong_token(subject: Subject, *, runner_up: Ints | None = None, seed: int = 0, most_positions: int = 64) -> Measure:
    """Return how far one wrong id moves a decoded chunk.

    Args:
        subject: what to look at.
        runner_up: like `subject.ids`: what a policy would say second at each place; -1 where unknown.
        seed: of the substitutions.
        most_positions: ids of a chunk to try, evenly spread.

    Returns:
        The mean damage of another id that may stand there. In parts, for `allowed` (such an id), `any` (another of
        the vocabulary), `neighbour` (id + 1 or id - 1, where allowed) and `runner_up`: `mean`, `q95` and `largest`
        damage of the decodable ones, the shares `undecodable` and `other_length` (the chunk would end elsewhere), and
        `mean_at`, `q95_at`, `largest_at` per position of `positions`. None where no id can be replaced or no chunk
        decodes.
    """
    if runner_up is not None and np.shape(runner_up) != subject.ids.shape:
        raise ActionShapeError(
            f"expected runner_up like the ids, {subject.ids.shape}, got {np.shape(runner_up)}; give -1 where unknown"
        )
    rng = np.random.default_rng(seed)
    longest = int(subject.lengths.max())
    positions = np.unique(np.linspace(0, longest - 1, min(longest, most_positions)).round().astype(np.int64))
    rows = subject.sample(max(64, SUBSTITUTIONS // len(positions)), rng)
    found = _substitutes(subject, rows, positions, rng)
    if runner_up is not None:
        said = positions < subject.lengths[rows][:, None]
        given = np.asarray(runner_up, np.int64)[rows][:, positions]
        found["runner_up"] = np.where(said & (given != subject.ids[rows][:, positions]), given, -1)
    damage = {law: _damage(subject, rows, positions, new) for law, new in found.items()}
    parts = {"positions": positions.tolist()} | {law: each.told() for law, each in damage.items()}
    allowed = damage["allowed"]
    moved = episode_means(allowed.jump, allowed.decodable, subject.episode[rows])
    n = {"episodes": len(moved), "chunks": len(rows)}
    if not len(moved):
        return WRONG_TOKEN.measure(None, n=n, note="No other id decodes anywhere.", parts=parts)
    return mean_over_episodes(WRONG_TOKEN, moved, n, parts=parts)


def _substitutes(subject: Subject, rows: Ints, positions: Ints, rng: np.random.Generator) -> dict[str, Ints]:
    """Return ids to put in place of those at `positions (k,)` of `rows (r,)`, by law, `(r, k)`; -1: none."""
    tokenizer, ids, lengths = subject.tokenizer, subject.ids[rows], subject.lengths[rows]
    last = tokenizer.vocab_size - (tokenizer.pad_id is not None)
    found = {law: np.full((len(rows), len(positions)), -1) for law in ("allowed", "any", "neighbour")}
    step = max(1, ALLOWED // tokenizer.vocab_size)
    for k, p in enumerate(positions.tolist()):
        live = np.flatnonzero(lengths > p)
        # drawn for all blocks at once, so that their size changes nothing
        luck = rng.random((2, len(live)))
        for start in range(0, len(live), step):
            block = live[start : start + step]
            one, other = luck[:, start : start + step]
            own = ids[block, p]
            allowed = np.asarray(tokenizer.allowed(ids[block, :p], **subject.coded.shape))[:, :last].copy()
            beside = np.stack([own - 1, own + 1], 1)
            may = (beside >= 0) & (beside < last) & np.take_along_axis(allowed, beside.clip(0, last - 1), 1)
            allowed[np.arange(len(block)), own] = False
            found["allowed"][block, k] = _draw(allowed, one)
            side = _draw(may, other)
            found["neighbour"][block, k] = np.where(side < 0, -1, own + 2 * side - 1)
        if last > 1:
            found["any"][live, k] = (ids[live, p] + rng.integers(1, last, len(live))) % last
    return found


def _draw(mask: Bools, luck: Doubles) -> Ints:
    """Return of each row of `mask (n, v)` the True column that `luck (n,)`, in 0..1, says; -1 where there is none."""
    counts = mask.sum(1)
    columns = np.append(np.nonzero(mask)[1], -1)
    drawn = np.minimum((luck * counts).astype(np.int64), np.maximum(counts - 1, 0))
    at = np.cumsum(counts) - counts + drawn
    return np.where(counts > 0, columns[np.minimum(at, len(columns) - 1)], -1)


@dataclass(frozen=True)
class _Damage:
    """What each substitution did, all `(r, k)`."""

    tried: Bools
    decodable: Bools
    other_length: Bools
    jump: Doubles  # 0 where it did not decode

    def told(self) -> dict[str, Any]:
        tried = int(self.tried.sum())
        columns = [self.jump[self.decodable[:, k], k] for k in range(self.jump.shape[1])]
        return {
            **_summary(self.jump[self.decodable]),
            "undecodable": float((self.tried & ~self.decodable).sum() / tried) if tried else None,
            "other_length": float(self.other_length.sum() / tried) if tried else None,
            **{f"{name}_at": [_summary(column)[name] for column in columns] for name in ("mean", "q95", "largest")},
        }


def _summary(jump: Doubles) -> dict[str, float | None]:
    if not len(jump):
        return {"mean": None, "q95": None, "largest": None}
    return {"mean": float(jump.mean()), "q95": float(np.quantile(jump, 0.95)), "largest": float(jump.max())}


def _damage(subject: Subject, rows: Ints, positions: Ints, new: Ints) -> _Damage:
    """Decode the ids of `rows (r,)` with `new (r, k)` in place of those at `positions (k,)`, one at a time."""
    tokenizer, shape = subject.tokenizer, subject.coded.shape
    tried = new >= 0
    decodable, other = np.zeros(new.shape, np.bool_), np.zeros(new.shape, np.bool_)
    jump = np.zeros(new.shape)
    where = np.stack(np.nonzero(tried), 1)
    block = max(1, VALUES // (subject.horizon * subject.unit.size))
    for start in range(0, len(where), block):
        r, k = where[start : start + block].T
        ids = subject.ids[rows[r]]
        ids[np.arange(len(r)), positions[k]] = new[r, k]
        decoded, valid = tokenizer.try_decode(ids, **shape, key=subject.key)
        length = np.asarray(tokenizer.length(ids, **shape))
        decodable[r, k] = valid
        other[r, k] = (length >= 0) & (length != subject.lengths[rows[r]])
        moved = (decoded.astype(np.float64) - subject.decoded[rows[r]]) / subject.unit
        jump[r, k] = np.where(valid, size(moved), 0.0)
    return _Damage(tried, decodable, other, jump)
