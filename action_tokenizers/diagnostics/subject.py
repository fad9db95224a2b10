"""`Subject`: a tokenizer on held-out episodes, coded once, for every estimator of the audit to look at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.data import Episodes
from action_tokenizers.data.chunks import gather, plan_chunks
from action_tokenizers.diagnostics.scene import Coded, key_of
from action_tokenizers.errors import ActionShapeError

__all__ = ["Subject"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BLOCK = 1 << 21  # values quantized at once: bounds the memory of perturbed copies


@dataclass(frozen=True)
class Subject:
    """The chunks of held-out episodes, one after another from each episode's start, as one tokenizer codes them.

    The last chunk of an episode is padded by repetition, and so are steps that were not recorded: whatever the data
    hold at padded steps (`real` False), here they hold the last real one, and they count nowhere. Lengths and errors
    are in `unit`s: half the span of each dim in the data, so that the range of an action is 2.

    Attributes:
        tokenizer: fitted.
        episodes: held-out; those shorter than the horizon have no chunk.
        key: the range key of the episodes.
        horizon: t.
        unit: `(d,)` raw actions per unit.
        coded: the chunks `(n, t, d)` in raw actions, relative where the tokenizer is.
        episode: `(n,)` position in `episodes` of each chunk.
        first: `(n,)` the step of its episode at which each chunk begins.
        ids: `(n, m)`.
        lengths: `(n,)` ids before the pads.
        decoded: `(n, t, d)` in raw actions, relative like `coded`.
    """

    tokenizer: ActionTokenizer
    episodes: Episodes
    key: str
    horizon: int
    unit: Floats
    coded: Coded
    episode: Ints
    first: Ints
    ids: Ints
    lengths: Ints
    decoded: npt.NDArray[np.float32]

    @classmethod
    def of(cls, tokenizer: ActionTokenizer, episodes: Episodes, horizon: int, unit: Floats) -> "Subject":
        """Encode and decode `episodes` with `tokenizer`.

        Raises:
            ActionShapeError: every episode is shorter than the horizon or nothing but padding, or the data are of none
                of its keys.
        """
        long = np.flatnonzero(np.asarray(episodes.lengths) >= horizon)
        if not len(long):
            raise ActionShapeError(
                f"expected a held-out episode of at least the horizon, {horizon} steps, got {len(episodes)} of at most "
                f"{max(episodes.lengths)}; give a smaller horizon"
            )
        plan = plan_chunks(episodes, horizon, horizon, pad_tail=True)
        plan = plan[np.isin(plan.position, long)]
        if not len(plan):
            raise ActionShapeError("expected held-out steps that were recorded, got nothing but padding")
        key = key_of(tokenizer, episodes)
        coded = Coded.of(gather(episodes, plan, tokenizer.relative), tokenizer.relative).held()
        ids = coded.encode(tokenizer, key)
        lengths = np.asarray(tokenizer.length(ids, **coded.shape))
        decoded = np.asarray(tokenizer.decode(ids, **coded.shape, key=key))
        return cls(tokenizer, episodes, key, horizon, unit, coded, plan.position, plan.first, ids, lengths, decoded)

    @cached_property
    def moving(self) -> Bools:
        """`(d,)` which dims move at all in what was recorded: a constant one is perturbed by nobody."""
        moving: Bools = np.ptp(self.coded.actions[self.real], axis=0) > 0
        return moving

    def in_own_units(self) -> "Subject":
        """Return the same in half spans of what the tokenizer codes: of the relative actions, where it codes such.

        A chunk relative to where it begins may span a small part of what absolute actions do. Next to the range of
        those no relative action is far from any other, though it may lead the opposite way: what asks whether a small
        change decodes to a far one must ask in the units of what is coded.

        Of chunks of one step relative to the state these are the units of episodes recorded as differences. Of longer
        ones they are half the span over all steps of a chunk, which late steps set, so that early ones look small; of
        actions relative to the one before they are those of single steps, though executed errors add up over a chunk.
        """
        if not self.is_relative:
            return self
        half = np.ptp(self.coded.actions[self.real], axis=0).astype(np.float64) / 2
        return replace(self, unit=np.where(self.relative_dims, half, self.unit))

    @cached_property
    def relative_dims(self) -> Bools:
        """`(d,)` which dims are coded relative to something and move: those that have units of their own."""
        relative = self.tokenizer.relative
        if relative is None:
            return np.zeros_like(self.moving)
        return np.array([mode is not None for mode in relative.modes(len(self.moving))]) & self.moving

    @property
    def is_relative(self) -> bool:
        """Whether the tokenizer codes relative actions, so that units of their own may differ."""
        return self.tokenizer.relative is not None

    def told_in_own_units(self, **more: Any) -> dict[str, Any]:
        """Return the part `of_relative` of a measure: own units, the mean error in them, and what `more` it counts so.

        Of a subject that `in_own_units` returned; nothing where the tokenizer codes absolute actions.
        """
        if not self.is_relative:
            return {}
        return {"of_relative": {"unit": self.unit.tolist(), "mean_error": self.mean_error, **more}}

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.episode)

    @property
    def steps_alone(self) -> bool:
        """Whether every step is coded alone, so that a chunk is no more than its steps."""
        return self.tokenizer.codes_steps_alone

    @cached_property
    def real(self) -> Bools:
        """`(n, t)` which steps were recorded."""
        return ~self.coded.is_pad

    @cached_property
    def actions(self) -> Floats:
        """`(n, t, d)` the recorded actions in units, relative where the tokenizer is."""
        return self.coded.actions.astype(np.float64) / self.unit

    @cached_property
    def error(self) -> Floats:
        """`(n, t, d)` decoded minus recorded, in units; 0 at padded steps."""
        error: Floats = (self.decoded.astype(np.float64) - self.coded.actions) / self.unit
        return error * self.real[..., None]

    @cached_property
    def mean_error(self) -> float:
        """The mean length of the error of a step, the mean over episodes (Eq 4)."""
        return float(self.average(np.linalg.norm(self.error, axis=-1)).mean())

    @cached_property
    def present(self) -> Ints:
        """The positions of the episodes that have chunks, `(e,)` ascending: `e` is every sample size."""
        return np.unique(self.episode)

    def each(self, values: npt.NDArray[np.float64]) -> Iterator[Floats]:
        """Yield per episode the real steps of `values (n, t, ...)`, in order, as `(t_i, ...)`."""
        for rows in self._rows:
            yield values[rows][self.real[rows]]

    def largest(self, values: npt.NDArray[np.float64]) -> Floats:
        """Return per episode the largest of `values`, `(n,)` per chunk or `(n, t)` per step (real ones), `(e,)`."""
        per_chunk = values if values.ndim == 1 else np.where(self.real, values, -np.inf).max(1)
        return np.maximum.reduceat(per_chunk, self._starts)

    def average(self, values: npt.NDArray[np.float64]) -> Floats:
        """Return per episode the mean over the real steps of `values (n, t, ...)`, `(e, ...)`."""
        mask = self.real.reshape(*self.real.shape, *[1] * (values.ndim - 2))
        total = np.add.reduceat(np.where(mask, values, 0.0).sum(1), self._starts)
        count = np.add.reduceat(self.real.sum(1), self._starts)
        averages: Floats = total / count.reshape(-1, *[1] * (values.ndim - 2))
        return averages

    def at_starts(self, arrays: Sequence[npt.NDArray[np.floating]]) -> Floats:
        """Return the rows of per-episode `arrays`, each `(t_i, k)`, at which the chunks begin, `(n, k)`."""
        rows = zip(self.episode.tolist(), self.first.tolist(), strict=True)
        return np.stack([arrays[episode][first] for episode, first in rows]).astype(np.float64)

    def moved(self, shift: Floats, rows: Ints | slice = slice(None)) -> Floats:
        """Return how the decoded chunks move when the recorded ones are moved by `shift (n, t, d)`, all in units.

        Args:
            shift: for the chunks `rows`; padded steps follow the last real one, whatever it says there.
            rows: which chunks; all by default.

        Returns:
            quantize(u + shift) - quantize(u), `(n, t, d)`.
        """
        chunks, is_pad = self.coded.actions[rows] + shift * self.unit, ~self.real[rows]
        return self.quantize(chunks, is_pad if is_pad.any() else None) - self.decoded[rows] / self.unit

    def sample(self, most: int, rng: np.random.Generator) -> Ints:
        """Return at most `most` chunks without padding, ascending; of all chunks where there is none without."""
        full = np.flatnonzero(self.real.all(1))
        rows = full if len(full) else np.arange(len(self))
        return np.sort(rng.choice(rows, min(len(rows), most), replace=False))

    def quantize(self, chunks: npt.NDArray[np.floating], is_pad: Bools | None = None) -> Floats:
        """Return decode(encode(.)) of `chunks (m, t, d)` in raw actions, relative where the tokenizer is, in units.

        Args:
            chunks: in raw actions.
            is_pad: `(m, t)` steps to replace by the last real one before them.
        """
        out = np.empty(chunks.shape, np.float64)
        size = max(1, BLOCK // max(1, chunks.shape[1] * chunks.shape[2]))
        for start in range(0, len(chunks), size):
            block = slice(start, start + size)
            padded = None if is_pad is None else is_pad[block]
            out[block] = self.tokenizer.quantize(chunks[block].astype(np.float32), key=self.key, action_is_pad=padded)
        out /= self.unit
        return out

    @cached_property
    def _rows(self) -> list[slice]:
        ends = [*self._starts[1:].tolist(), len(self)]
        return [slice(start, end) for start, end in zip(self._starts.tolist(), ends, strict=True)]

    @cached_property
    def _starts(self) -> Ints:
        return np.concatenate([[0], np.flatnonzero(np.diff(self.episode)) + 1]).astype(np.int64)
