# ruff: noqa: RUF001  (the Greek letters of the theory are meant)
"""E2: whether errors of actions add up is decided by the system, not by the tokenizer (Definition 3).

    python recipes/theory/e2_stability.py [--smoke] [--json FILE] [--plot FILE]

x' = α x + u, executed open loop with actions that are always half a cell off. With α = 1/2 the state stays within the
gain of 2; with α = 2 the deviation doubles every step, however fine the cells.
"""

from __future__ import annotations

import math

import claims
import numpy as np

from action_tokenizers.diagnostics.dynamics import impulse_gain, scalar_gain
from action_tokenizers.diagnostics.known import binning_control
from action_tokenizers.diagnostics.stability import growth_rate, largest_gain

WIDTH = 1 / 512  # ε_q: cells this wide err by at most half of it
HORIZONS = [2**k for k in range(2, 8)]
WIDTHS = [2.0**-k for k in range(4, 13)]
STABLE, UNSTABLE = 0.5, 2.0


def deviations(alpha: float, width: float, steps: int) -> np.ndarray:
    """Return how far the state is off before and after every step, `(steps + 1,)`, by execution of decoded actions.

    The expert's action lies on the lower border of a cell, so that the decoded one, its middle, is half a cell off.
    """
    wanted = 0.0
    decoded = float(binning_control(width).quantize(np.full((1, 1), wanted))[0, 0])
    off = np.zeros(steps + 1)
    for h in range(steps):
        off[h + 1] = alpha * off[h] + decoded - wanted
    return off


def run(smoke: bool = False) -> claims.Found:
    horizons = np.array(HORIZONS)
    off = {alpha: deviations(alpha, WIDTH, horizons[-1]) for alpha in (STABLE, UNSTABLE)}
    total = {alpha: off[alpha].cumsum()[horizons] for alpha in off}
    by_width = [deviations(STABLE, width, 32).sum() for width in WIDTHS]
    half = np.full(horizons[-1], WIDTH / 2)
    calculated = [WIDTH / 2 * impulse_gain(UNSTABLE, 1, int(h)) for h in range(1, 33)]
    rows = [
        claims.near(
            "Def 3",
            "α = 1/2: exponent of Σ deviations in H",
            1.069,
            claims.slope(horizons, total[STABLE]),
            absolute=0.002,
        ),
        claims.near(
            "Def 3",
            "α = 2: growth rate of Σ deviations in H",
            0.6939,
            claims.rate(horizons, total[UNSTABLE]),
            absolute=0.001,
        ),
        claims.near(
            "Def 3",
            "α = 2: growth rate of the deviation (log 2)",
            math.log(2),
            growth_rate(off[UNSTABLE][16:33]) or math.inf,
            absolute=1e-3,
        ),
        claims.at_most(
            "Def 3",
            "α = 1/2: largest deviation over error",
            scalar_gain(STABLE, 1),
            largest_gain(off[STABLE], half) or math.inf,
            limit_is="the gain C / (1 - η)",
        ),
        claims.near(
            "Def 3",
            "α = 2: deviation after 20 steps over error (2²⁰ - 1)",
            2**20 - 1,
            off[UNSTABLE][20] * 2 / WIDTH,
            percent=0.001,
        ),
        claims.near(
            "Def 3",
            "α = 2: largest ratio of executed and calculated deviation, 32 steps",
            1,
            float(np.max(off[UNSTABLE][1:33] / calculated)),
            absolute=1e-6,
        ),
        claims.near(
            "Def 3", "exponent of Σ deviations in ε_q, H = 32", 1.0, claims.slope(WIDTHS, by_width), absolute=0.001
        ),
    ]
    return claims.results(rows, horizons=HORIZONS, stable=total[STABLE], unstable=total[UNSTABLE])


def plot(found: claims.Found) -> object:
    made, (axes,) = claims.figure()
    for name, alpha, colour in (("stable", "1/2", claims.COLOURS[2]), ("unstable", "2", claims.COLOURS[0])):
        axes.loglog(found["horizons"], found[name], "o-", color=colour)
        claims.label_at_end(axes, found["horizons"], found[name], f"α = {alpha}", colour)
    axes.set(xlabel="horizon H", ylabel="sum of state deviations", xlim=(3, 260))
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
