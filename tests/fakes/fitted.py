"""Small fitted tokenizers of every family and shape, for tests that save and load them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from action_tokenizers import (
    ActionTokenizer,
    BinningTokenizer,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    Range,
    ResidualVQTokenizer,
)

MADE: dict[str, Callable[[], ActionTokenizer]] = {
    "binning": lambda: BinningTokenizer(horizon=6, bins=[16, 8, 2], strategy="quantile"),
    "open binning": lambda: BinningTokenizer(bins=9, shared_ids=False, range=["minmax", "quantile", "unit"]),
    "kmeans": lambda: KMeansTokenizer(horizon=6, codebook_size=8, groups=[[0, 2], [1]]),
    "chunk kmeans": lambda: KMeansTokenizer(horizon=6, codebook_size=8, scope="chunk"),
    "residual_vq": lambda: ResidualVQTokenizer(horizon=6, levels=2, codebook_size=6),
    "pca residual_vq": lambda: ResidualVQTokenizer(horizon=6, levels=2, codebook_size=6, latent="pca", latent_dim=4),
    "fast": lambda: FASTTokenizer(horizon=6, vocab_size=160),
    "plain fast": lambda: FASTTokenizer(horizon=6, vocab_size=64, scale=2),
    "given range": lambda: FASTTokenizer(horizon=6, range=Range([-1.0, -2.0, 0.0], [1.0, 2.0, 1.0]), vocab_size=128),
}
FAMILIES = ("binning", "kmeans", "residual_vq", "fast")


def episodes(key: str = "default", source: str = "some/data") -> Episodes:
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.1, (n, 3)), axis=0).astype(np.float32) for n in (30, 41, 55)]
    for walk in walks:
        walk[:, 2] = walk[:, 2] > 0  # a gripper
    return Episodes.from_arrays(walks, fps=10.0, key=key, source=source)


def chunks() -> np.ndarray:
    return np.stack([walk[s : s + 6] for walk in episodes().actions for s in range(0, 24, 5)])


def fitted_on(name: str) -> Any:
    """What it is fitted on; bare arrays know no fps, so that the horizon may stay open."""
    return episodes().actions if name == "open binning" else episodes()


@cache
def fit(name: str) -> ActionTokenizer:
    """One fit for all tests, which leave it as it is."""
    return MADE[name]().fit(fitted_on(name))
