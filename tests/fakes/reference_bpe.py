"""Byte-pair encoding over integers as a textbook writes it: slow, obvious, and the judge of the fast one."""

from collections import Counter
from itertools import pairwise

BARRIER = -1


def count_pairs(sequences: list[list[int]]) -> Counter[tuple[int, int]]:
    """Every adjacent pair, overlapping ones too; a barrier pairs with nothing."""
    counts: Counter[tuple[int, int]] = Counter()
    for sequence in sequences:
        counts.update(pair for pair in pairwise(sequence) if BARRIER not in pair)
    return counts


def merge(sequence: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace `pair` by `new`, the leftmost occurrence first."""
    out = []
    i = 0
    while i < len(sequence):
        if tuple(sequence[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(sequence[i])
            i += 1
    return out


def train(
    sequences: list[list[int]], first_id: int, merges: int, least_count: int = 2
) -> tuple[list[tuple[int, int]], list[int]]:
    """Merge the most frequent pair, ties to the smaller one, and count again."""
    pairs: list[tuple[int, int]] = []
    seen: list[int] = []
    while len(pairs) < merges:
        counts = count_pairs(sequences)
        if not counts:
            break
        pair, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        if count < least_count:
            break
        sequences = [merge(sequence, pair, first_id + len(pairs)) for sequence in sequences]
        pairs.append(pair)
        seen.append(count)
    return pairs, seen


def encode(sequence: list[int], base: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Apply every merge to the whole sequence, in the order they were learned."""
    for rank, pair in enumerate(pairs):
        sequence = merge(sequence, pair, base + rank)
    return sequence
