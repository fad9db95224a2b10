"""Which chunks a sample keeps: a hash of their identity, the same on every machine."""

import json
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

__all__ = ["identity_hash", "mix", "priorities"]

WordArray = NDArray[np.uint64]


def priorities(
    key: str,
    source: str,
    episode: NDArray[np.int64],
    start: NDArray[np.int64],
    seed: int,
    weight: float | None,
) -> NDArray[np.float64]:
    """Return `(n,)` priorities; a sample keeps the smallest.

    Without weights it is the hash as a fraction u of [0, 1). With a weight w it is -log(1 - u) / w: the
    arrival times of an exponential race, in which a chunk's chance to be among the first is proportional
    to w. Equal weights keep the very chunks that no weights keep.
    """
    fraction = (identity_hash(key, source, episode, start, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    if weight is None:
        return fraction
    return -np.log1p(-fraction) / weight


def identity_hash(key: str, source: str, episode: NDArray[np.int64], start: NDArray[np.int64], seed: int) -> WordArray:
    """Return `(n,)` 64-bit hashes of (key, source, episode, start, seed).

    Names go through blake2b because Python's own `hash` of a string differs from run to run.
    """
    name = blake2b(json.dumps([key, source, seed]).encode(), digest_size=8).digest()
    words = np.frombuffer(name, dtype="<u8").astype(np.uint64)
    return mix(mix(words + episode.astype(np.uint64)) + start.astype(np.uint64))


def mix(words: WordArray) -> WordArray:
    """Return the words after one step of the splitmix64 generator (Steele, Lea and Flood, 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
