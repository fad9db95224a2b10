"""One tokenizer of every kind on held-out waves, for tests that look at all of them; fitted once."""

from functools import cache

import numpy as np

from action_tokenizers import (
    ActionTokenizer,
    BinningTokenizer,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    ResidualVQTokenizer,
)
from action_tokenizers.data.synthetic import smooth_episodes
from action_tokenizers.diagnostics.error import unit_of
from action_tokenizers.diagnostics.subject import Subject

__all__ = ["FAMILY", "HORIZON", "all_subjects", "held_out_waves", "subject_of", "uniform"]

HORIZON = 12

FAMILY = {
    "bins": lambda: BinningTokenizer(horizon=HORIZON, bins=32),
    "quantile bins": lambda: BinningTokenizer(horizon=HORIZON, bins=32, strategy="quantile"),
    "k-means": lambda: KMeansTokenizer(horizon=HORIZON, codebook_size=32),
    "k-means chunk": lambda: KMeansTokenizer(horizon=HORIZON, codebook_size=32, scope="chunk"),
    "residual VQ": lambda: ResidualVQTokenizer(horizon=HORIZON, codebook_size=16, levels=3),
    "FAST": lambda: FASTTokenizer(horizon=HORIZON, vocab_size=256),
}


def subject_of(tokenizer: ActionTokenizer, episodes: Episodes, horizon: int = HORIZON, unit=None) -> Subject:
    return Subject.of(tokenizer, episodes, horizon, unit_of(episodes.actions) if unit is None else np.asarray(unit))


@cache
def held_out_waves() -> Episodes:
    """Two dims that move, and a gripper."""
    return smooth_episodes(12, (40, 70), action_dim=3, seed=1)


@cache
def all_subjects() -> dict[str, Subject]:
    train = smooth_episodes(30, (40, 70), action_dim=3, seed=2)
    return {name: subject_of(make().fit(train), held_out_waves()) for name, make in FAMILY.items()}


def uniform(n: int, length: int, dims: int, low: float = -1, high: float = 1) -> Episodes:
    rng = np.random.default_rng(5)
    return Episodes([rng.uniform(low, high, (length, dims)).astype(np.float32) for _ in range(n)])
