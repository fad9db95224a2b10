"""Which chunks a tokenizer has seen: a few hashes of what they held, to recognise them in other people's hands.

Names cannot tell: a folder is renamed, a data set is loaded under another key, arrays have no name at all. The contents
can. A fit keeps the smallest hash of every episode it saw, so that a single one that leaks into an audit is noticed.
"""

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.chunks import gather, plan_chunks
from action_tokenizers.data.door import FloatArray, IntArray
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.priority import WordArray, mix
from action_tokenizers.data.relative import Relative

__all__ = ["KEPT", "fingerprints", "recognised"]

KEPT = 256  # of more episodes, those of smallest hash
LOOK = 1024  # chunks looked at together
WORDS = 1 << 15  # hashed together: as many as stay in cache
VALUES = 8  # that a chunk must hold to be told from others: keys pressed or a robot at rest look the same everywhere
FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def fingerprints(chunks: FloatArray, episode: IntArray) -> list[str]:
    """Return the smallest hash of every episode's chunks, at most `KEPT` of them, ascending, as hexadecimal text.

    Args:
        chunks: `(n, t, d)`.
        episode: `(n,)` which chunks belong together. Only those of several steps and `VALUES` different values have a
            fingerprint.
    """
    words = _hashes(chunks)
    order = np.argsort(words, kind="stable")
    kept: set[int] = set()
    done: set[int] = set()  # episodes: those whose smallest hash is kept
    episodes = len(np.unique(episode))
    # in ascending order and no further than needed: to look whether a chunk tells costs more than its hash
    for begin in range(0, len(order), LOOK):
        rows = order[begin : begin + LOOK]
        rows = rows[_telling(chunks[rows])]
        for word, owner in zip(words[rows].tolist(), episode[rows].tolist(), strict=True):
            if owner not in done:
                done.add(owner)
                kept.add(word)
                if len(kept) == KEPT or len(done) == episodes:
                    return [f"{word:016x}" for word in sorted(kept)]
    return [f"{word:016x}" for word in sorted(kept)]


def recognised(known: Iterable[str], episodes: Episodes, horizon: int, relative: Relative | None) -> dict[str, int]:
    """Return which of the `known` fingerprints occur in `episodes`: fingerprint -> name of the first such episode.

    Every window is looked at, so it does not matter how the chunks of the fit were placed. What is no fingerprint, in
    a file that somebody else wrote, is passed over.
    """
    words = np.array([int(word, 16) for word in known if FINGERPRINT.fullmatch(str(word))], np.uint64)
    found: dict[str, int] = {}
    for i, name in enumerate(episodes.names):
        plan = plan_chunks(episodes[[i]], horizon)
        if len(plan):
            windows = gather(episodes[[i]], plan, relative).actions
            seen = _hashes(windows[_telling(windows)])
            for word in words[np.isin(words, seen)].tolist():
                found.setdefault(f"{word:016x}", name)
    return found


def _telling(chunks: FloatArray) -> NDArray[np.bool_]:
    """Say which of `chunks (n, t, d)` move and hold enough different values to be told from others, `(n,)`."""
    values = np.sort(chunks.reshape(len(chunks), chunks.shape[1] * chunks.shape[2]), axis=1)
    different = 1 + (np.diff(values, axis=1) != 0).sum(axis=1)
    moving: NDArray[np.bool_] = (chunks != chunks[:, :1]).any(axis=(1, 2)) & (different >= VALUES)
    return moving


def _hashes(chunks: FloatArray) -> WordArray:
    """Return 64-bit hashes `(n,)` of `chunks (n, t, d)`."""
    bits = np.ascontiguousarray(chunks, np.float32).view(np.uint32)
    # a sum of hashes of (place, value): the places make it depend on the order
    places = mix(np.arange(bits.shape[1] * bits.shape[2], dtype=np.uint64)).reshape(bits.shape[1:])
    out = np.empty(len(bits), np.uint64)
    size = max(1, WORDS // max(1, places.size))
    for start in range(0, len(bits), size):
        out[start : start + size] = mix(places ^ bits[start : start + size]).sum(axis=(1, 2), dtype=np.uint64)
    return out
