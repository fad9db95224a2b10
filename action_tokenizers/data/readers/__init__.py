"""Readers: one module per file layout, each returns the arrays of episodes."""

from action_tokenizers.data.readers.detect import read
from action_tokenizers.data.readers.recording import Recording

__all__ = ["Recording", "read"]
