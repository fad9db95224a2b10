"""Recorded demonstrations: readers, chunks, mergeable samples, synthetic actions."""

from action_tokenizers.data.chunks import Chunks, chunks, windows
from action_tokenizers.data.episodes import Episodes, angle_jumps, default_horizon
from action_tokenizers.data.relative import Relative
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.data.synthetic import smooth_chunks, smooth_episodes

__all__ = [
    "ChunkSample",
    "Chunks",
    "Episodes",
    "Relative",
    "angle_jumps",
    "chunks",
    "default_horizon",
    "smooth_chunks",
    "smooth_episodes",
    "windows",
]
