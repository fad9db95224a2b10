"""Made-up smooth actions with a known recipe, for examples, tests and benchmarks."""

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.door import FloatArray
from action_tokenizers.data.episodes import Episodes

__all__ = ["smooth_chunks", "smooth_episodes"]

WAVES = 4


def smooth_chunks(n: int, horizon: int, action_dim: int, seed: int = 0, gripper: bool = True) -> FloatArray:
    """Return `(n, horizon, action_dim)` float32 in [-1, 1]: smooth arms and, in the last dim, a gripper.

    Every dim of every chunk is the sum of four sinusoids a_j sin(2 pi (f_j i / horizon + p_j)), step i:
    f_j uniform in [0, 2) periods per chunk, phase p_j uniform in [0, 1), amplitudes a_j = s e_j / sum e,
    with e_j standard exponential and s uniform in [0.2, 1]. With `gripper` the last dim is +-1 and changes
    sign once, at a step uniform in 0..horizon (at either end: not at all), the first sign being fair.

    Example:
        >>> smooth_chunks(8, 16, 7).shape
        (8, 16, 7)
    """
    rng = np.random.default_rng(seed)
    return _smooth(rng, n, np.arange(horizon) / horizon, action_dim, 2.0, gripper)


def smooth_episodes(
    n: int,
    length: tuple[int, int] = (80, 160),
    action_dim: int = 7,
    fps: float = 20.0,
    seed: int = 0,
    gripper: bool = True,
    key: str = "default",
) -> Episodes:
    """Return n Episodes of the same waves as `smooth_chunks`, with f_j uniform in [0, 1) Hz.

    Lengths are uniform in `length` (both ends included). The state is the action one frame ago plus
    normal noise of 0.01, as a robot that follows its commands would report.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length[0], length[1] + 1, size=n)
    actions = _smooth(rng, n, np.arange(length[1]) / fps, action_dim, 1.0, gripper)
    states = np.concatenate([actions[:, :1], actions[:, :-1]], axis=1)
    states = (states + rng.normal(0, 0.01, states.shape)).astype(np.float32)
    return Episodes(
        [actions[i, :stop] for i, stop in enumerate(lengths)],
        states=[states[i, :stop] for i, stop in enumerate(lengths)],
        fps=fps,
        key=key,
        source="smooth_episodes",
    )


def _smooth(
    rng: np.random.Generator, n: int, time: NDArray[np.float64], dim: int, fastest: float, gripper: bool
) -> FloatArray:
    """Return `(n, t, dim)`, t = len(time), frequencies uniform in [0, fastest)."""
    share = rng.standard_exponential((WAVES, n, 1, dim))
    share *= rng.uniform(0.2, 1.0, (n, 1, dim)) / share.sum(axis=0)
    frequency = rng.uniform(0, fastest, (WAVES, n, 1, dim))
    phase = rng.uniform(0, 1, (WAVES, n, 1, dim))
    total = np.zeros((n, len(time), dim))
    for j in range(WAVES):  # one wave at a time keeps the temporaries at the size of the result
        total += share[j] * np.sin(2 * np.pi * (frequency[j] * time[:, None] + phase[j]))
    if gripper and dim > 0:
        sign = rng.choice((-1.0, 1.0), (n, 1))
        change = rng.integers(0, len(time) + 1, (n, 1))
        total[:, :, -1] = np.where(np.arange(len(time)) < change, sign, -sign)
    return np.clip(total, -1, 1).astype(np.float32)
