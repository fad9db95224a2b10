"""E8: when a tokenized deterministic expert is smooth: bins are, the trap is at no distance (Proposition 5).

    python recipes/theory/e8_smoothness.py [--smoke] [--json FILE] [--plot FILE]

A jump counts if decoded actions are more than ε' apart although the states are within δ_0 = (ε' - 2 ε_q) / L. Another
id for nearly the same action is no jump: total variation punishes it, Definition 4 does not.
"""

from __future__ import annotations

from collections.abc import Callable

import claims
import numpy as np
from numpy.typing import NDArray

from action_tokenizers import ActionTokenizer, BinningTokenizer, KMeansTokenizer, Range
from action_tokenizers.diagnostics.coupling import threshold_cost
from action_tokenizers.diagnostics.jumps import scalar_excess_jump
from action_tokenizers.diagnostics.known import Trap, binning_control

POWERS = [4, 5, 6, 7]  # ε = 2**-power
RESOLUTIONS = [4, 16, 64, 256]  # states per ε
REACH = 1.0  # states from -REACH to REACH
SPACINGS = [2.0**-k for k in range(6, 18)]  # across the trap's border
PAIRS = 20_000
SLOPE, THRESHOLD, CELL = np.array([0.5, 0.3]), 0.375, 0.25  # of the expert of two dims, its threshold, its bins
# of 16 cells each: reference shares of far jumps and of changed ids; the same of ours where it differs
FAMILIES: dict[str, tuple[Callable[[], ActionTokenizer], float, float]] = {
    "bins": (lambda: BinningTokenizer(bins=16, range=Range([-2.0], [2.0]), horizon=1), 0, 0.21),
    "k-means": (lambda: KMeansTokenizer(codebook_size=16, range=Range([-2.0], [2.0]), horizon=1), 0.002, 0.30),
    "quantile": (
        lambda: BinningTokenizer(bins=16, strategy="quantile", range=Range([-2.0], [2.0]), horizon=1),
        0,
        0.39,
    ),
}

Floats = NDArray[np.float64]


def violations(tokenizer: ActionTokenizer, epsilon: float, resolution: int) -> tuple[int, int]:
    """Return how many pairs of grid states within ε have decoded actions more than 3 ε apart, and how many pairs."""
    x = np.arange(-REACH, REACH, epsilon / resolution)
    q = tokenizer.quantize(np.arctan(x)[:, None, None])[:, 0, 0]
    slack = 1e-6 * epsilon  # decoded actions are float32
    found = sum(int((np.abs(q[lag:] - q[:-lag]) > 3 * epsilon + slack).sum()) for lag in range(1, resolution + 1))
    return found, sum(len(x) - lag for lag in range(1, resolution + 1))


def jumps_at_the_border(trap: Trap) -> tuple[Floats, list[float]]:
    """Return how far decoded actions jump across the border of I_T1 at every spacing, and the cost of Definition 4."""
    tokenizer = trap.tokenizer(1)
    border = trap.intervals[1].low
    states = np.array([(border - spacing / 2, border + spacing / 2) for spacing in SPACINGS])
    q = tokenizer.quantize(trap.expert(states).reshape(-1, 1, 1)).reshape(states.shape).astype(np.float64)
    # each law is an atom: of the action decoded at its state
    cost = [threshold_cost(np.array([1.0, 0.0]), np.array([0.0, 1.0]), pair, 3 * trap.epsilon) for pair in q]
    return np.abs(q[:, 1] - q[:, 0]), cost


def pairs_of_states(count: int) -> tuple[Floats, Floats]:
    """Return actions of a Lipschitz expert in normal states and in states within δ_0 of them, `(count, 1, 1)`."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, 2))
    angle = random.uniform(0, 2 * np.pi, count)
    radius = (THRESHOLD - CELL) / np.linalg.norm(SLOPE) * np.sqrt(random.random(count))
    y = x + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    u, v = ((states @ SLOPE).clip(-2, 2)[:, None, None] for states in (x, y))
    return u, v


def of_families(count: int) -> tuple[list[claims.Row], dict[str, dict[str, float]]]:
    """Return jumps and changed ids of three families on an expert of two dims."""
    u, v = pairs_of_states(count)
    rows, found = [], {}
    for name, (make, reference, flips) in FAMILIES.items():
        tokenizer = make().fit(u)
        jump = np.abs(tokenizer.quantize(u) - tokenizer.quantize(v))
        flipped = tokenizer.encode(u) != tokenizer.encode(v)
        found[name] = {
            "jumps": float((jump > THRESHOLD).mean()),
            "flips": float(flipped.mean()),
            "beyond .4": float((jump > 0.4).mean()),
        }
        shown = f"2-D expert, {name}: share of pairs that jump beyond {THRESHOLD}"
        if name == "quantile":
            note = "our outer bins decode to the means of their data, which lie .385 apart; none jumps beyond .4"
            rows.append(
                claims.differs("Prop 5", shown, reference, found[name]["jumps"], known=0.02, absolute=0.004, note=note)
            )
            rows.append(
                claims.at_most("Prop 5", f"2-D expert, {name}: the same beyond .4", 0, found[name]["beyond .4"])
            )
            decoded = np.unique(tokenizer.quantize(u))
            apart = float(np.diff(decoded)[[0, -1]].max())
            rows.append(
                claims.near(
                    "Prop 5",
                    f"2-D expert, {name}: how far an outer bin is from its neighbour",
                    0.385,
                    apart,
                    absolute=0.005,
                )
            )
        elif name == "bins":
            rows.append(claims.at_most("Prop 5", shown, 0, found[name]["jumps"]))
        else:
            rows.append(claims.near("Prop 5", shown, reference, found[name]["jumps"], absolute=0.003))
        rows.append(
            claims.near(
                "Def 4, ε' = 0",
                f"2-D expert, {name}: share of pairs whose id changes",
                flips,
                found[name]["flips"],
                absolute=0.015,
            )
        )
    return rows, found


def run(smoke: bool = False) -> claims.Found:
    powers, resolutions = (POWERS[:2], RESOLUTIONS[:2]) if smoke else (POWERS, RESOLUTIONS)
    fine, wide, pairs = 0, 0, 0
    for power in powers:
        epsilon = 2.0**-power
        for resolution in resolutions:
            found, of = violations(binning_control(epsilon, 1), epsilon, resolution)
            fine, pairs = fine + found, pairs + of
            wide += violations(binning_control(4 * epsilon, 1), epsilon, resolution)[0]
    trap = Trap(2.0**-7)
    jump, cost = jumps_at_the_border(trap)
    bins, wider = (_excess(binning_control(width, 1)) for width in (2.0**-7, 2.0**-5))
    families, told = of_families(PAIRS)
    grids = f"{len(powers)} ε · {len(resolutions)} resolutions, {pairs:.2g} pairs"
    rows = [
        claims.at_most("Prop 5 (ii)", f"arctan, bins of width ε, ε' = 3 ε, δ_0 = ε: jumps ({grids})", 0, fine),
        claims.at_least(
            "Prop 5 (i)",
            "the same, bins of width 4 ε: share of pairs that jump",
            1e-3,
            wide / pairs,
            note="they must: one cell is farther than ε'",
        ),
        claims.between(
            "Prop 5 (i)", "trap, across the border of I_T1: least jump at any spacing", 0.947, 0.993, float(jump.min())
        ),
        claims.between("Prop 5 (i)", "trap, the same: largest", 0.947, 0.993, float(jump.max())),
        claims.near("Def 4", "trap, the same: least cost at ε' = 3 ε", 1, min(cost)),
        claims.near("Prop 5", "bins of width 2^-7: excess jump over width", 1, bins * 2.0**7, absolute=0.001),
        claims.near("Prop 5", "bins of width 2^-5: excess jump over width", 1, wider * 2.0**5, absolute=0.001),
        *families,
    ]
    return claims.results(
        rows, spacing=SPACINGS, trap_jump=jump, bins_jump=_border(binning_control(2.0**-6, 1)), families=told
    )


def _excess(tokenizer: BinningTokenizer) -> float:
    """Return J_q in raw actions."""
    cells = tokenizer.scalar_cells()
    half = float(np.ptp(tokenizer.quantize([[[-9.0]], [[9.0]]]))) / 2  # between the outermost middles
    edges, centres = (values[0].double().numpy() for values in (cells.edges, cells.centres))
    return half / float(centres[-1]) * scalar_excess_jump(edges, centres)


def _border(tokenizer: BinningTokenizer) -> Floats:
    """Return how far decoded actions jump across the border of a cell at 0."""
    ends = np.array([(-spacing / 2, spacing / 2) for spacing in SPACINGS])
    q = tokenizer.quantize(np.arctan(ends).reshape(-1, 1, 1)).reshape(ends.shape).astype(np.float64)
    return np.asarray(np.abs(q[:, 1] - q[:, 0]), np.float64)


def plot(found: claims.Found) -> object:
    made, (axes,) = claims.figure()
    for name, text, colour in (
        ("trap_jump", "trap, ε = 2^-7", claims.COLOURS[0]),
        ("bins_jump", "bins of width 2^-6", claims.COLOURS[2]),
    ):
        axes.loglog(found["spacing"], found[name], "o-", color=colour)
        axes.annotate(
            text, (found["spacing"][-1], found[name][-1]), xytext=(0, 7), textcoords="offset points", color=colour
        )
    axes.loglog(found["spacing"], found["spacing"], ":", color=claims.SOFT)
    axes.annotate(
        "the expert's own move",
        (found["spacing"][4], found["spacing"][5]),
        xytext=(6, -8),
        textcoords="offset points",
        color=claims.SOFT,
    )
    axes.set(xlabel="distance of two states across a border", ylabel="distance of the decoded actions", ylim=(1e-5, 3))
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
