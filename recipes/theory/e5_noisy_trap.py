"""E5: the trap with Gaussian process noise: the robot escapes, and always falls in again (Theorem 6, second part).

    python recipes/theory/e5_noisy_trap.py [--smoke] [--json FILE] [--plot FILE]

Noise of ε / |ln ε| throws the robot out of the loop, which then leads back to where the expert rests. It loses a
constant over |ln ε| per step, instead of a constant: still no order of ε. Bins lose an order of ε.
"""

from __future__ import annotations

import math

import claims
import numpy as np

from action_tokenizers.diagnostics.known import Trap, binning_control

POWERS = range(4, 13)  # ε = 2**-power
CHAINS = 1000
BIN_STEPS = 150
LOW, HIGH = 0.9, 1.5  # the constants between which regret times |ln ε| stays


def measure(power: int, chains: int) -> dict[str, float]:
    """Return regret per step, of the trap and of bins that err as little, and the error in distribution over ε."""
    trap = Trap(2.0**-power, noisy=True)
    tokenizer = trap.tokenizer()
    rollout = trap.rollout(tokenizer, chains)
    return {
        "epsilon": trap.epsilon,
        "horizon": trap.horizon,
        "regret": float(rollout.regret.mean()),
        "product": float(rollout.regret.mean()) * abs(math.log(trap.epsilon)),
        "least occupancy": float(rollout.occupancy[trap.horizon // 2 :].mean(0).min()),
        "error over epsilon": float(trap.in_distribution(tokenizer, chains, 300)[-50:].mean()) / trap.epsilon,
        "bins": float(trap.rollout(binning_control(2 * trap.epsilon), chains, BIN_STEPS).regret.mean()),
    }


def run(smoke: bool = False) -> claims.Found:
    powers = [4, 5, 6] if smoke else list(POWERS)
    found = [measure(power, 200 if smoke else CHAINS) for power in powers]
    column = {name: [each[name] for each in found] for name in found[0]}
    span = f"ε = 2^-{powers[0]} … 2^-{powers[-1]}"
    trap = Trap(2.0**-6, noisy=True)
    limit = (2 + trap.a) * trap.k / trap.b
    rows = [
        claims.between("Thm 6, noise", f"{span}: least regret per step · |ln ε|", LOW, HIGH, min(column["product"])),
        claims.between("Thm 6, noise", f"{span}: largest regret per step · |ln ε|", LOW, HIGH, max(column["product"])),
        claims.between(
            "Thm 6, noise",
            f"{span}: exponent of regret · |ln ε| in ε",
            -0.1,
            0.1,
            claims.slope(column["epsilon"], column["product"]),
        ),
        claims.near(
            "Thm 6, noise",
            f"{span}: error / ε, the farthest from (2 + A) k / B",
            limit,
            max(column["error over epsilon"], key=lambda e: abs(e - limit)),
            percent=1,
        ),
        claims.at_least(
            "Thm 6, noise",
            f"{span}: least share of the time in any of the three intervals, second half",
            0.02,
            min(column["least occupancy"]),
        ),
        claims.near(
            "Thm 6, noise",
            f"{span}: exponent of the regret of bins in ε",
            1,
            claims.slope(column["epsilon"], column["bins"]),
            absolute=0.05,
        ),
    ]
    return claims.results(rows, **column)


def plot(found: claims.Found) -> object:
    made, (axes,) = claims.figure()
    axes.loglog(found["epsilon"], found["regret"], "o-", color=claims.COLOURS[0])
    axes.loglog(found["epsilon"], 1.2 / np.abs(np.log(found["epsilon"])), ":", color=claims.SOFT)
    axes.loglog(found["epsilon"], found["bins"], "^-", color=claims.COLOURS[2])
    axes.set_xlim(found["epsilon"][0] * 1.4, found["epsilon"][-1] / 8)
    claims.label_at_end(axes, found["epsilon"], found["regret"], "trap\n(dots: 1.2 / |ln ε|)", claims.COLOURS[0])
    claims.label_at_end(axes, found["epsilon"], found["bins"], "bins", claims.COLOURS[2])
    axes.set(xlabel="ε (finer to the right)", ylabel="regret per step")
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
