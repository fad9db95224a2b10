"""Recorded demonstrations: readers, chunks, mergeable samples, streams, synthetic actions."""

from typing import TYPE_CHECKING, Any

from action_tokenizers.data.chunks import Chunks, chunks, windows
from action_tokenizers.data.episodes import Episodes, angle_jumps, default_horizon
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.data.synthetic import smooth_chunks, smooth_episodes

if TYPE_CHECKING:
    from action_tokenizers.data.shards import Shards, open_shards
    from action_tokenizers.data.streaming import sample_shards, stream

__all__ = [
    "ChunkSample",
    "Chunks",
    "Episodes",
    "Relative",
    "Shards",
    "angle_jumps",
    "chunks",
    "default_horizon",
    "open_shards",
    "sample_shards",
    "smooth_chunks",
    "smooth_episodes",
    "stream",
    "windows",
]


def __getattr__(name: str) -> Any:
    """Import what reads files when it is first asked for: whoever loads a tokenizer on a robot needs no reader."""
    if name in ("Shards", "open_shards"):
        from action_tokenizers.data import shards

        return getattr(shards, name)
    if name in ("sample_shards", "stream"):
        from action_tokenizers.data import streaming

        return getattr(streaming, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
