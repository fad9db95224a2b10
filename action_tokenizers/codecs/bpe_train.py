"""Learn byte-pair merges over integer symbols; pair counts are updated at each merge, never recounted.

Sennrich et al. 2016, on integers: the most frequent adjacent pair becomes a new symbol, leftmost occurrences
first; ties go to the smaller pair.

A long sequence is cut at barriers into as many parts as there are threads. A merge changes all parts at once, and what
changed in them is summed up afterwards. Sums do not depend on the cut, so neither do the merges. As long as pairs are
frequent, a merge writes the parts anew from end to end (`bpe_runs`); later it visits only those places where its pair
was seen (`bpe_lists`).
"""

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.codecs.bpe_lists import ListedRuns
from action_tokenizers.codecs.bpe_pairs import Pairs, Tally
from action_tokenizers.codecs.bpe_runs import BARRIER, Runs
from action_tokenizers.codecs.threads import at_once

__all__ = ["BARRIER", "MergeTrainer", "train_merges"]

# symbols that are worth a part, and occurrences that are worth waking threads
PART, MANY = 1 << 20, 1 << 10
# to visit one place waits for memory, and takes as long as writing about so many runs anew, which does not
RUNS_PER_VISIT = 128


def train_merges(
    symbols: npt.NDArray[np.int32], first_id: int, merges: int, *, least_count: int = 2
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Learn up to `merges` merges.

    Args:
        symbols: `(length,)` int32, the sequences joined, each followed by `BARRIER`; a barrier is never merged.
        first_id: id of the first merged symbol; larger than every symbol.
        merges: most merges to learn.
        least_count: a pair seen less often is not merged.

    Returns:
        pairs `(m, 2)` int32, the ids that merge `i` joins into `first_id + i`, and their counts `(m,)` int64.

    Example:
        >>> train_merges(np.array([0, 0, 1, 0, 0, 1, -1], np.int32), 2, 2)[0].tolist()
        [[0, 0], [2, 1]]
    """
    return MergeTrainer(symbols, first_id, merges).learn(merges, least_count=least_count)


class MergeTrainer:
    """Sequences from which merges are learned, and what has become of them so far.

    Args:
        symbols: see `train_merges`.
        first_id: likewise.
        most: merges that will ever be asked for.
    """

    def __init__(self, symbols: npt.NDArray[np.int32], first_id: int, most: int) -> None:
        self._new, self._width = first_id, first_id + most
        borders = _cut(symbols, max(1, min(torch.get_num_threads(), len(symbols) // PART)))
        self._pairs = Pairs(self._width, len(borders) - 1)
        # a part is in one of the two
        self._runs = at_once(lambda i: Runs(symbols[borders[i] : borders[i + 1]], self._width), len(borders) - 1)
        self._listed: list[ListedRuns] = []
        for keys, times in at_once(lambda i: self._runs[i].count(first_id), len(self._runs)):
            self._pairs.add(keys, times)

    def learn(self, merges: int, *, least_count: int = 2) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Learn up to `merges` further merges and return them and their counts, see `train_merges`."""
        pairs, counts = np.empty((merges, 2), np.int32), np.empty(merges, np.int64)
        for done in range(merges):
            row, left, right, count = self._pairs.best()
            if count < max(1, least_count):
                return pairs[:done], counts[:done]
            pairs[done], counts[done] = (left, right), count
            self._merge(row, left, right, count)
        return pairs, counts

    def retire(self, symbols: npt.NDArray[np.integer]) -> None:
        """Turn base symbols that no merge holds into barriers."""
        self._list()
        is_retired = np.zeros(self._width, np.bool_)
        is_retired[symbols] = True
        for part in self._listed:
            part.retire(is_retired)

    def _merge(self, row: int, left: int, right: int, count: int) -> None:
        new = self._new
        self._new += 1
        if self._runs and self._are_few(left, right, count):
            self._list()
        self._pairs.merge(row)

        def merge(part: int) -> Tally:
            if self._runs:
                return self._runs[part].merge(left, right, new, count)
            return self._listed[part].merge(row, left, right, new)

        parts = len(self._runs or self._listed)
        tallies = at_once(merge, parts) if count > MANY else [merge(part) for part in range(parts)]
        for part, tally in enumerate(tallies):
            self._pairs.sum_up(tally, part, left, right, new)

    def _are_few(self, left: int, right: int, count: int) -> bool:
        """Say whether there are too few places of a pair that occurs so often for writing all runs anew."""
        runs = sum(map(len, self._runs))
        if left == right and count * RUNS_PER_VISIT >= runs:  # many of them may be in one run
            count = sum(at_once(lambda part: self._runs[part].places(left), len(self._runs)))
        return count * RUNS_PER_VISIT < runs

    def _list(self) -> None:
        """From now on visit only the runs where a pair was seen."""
        if self._runs:
            self._listed = at_once(lambda i: ListedRuns(self._runs[i], self._pairs, i), len(self._runs))
            self._runs = []


def _cut(symbols: npt.NDArray[np.int32], parts: int) -> list[int]:
    """Return where to cut `symbols` into at most so many parts of about equal length, each time behind a barrier."""
    wanted = [len(symbols) * i // parts for i in range(1, parts)]
    behind = np.flatnonzero(symbols == BARRIER) + 1 if wanted else np.empty(0, np.int64)
    found = [int(behind[np.searchsorted(behind, place)]) for place in wanted if len(behind) and place <= behind[-1]]
    return [0, *sorted({place for place in found if 0 < place < len(symbols)}), len(symbols)]
