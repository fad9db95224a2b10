"""One tokenizer of every kind on a few recorded episodes, and what a probe is taught of them; made once."""

from functools import cache
from pathlib import Path

import numpy as np

import action_tokenizers
from action_tokenizers import (
    ActionTokenizer,
    BinningTokenizer,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    ResidualVQTokenizer,
)
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.lesson import Lesson
from action_tokenizers.diagnostics.subject import Subject

__all__ = ["FAMILIES", "HORIZON", "demo", "eight_bins", "fitted", "lesson_of", "levels", "subject_of"]

DEMO = Path(action_tokenizers.__file__).parent / "data" / "demo"
HORIZON = 20
LEVELS = np.linspace(-1, 1, 8)

MADE = {
    "binning": BinningTokenizer(horizon=HORIZON, bins=32),
    "own ids": BinningTokenizer(horizon=HORIZON, bins=16, shared_ids=False),
    "open binning": BinningTokenizer(bins=32),
    "kmeans": KMeansTokenizer(horizon=HORIZON, codebook_size=32, groups=[[0, 1], [2, 3]]),
    "chunk kmeans": KMeansTokenizer(horizon=HORIZON, codebook_size=32, scope="chunk"),
    "residual_vq": ResidualVQTokenizer(horizon=HORIZON, levels=3, codebook_size=16),
    "fast": FASTTokenizer(horizon=HORIZON, vocab_size=256),
}
FAMILIES = tuple(MADE)


@cache
def demo() -> Episodes:
    """Ten episodes of four dims."""
    return Episodes.load(DEMO)[np.arange(10)]


@cache
def fitted(name: str) -> ActionTokenizer:
    return MADE[name].fit(demo().actions if name == "open binning" else demo())


def subject_of(tokenizer: ActionTokenizer, episodes: Episodes, horizon: int = HORIZON) -> Subject:
    return Subject.of(tokenizer, episodes, horizon, unit_of(episodes.actions))


@cache
def lesson_of(name: str) -> Lesson:
    """Without states."""
    subject = subject_of(fitted(name), demo())
    return Lesson.of(subject, None, np.flatnonzero(subject.real.all(1)), 0)


def levels(drawn: bool, count: int = 20, length: int = 36) -> Episodes:
    """Episodes of two dims that go through eight levels in turn, or draw one at each step; states name the level."""
    rng = np.random.default_rng(0)
    actions, states = [], []
    for _ in range(count):
        phase = rng.integers(0, 8, length) if drawn else (rng.integers(8) + np.arange(length)) % 8
        actions.append(LEVELS[np.stack([phase, 3 * phase % 8], 1)])
        states.append(np.eye(8)[phase])
    return Episodes.from_arrays(actions, states=states, fps=10)


def eight_bins(episodes: Episodes) -> BinningTokenizer:
    """Edges halfway between the levels, so that every level decodes to itself."""
    return BinningTokenizer(horizon=6, bins=8, strategy="quantile").fit(episodes)
