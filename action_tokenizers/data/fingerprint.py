"""Which chunks a tokenizer has seen: a few hashes of what they held, to recognise them in other people's hands.

Names cannot tell: a folder is renamed, a data set is loaded under another key, arrays have no name at all. The contents
can. A fit keeps the `KEPT` smallest hashes of its chunks, which are a uniform draw from them.
"""

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.chunks import gather, plan_chunks
from action_tokenizers.data.door import FloatArray
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.data.priority import WordArray, mix
from action_tokenizers.data.relative import Relative

__all__ = ["KEPT", "fingerprints", "recognised"]

KEPT = 64
FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def fingerprints(chunks: FloatArray) -> list[str]:
    """Return the smallest hashes of moving chunks `(n, t, d)`, at most `KEPT`, ascending, as hexadecimal text.

    A robot that stands still looks the same everywhere, and so does a single step: neither has a fingerprint.
    """
    return [f"{word:016x}" for word in np.unique(_hashes(chunks))[:KEPT].tolist()]


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
            seen = _hashes(gather(episodes[[i]], plan, relative).actions)
            for word in words[np.isin(words, seen)].tolist():
                found.setdefault(f"{word:016x}", name)
    return found


def _hashes(chunks: FloatArray) -> WordArray:
    """Return 64-bit hashes of the moving ones of `chunks (n, t, d)`."""
    moving: NDArray[np.bool_] = (chunks != chunks[:, :1]).any(axis=(1, 2))
    bits = np.ascontiguousarray(chunks[moving], np.float32).view(np.uint32)
    # a sum of hashes of (place, value): the places make it depend on the order
    places = mix(np.arange(bits.shape[1] * bits.shape[2], dtype=np.uint64)).reshape(bits.shape[1:])
    out = np.empty(len(bits), np.uint64)
    size = max(1, (1 << 21) // max(1, places.size))
    for start in range(0, len(bits), size):
        out[start : start + size] = mix(places ^ bits[start : start + size]).sum(axis=(1, 2), dtype=np.uint64)
    return out
