"""The chunks a sample holds: rows sorted by priority, without duplicates, at most k."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.door import FloatArray, IntArray
from action_tokenizers.errors import ActionValueError

__all__ = ["Fetch", "Group", "Reservoir", "Rows", "best"]

Group = tuple[str, str]  # (key, source)
Fetch = Callable[[IntArray], tuple[FloatArray, NDArray[np.bool_]]]  # row numbers -> chunks and pad masks


@dataclass(frozen=True, eq=False)
class Rows:
    """Chunks `(n, t, d)`, their pad masks `(n, t)` and identities; `group` numbers (key, source) pairs."""

    actions: FloatArray
    pad: NDArray[np.bool_]
    group: IntArray
    episode: IntArray
    start: IntArray
    priority: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.start)

    def take(self, which: NDArray[Any]) -> "Rows":
        """Return the rows at `which`."""
        return Rows(*(getattr(self, field.name)[which] for field in fields(self)))

    def regroup(self, table: Sequence[int]) -> "Rows":
        """Return the rows with group g renamed to `table[g]`."""
        return replace(self, group=np.asarray(table, np.int64)[self.group])

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """Return all rows of the parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in fields(Rows)]
        return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @staticmethod
    def none(horizon: int, dim: int) -> "Rows":
        """Return no rows of this shape."""
        ids = np.zeros(0, np.int64)
        pad = np.zeros((0, horizon), np.bool_)
        return Rows(np.zeros((0, horizon, dim), np.float32), pad, ids, ids, ids, np.zeros(0))


def best(rows: Rows, k: int, groups: Sequence[Group]) -> Rows:
    """Return the k rows of smallest priority, ties by identity, each identity once.

    `groups` must be sorted, so that their numbers order rows as their names do.

    Raises:
        ActionValueError: One identity came with two different contents.
    """
    order = np.lexsort((rows.start, rows.episode, rows.group, rows.priority))
    identity = [column[order] for column in (rows.start, rows.episode, rows.group)]
    repeated = np.ones(max(len(rows) - 1, 0), np.bool_)
    for column in identity:
        repeated &= column[1:] == column[:-1]
    again = np.flatnonzero(repeated) + 1
    first, second = order[again - 1], order[again]
    same = (rows.actions[first] == rows.actions[second]).all(axis=(1, 2))
    same &= (rows.pad[first] == rows.pad[second]).all(axis=1)
    if not same.all():
        at = second[np.argmin(same)]
        key, source = groups[rows.group[at]]
        raise ActionValueError(
            f"two different chunks are start {rows.start[at]} of episode {rows.episode[at]}, key {key!r}, "
            f"source {source!r}: give each data set its own key= or source="
        )
    return rows.take(np.delete(order, again)[:k])


class Reservoir:
    """The k rows of smallest priority of all that were offered, whatever the order of the offers."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._groups: dict[Group, int] = {}
        self._parts: list[Rows] = []
        self._settled: Rows | None = None  # what `rows` returned, until something is added
        self._threshold = math.inf  # no row above it can still be among the k

    @property
    def groups(self) -> tuple[Group, ...]:
        """The (key, source) pairs; `rows().group` counts into them once `rows` was called."""
        return tuple(self._groups)

    @property
    def threshold(self) -> float:
        """The priority above which no row can still be among the k."""
        return self._threshold

    def shut_out(self, threshold: float) -> None:
        """Hold no row of a priority above `threshold` from now on."""
        self._threshold = min(self._threshold, threshold)

    def offer(
        self, group: Group, episode: IntArray, start: IntArray, priority: NDArray[np.float64], fetch: Fetch
    ) -> None:
        """Fetch and hold those rows that may be among the k of smallest priority."""
        near = np.flatnonzero(priority <= self._threshold)
        ranked = np.unique(priority[near])
        if len(ranked) > self.k:
            near = near[priority[near] <= ranked[self.k - 1]]
        number = self._number(group)
        if len(near):
            same = np.full(len(near), number, np.int64)
            self._hold([Rows(*fetch(near), same, episode[near], start[near], priority[near])])

    def merge(self, other: "Reservoir") -> None:
        """Take in the rows of another reservoir."""
        table = [self._number(group) for group in other.groups]
        self._hold([part.regroup(table) for part in other._parts])

    def rows(self) -> Rows | None:
        """Return the k best in canonical order, None where nothing was offered."""
        if self._settled is not None or not self._parts:
            return self._settled
        names = sorted(self._groups)
        table = [names.index(group) for group in self._groups]
        rows = best(Rows.join(self._parts).regroup(table), self.k, names)
        self._groups = {group: i for i, group in enumerate(names)}
        self._parts, self._settled = [rows], rows
        if len(rows) == self.k:
            self.shut_out(float(rows.priority[-1]))
        return rows

    def _number(self, group: Group) -> int:
        if group not in self._groups:
            self._groups[group] = len(self._groups)
            self._settled = None  # its group numbers are of the sorted names
        return self._groups[group]

    def _hold(self, parts: Iterable[Rows]) -> None:
        self._parts += parts
        self._settled = None
        # reducing copies k chunks: once per k/2 newcomers keeps the cost linear in what is admitted
        if sum(map(len, self._parts)) > self.k + self.k // 2:
            self.rows()
