"""Which ids may stand where in a chunk, what each is about, and which other ids tell most of it.

A small probe that predicts ids one after another asks this of every tokenizer. Where position p always means the same
(slots), the answer is a table; where it depends on the ids before, as it does for FAST, only the tokenizer knows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.slots import SlotTokenizer

__all__ = ["LOOKS", "Grammar", "Held", "spread"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LOOKS = 5  # ids to look at: four earlier ones, and the one that would hold the last action
BLOCK = 4096  # ids judged at once


@dataclass(frozen=True)
class Held:
    """The ids of chunks that would hold the last action for good.

    Attributes:
        ids: `(n, h)`; -1: there is none.
        places: `(n, h)` where each of them stands, as one number.
    """

    ids: Ints
    places: Ints

    def __getitem__(self, which: Ints) -> "Held":
        """Return some of them."""
        return Held(self.ids[which], self.places[which])


class Grammar(ABC):
    """What a tokenizer says of the ids of a chunk. Positions are of one kind where the same ids may stand.

    Attributes:
        kinds: `(k, 2)` the first id of each kind, and the id after its last.
    """

    kinds: Ints

    @staticmethod
    def of(tokenizer: ActionTokenizer, shape: dict[str, Any], ids: Ints, lengths: Ints) -> "Grammar":
        """Return the grammar of a fitted tokenizer.

        Args:
            tokenizer: whose it is.
            shape: horizon and action_dim of the chunks.
            ids: `(n, m)` of some chunks.
            lengths: `(n,)` how many of them are no pads.
        """
        is_slots = isinstance(tokenizer, SlotTokenizer)
        return _Slots(tokenizer, shape, ids) if is_slots else _Free(tokenizer, shape, ids, lengths)

    @abstractmethod
    def kind(self, position: Ints) -> Ints:
        """Return the kind of each position."""

    @abstractmethod
    def groups(self, position: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield what can be judged at once: a kind, and rows of `position (b,)` that `allowed` takes together."""

    @abstractmethod
    def context(self, ids: Ints, chunk: Ints, position: Ints, held: Held) -> tuple[Ints, Ints]:
        """Return what tells of the ids at `position (b,)` of `ids[chunk]`, knowing only those before.

        Returns:
            the place `(b, 4)`, its step, dim, level and position, each + 1 (0: does not apply), and the ids to look at,
            `(b, LOOKS)`; -1: there is none.
        """

    @abstractmethod
    def held(self, ids: Ints) -> Held:
        """Say where the `ids (n, h)` of chunks that hold the last action stand; a row of -1 is of no chunk."""

    @abstractmethod
    def allowed(self, ids: Ints, chunk: Ints, position: int) -> Bools | None:
        """Return which ids may stand at `position` of `ids[chunk]`, `(b, v)`; None: all of its kind."""

    @abstractmethod
    def complete(self, ids: Ints) -> Bools:
        """Return which rows of `ids (b, m)`, each of them allowed, are whole chunks, `(b,)`."""


class _Slots(Grammar):
    """Position p always means the same, and the ids looked at are the latest about the same dim and level.

    Before the chunk's first step these are the ones that would hold the last action.
    """

    def __init__(self, tokenizer: ActionTokenizer, shape: dict[str, Any], ids: Ints) -> None:
        allowed = [np.asarray(tokenizer.allowed(ids[0, :p], **shape)) for p in range(ids.shape[1])]
        spans = np.array([[mask.argmax(), mask.argmax() + mask.sum()] for mask in allowed])
        self.kinds, kind = np.unique(spans, axis=0, return_inverse=True)
        self._kind = kind.reshape(-1)
        about = np.asarray(tokenizer.locate(ids[0], **shape))
        self._place = np.concatenate([about, np.full((len(about), 1), -1)], 1) + 1
        self._before = _recurrences(np.concatenate([about[:, 1:], self._kind[:, None]], 1))

    def kind(self, position: Ints) -> Ints:
        return self._kind[position]

    def groups(self, position: Ints) -> Iterator[tuple[int, Ints]]:
        for kind, rows in _grouped(self._kind[position]):
            for block in np.split(rows, range(BLOCK, len(rows), BLOCK)):
                yield kind, block

    def context(self, ids: Ints, chunk: Ints, position: Ints, held: Held) -> tuple[Ints, Ints]:
        instead = held.ids[chunk, position]
        near = [_back(ids, chunk, before) for before in self._before[position].T]
        if (self._before >= 0).any():
            near = [np.where(found < 0, instead, found) for found in near]
        else:
            near = [_back(ids, chunk, position - 3), _back(ids, chunk, position - 4)]
        looks = [_back(ids, chunk, position - 1), _back(ids, chunk, position - 2), *near, instead]
        return self._place[position], np.stack(looks, 1)

    def held(self, ids: Ints) -> Held:
        return Held(ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape))

    def allowed(self, ids: Ints, chunk: Ints, position: int) -> None:
        return None

    def complete(self, ids: Ints) -> Bools:
        return np.full(len(ids), ids.shape[1] == len(self._kind))


class _Free(Grammar):
    """What stands where depends on the ids before. The ids looked at are the last four."""

    def __init__(self, tokenizer: ActionTokenizer, shape: dict[str, Any], ids: Ints, lengths: Ints) -> None:
        self._tokenizer, self._shape = tokenizer, shape
        self.kinds = np.array([[0, tokenizer.vocab_size - (tokenizer.pad_id is not None)]])
        # a place is named by what one and the same id would be about there: the id itself would give itself away
        about = np.asarray(tokenizer.locate(ids, **shape))
        said = np.arange(ids.shape[1]) < lengths[:, None]
        single = said & (about[..., 1] >= 0)
        values, counts = np.unique(ids[single if single.any() else said], return_counts=True)
        self._marker = int(values[counts.argmax()])

    def kind(self, position: Ints) -> Ints:
        return np.zeros_like(position)

    def groups(self, position: Ints) -> Iterator[tuple[int, Ints]]:
        for _, rows in _grouped(position):
            yield 0, rows

    def context(self, ids: Ints, chunk: Ints, position: Ints, held: Held) -> tuple[Ints, Ints]:
        place = self._place(ids, chunk, position)
        match = held.places[chunk] == _code(place)[:, None]
        same = np.where(match.any(1), held.ids[chunk, match.argmax(1)], -1)
        return place, np.stack([*(_back(ids, chunk, position - i) for i in range(1, LOOKS)), same], 1)

    def held(self, ids: Ints) -> Held:
        lengths = np.where(ids[:, 0] < 0, 0, np.asarray(self._tokenizer.length(ids, **self._shape)))
        chunk, nth = spread(lengths)
        places = np.zeros(ids.shape, np.int64)  # of no id
        places[chunk, nth] = _code(self._place(ids, chunk, nth))
        return Held(ids, places)

    def allowed(self, ids: Ints, chunk: Ints, position: int) -> Bools:
        return np.asarray(self._tokenizer.allowed(ids[chunk, :position], **self._shape))

    def complete(self, ids: Ints) -> Bools:
        return np.asarray(self._tokenizer.length(ids, **self._shape)) >= 0

    def _place(self, ids: Ints, chunk: Ints, position: Ints) -> Ints:
        out = np.empty((len(position), 4), np.int64)
        out[:, 3] = position
        for p, rows in _grouped(position):
            marked = np.concatenate([ids[chunk[rows], :p], np.full((len(rows), 1), self._marker)], 1)
            out[rows, :3] = np.asarray(self._tokenizer.locate(marked, **self._shape))[:, p]
        return out + 1


def spread(counts: Ints) -> tuple[Ints, Ints]:
    """Return for `counts[i]` elements of every i: i, and the how manieth of i it is, both `(counts.sum(),)`.

    Example:
        >>> owner, nth = spread(np.array([2, 0, 3]))
        >>> owner.tolist(), nth.tolist()
        ([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _grouped(values: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each of the `values (b,)`, ascending, and where it stands."""
    order = np.argsort(values, kind="stable")
    unique, first = np.unique(values[order], return_index=True)
    yield from zip(unique.tolist(), np.split(order, first[1:]), strict=False)  # of no values one empty part


def _recurrences(about: Ints) -> Ints:
    """Return the two latest earlier positions of the same row of `about (m, k)`, `(m, 2)`; -1: none.

    Nothing recurs where each row equals the one before: those positions are looked at anyway.
    """
    found = np.full((len(about), 2), -1)
    seen: dict[tuple[int, ...], int] = {}
    for p, row in enumerate(map(tuple, about.tolist())):
        before = seen.get(row, -1)
        found[p] = before, found[before, 0] if before >= 0 else -1
        seen[row] = p
    return found if len(seen) > 1 else np.full_like(found, -1)


def _back(ids: Ints, chunk: Ints, position: Ints) -> Ints:
    """Return `ids[chunk, position]`, and -1 before the first."""
    return np.where(position >= 0, ids[chunk, np.maximum(position, 0)], -1)


def _code(place: Ints) -> Ints:
    """Return step, dim and level of `place (b, 4)` as one number, `(b,)`; a negative one for a mere position."""
    code = (place[:, 0] << 42) + (place[:, 1] << 21) + place[:, 2]
    return np.where(code > 0, code, -1 - place[:, 3])
