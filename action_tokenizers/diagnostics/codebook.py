"""What the ids of held-out chunks look like to a policy: how many are used, how predictable, how fragile."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import ActionTokenizer

__all__ = ["next_token_entropy", "shift_overlap", "undecodable_rate", "usage"]

_Ids = npt.NDArray[np.int64]


def usage(tokenizer: ActionTokenizer, ids: _Ids, lengths: _Ids) -> float:
    """Return the share of the vocabulary, pad apart, that occurs in `ids (n, m)`."""
    used = np.unique(ids[_said(ids, lengths)])
    return len(used) / (tokenizer.vocab_size - (tokenizer.pad_id is not None))


def next_token_entropy(ids: _Ids, lengths: _Ids, group: _Ids, vocab_size: int) -> float | None:
    """Return the cross-entropy of the next id given the one before it, in bits per id.

    Bigram, unigram and uniform frequencies of one half of the episodes score the other half, and the reverse, mixed
    by the three weights that suit the scored half best (Jelinek and Mercer), so never more than log2(v). A first look
    at how learnable the ids are; a policy sees more than one id back.

    Args:
        ids: `(n, m)`, rows padded.
        lengths: `(n,)` ids before the pads.
        group: `(n,)` the episode of each row.
        vocab_size: number of ids.

    Returns:
        None where there is only one episode.
    """
    episodes = np.unique(group)
    if len(episodes) < 2:
        return None
    half = np.isin(group, episodes[::2])
    start = vocab_size  # stands before the first id
    before = np.concatenate([np.full((len(ids), 1), start), ids[:, :-1]], axis=1)
    said = _said(ids, lengths)
    keys = before * (vocab_size + 1) + ids
    bits, count = 0.0, 0
    for known in (half, ~half):
        train, test = keys[known][said[known]], keys[~known][said[~known]]
        bits += _mixed_bits(_bigram(train, test, vocab_size))
        count += len(test)
    return bits / max(count, 1)


def _bigram(train: _Ids, test: _Ids, vocab_size: int) -> npt.NDArray[np.float64]:
    """Return the frequencies of each key `before * (v + 1) + id` of `test` as bigram, unigram, uniform, `(3, n)`."""
    width = vocab_size + 1
    pairs, counts = np.unique(train, return_counts=True)
    at = np.minimum(np.searchsorted(pairs, test), len(pairs) - 1)
    seen = np.where(pairs[at] == test, counts[at], 0)
    context = np.bincount(train // width, minlength=width)[test // width]
    unigram = np.bincount(train % width, minlength=width)[test % width] / len(train)
    return np.stack([seen / np.maximum(context, 1), unigram, np.full(len(test), 1 / vocab_size)])


def _mixed_bits(frequencies: npt.NDArray[np.float64], rounds: int = 30) -> float:
    """Return the bits of all ids under the best mixture of the rows of `frequencies (3, n)`, by EM."""
    weights = np.full(len(frequencies), 1 / len(frequencies))
    for _ in range(rounds):
        parts = weights[:, None] * frequencies
        weights = (parts / parts.sum(0)).mean(1)
    uniform = -np.log2(frequencies[-1]).sum()  # EM comes near its weight of 1, not onto it
    return float(min(-np.log2(weights @ frequencies).sum(), uniform))


def shift_overlap(ids: _Ids, shifted: _Ids, pad_id: int | None) -> float | None:
    """Return how much of a chunk's ids the chunk that starts one step later has too, as multisets, 0 to 1.

    Args:
        ids: `(n, m)`, rows padded with `pad_id`.
        shifted: `(n, k)`, the encodings one step later.

    Returns:
        Shared ids over the mean number of ids, averaged; None where there is no pair.
    """
    shares = []
    for row, later in zip(ids.tolist(), shifted.tolist(), strict=True):
        first, second = ([i for i in r if i != pad_id] for r in (row, later))
        a, b = (np.unique(r, return_counts=True) for r in (first, second))
        _, at, bt = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
        shares.append(2 * np.minimum(a[1][at], b[1][bt]).sum() / (len(first) + len(second)))
    return float(np.mean(shares)) if shares else None


def undecodable_rate(
    tokenizer: ActionTokenizer, ids: _Ids, lengths: _Ids, shape: Mapping[str, int], key: str, seed: int
) -> float:
    """Return the share of chunks that `decode` refuses after one id was replaced by a uniformly drawn other one.

    `shape` tells `horizon` and `action_dim`, for tokenizers that leave them open.
    """
    rng = np.random.default_rng(seed)
    last = tokenizer.vocab_size - (tokenizer.pad_id is not None)
    damaged = ids.copy()
    place = rng.integers(0, lengths)
    old = damaged[np.arange(len(ids)), place]
    damaged[np.arange(len(ids)), place] = (old + rng.integers(1, max(last, 2), len(ids))) % last
    _, valid = tokenizer.try_decode(damaged, **shape, key=key)
    return float(1 - np.asarray(valid).mean())


def _said(ids: _Ids, lengths: _Ids) -> npt.NDArray[Any]:
    return np.arange(ids.shape[1]) < lengths[:, None]
