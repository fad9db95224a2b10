"""E3: how far a quantized expert drifts under feedback, and why a Lipschitz expert is not enough (Prop 5 and after).

    python recipes/theory/e3_small_gain.py [--smoke] [--json FILE] [--plot FILE]

x' = a x + b u + noise under u = K x, beside the same with the decoded action: uniform bins of half width ε. Where slope
times gain, L g, is below 1 the deviation is at most g ε / (1 - L g). Where the closed loop is stable it is at most
g_cl ε, also at L g >= 1: the open-loop argument is then inconclusive, not violated. Where the closed loop is unstable,
a learner that is wrong by δ ends exponentially far off, however smooth it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import claims
import numpy as np
from numpy.typing import NDArray

from action_tokenizers import BinningTokenizer, Range
from action_tokenizers.diagnostics.dynamics import impulse_gain, scalar_gain
from action_tokenizers.diagnostics.stability import growth_rate
from action_tokenizers.diagnostics.theorems import small_gain

HALF = 1 / 256  # ε
NOISE = 0.3
REACH = 16.0  # of the bins
CHAINS, STEPS = 4000, 200
WIDTHS = [2.0**-k for k in range(5, 11)]
HORIZONS = [25, 50, 100, 200]
HIGHEST = 300  # of the plot
BIAS, GAP_HORIZONS = 1e-3, [10, 20, 40, 80]

Floats = NDArray[np.float64]


class System(NamedTuple):
    """x' = a x + b u, u = K x, and a reference for the largest deviation, in half cells, with the slack in percent."""

    a: float
    b: float
    slope: float
    reference: float
    percent: float


SYSTEMS = (
    System(0.5, 1, -0.3, 1.24, 5),
    System(0.5, 1, 0.3, 3.79, 5),
    System(0.5, 1, 0.45, 8.61, 12),  # a maximum over chains that forget slowly
    System(0.5, 1, 0.55, 1.1e5, 12),
    System(0.9, 1, 0.2, 9.4e8, 12),
    System(0.9, 1, -0.5, 1.60, 5),
    System(0.2, 0.3, 1, 0.56, 5),
)


def bins(half: float) -> Callable[[Floats], Floats]:
    """Return the library's bins as a function of scalar actions; they end where a stable system never goes."""
    tokenizer = BinningTokenizer(range=Range([-REACH], [REACH]), bins=round(REACH / half), horizon=1)
    tokenizer.fit(np.linspace(-REACH, REACH, 64)[:, None, None])
    return lambda u: tokenizer.quantize(u[:, None, None])[:, 0, 0].astype(np.float64)


def endless(half: float) -> Callable[[Floats], Floats]:
    """Return the same bins without an end: no codebook covers a state that grows for ever."""
    return lambda u: (np.floor(u / (2 * half)) + 0.5) * 2 * half


def drift(system: System, quantize: Callable[[Floats], Floats], chains: int, steps: int = STEPS) -> Floats:
    """Return the deviations `(steps, chains)` of the quantized from the exact feedback, under the same noise."""
    random = np.random.default_rng(0)
    x = random.standard_normal(chains)
    y, apart = x, np.empty((steps, chains))
    for h in range(steps):
        noise = NOISE * random.standard_normal(chains)
        u = quantize(system.slope * y)
        x, y = (system.a + system.b * system.slope) * x + noise, system.a * y + system.b * u + noise
        apart[h] = np.abs(x - y)
    return apart


def of_system(system: System, chains: int) -> tuple[list[claims.Row], dict[str, object]]:
    """Return the rows of one line of the paper's argument, and its largest deviation at every step."""
    found = small_gain(abs(system.slope), scalar_gain(system.a, system.b))
    loop = impulse_gain(system.a + system.b * system.slope, system.b)
    is_stable = math.isfinite(loop)
    apart = drift(system, bins(HALF) if is_stable else endless(HALF), chains).max(1) / HALF
    name = f"a = {system.a:g}, b = {system.b:g}, K = {system.slope:g} (L g = {found.product:.3g})"
    measured = float(apart.max())
    rows = []
    if chains == CHAINS:
        rows.append(
            claims.near("Prop 5", f"{name}: max deviation / ε", system.reference, measured, percent=system.percent)
        )
    if is_stable:
        rows.append(
            claims.at_most("Prop 5", f"{name}: the same", min(loop, found.deviation), measured, limit_is="g_cl")
        )
    else:
        rate = math.log(system.a + system.b * system.slope)
        rows.append(
            claims.near(
                "Prop 5",
                f"{name}: growth rate, log(a + b K)",
                rate,
                growth_rate(apart[STEPS // 2 :]) or math.inf,
                absolute=0.002,
            )
        )
    told = {
        "system": system._asdict(),
        "L g": found.product,
        "g_cl": loop,
        "g / (1 - L g)": found.deviation,
        "3 g / (1 - L g)": found.learned_deviation,
        "deviation": apart,
    }
    return rows, told


def run(smoke: bool = False) -> claims.Found:
    chains = 500 if smoke else CHAINS
    made = [of_system(system, chains) for system in SYSTEMS]
    rows = [row for rows, _ in made for row in rows]
    first = SYSTEMS[0]
    by_width = [drift(first, bins(half), chains // 8).max() for half in WIDTHS]
    total = drift(first, bins(HALF), chains // 8).mean(1).cumsum()[np.array(HORIZONS) - 1]
    gaps = [BIAS * impulse_gain(0.9 + 0.2, 1, h) for h in GAP_HORIZONS]
    rows += [
        claims.near(
            "Prop 5",
            "first system: exponent of the deviation in ε",
            0.9998,
            claims.slope(WIDTHS, by_width),
            absolute=0.02,
        ),
        claims.near(
            "Prop 5", "first system: exponent of Σ deviations in H", 1.014, claims.slope(HORIZONS, total), absolute=0.02
        ),
        *(
            claims.near(
                "Lipschitz", f"expert .2 x + .001, learner .2 x, a = .9: state gap at H = {h}", known, gap, percent=0.5
            )
            for h, known, gap in zip(GAP_HORIZONS, (0.0159, 0.0573, 0.443, 20.5), gaps, strict=True)
        ),
        claims.near(
            "Lipschitz",
            "its growth rate, H = 80 … 120 (log 1.1)",
            math.log(1.1),
            growth_rate(np.array([BIAS * impulse_gain(1.1, 1, h) for h in range(80, 121)])) or math.inf,
            absolute=2e-4,
        ),
    ]
    return claims.results(rows, systems=[told for _, told in made], horizons=GAP_HORIZONS, gaps=gaps)


def plot(found: claims.Found) -> object:
    made, (axes,) = claims.figure()
    for told, colour in zip(found["systems"], [*claims.COLOURS, "#00838f"], strict=True):
        system, deviation = told["system"], np.array(told["deviation"])
        steps = np.arange(1, len(deviation) + 1)
        axes.semilogy(steps, deviation, color=colour, linewidth=1.2)
        shown = np.flatnonzero(deviation < HIGHEST)[-1] + 1  # the unstable ones leave the frame
        name = f"{system['a']:g}, {system['b']:g}, {system['slope']:g}"
        claims.label_at_end(axes, steps[:shown], deviation[:shown], name, colour)
    axes.set(xlabel="step", ylabel="largest state deviation / ε", xlim=(0, STEPS * 1.3), ylim=(0.4, HIGHEST))
    axes.set_title("a, b, K", loc="right", fontsize=9)
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
