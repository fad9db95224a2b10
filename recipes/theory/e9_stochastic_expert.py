# ruff: noqa: RUF001  (the Greek letters of the theory are meant)
"""E9: a stochastic expert makes every tokenizer smooth: total variation survives any quantizer (Lemma 15, Theorem 2).

    python recipes/theory/e9_stochastic_expert.py [--smoke] [--json FILE] [--plot FILE]

A Gaussian policy of spread σ has ids whose laws at two states are at most erf(Δμ / (2 √2 σ)) apart, whatever the cells:
uniform, k-means, or the trap's. So learned tokenizers are not condemned where the expert acts with noise.
"""

from __future__ import annotations

import math

import claims
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from action_tokenizers import BinningTokenizer, KMeansTokenizer, Range
from action_tokenizers.diagnostics.coupling import exact_tv, threshold_cost
from action_tokenizers.diagnostics.known import Trap
from action_tokenizers.diagnostics.variation import STEEPEST

SPREAD = 0.1  # σ
SHIFT = 0.05  # Δμ
SHIFTS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3]
BINS = [2, 3, 5, 8, 16, 64, 256]  # over [-1, 1]
PHASES = 32
JUMP = 0.2  # threshold of Definition 4

Floats = NDArray[np.float64]


def most(shift: float) -> float:
    """Return the total variation of two Gaussians of spread σ whose means are `shift` apart."""
    return math.erf(shift / (2 * math.sqrt(2) * SPREAD))


def law(edges: Floats, mean: float) -> Floats:
    """Return the probability of every cell under N(mean, σ²); the outer cells have no end."""
    return np.diff(ndtr(np.concatenate([[-np.inf], (edges - mean) / SPREAD, [np.inf]])))


def bins(count: int, phase: float = 0.0) -> tuple[Floats, Floats]:
    """Return raw edges and decoded actions of uniform bins, moved by a share of their width."""
    move = phase * 2 / count
    tokenizer = BinningTokenizer(range=Range([-1.0 + move], [1.0 + move]), bins=count, horizon=1)
    cells = tokenizer.fit(np.linspace(-1, 1, 1024)[:, None, None] + move).scalar_cells()
    return cells.edges[0].double().numpy() + move, cells.centres[0].double().numpy() + move


def codebook(size: int) -> tuple[Floats, Floats]:
    """Return the borders and codewords of k-means: of scalar actions the middles between neighbours."""
    data = np.random.default_rng(0).normal(0, 0.4, (4000, 1, 1)).clip(-1, 1)
    tokenizer = KMeansTokenizer(codebook_size=size, range=Range([-1.0], [1.0]), horizon=1).fit(data)
    words = np.sort(tokenizer.decode(np.arange(size)[:, None])[:, 0, 0]).astype(np.float64)
    return (words[1:] + words[:-1]) / 2, words


def trapped() -> tuple[Floats, Floats]:
    """Return the cells of the trap, and one of its bad borders."""
    return Trap(2.0**-7).cells()


def run(smoke: bool = False) -> claims.Found:
    phases = np.linspace(0, 1, 4 if smoke else PHASES, endpoint=False)
    curves: dict[str, list[float]] = {"bound": [most(shift) for shift in SHIFTS]}
    cost_over, tried = 0.0, 0
    families = {
        "bins": [bins(count, phase) for count in BINS for phase in phases],
        "k-means": [codebook(k) for k in (4, 16, 64)],
        "trap": [trapped()],
    }
    largest = dict.fromkeys(families, 0.0)
    for name, all_cells in families.items():
        for edges, centres in all_cells:
            for shift in SHIFTS:
                for start in (-0.3, 0.0, 0.1):
                    p, q = law(edges, start), law(edges, start + shift)
                    tv = float(exact_tv(p, q))
                    largest[name] = max(largest[name], tv / most(shift))
                    cost_over = max(cost_over, threshold_cost(p, q, centres, JUMP) - tv)
                    tried += 1
    for name, (edges, _) in {"bins": bins(16), "k-means": codebook(16), "trap": trapped()}.items():
        curves[name] = [float(exact_tv(law(edges, -shift / 2), law(edges, shift / 2))) for shift in SHIFTS]
    # an edge of 16 bins lies at 0, midway between the means
    equal = float(exact_tv(law(bins(16)[0], -SHIFT / 2), law(bins(16)[0], SHIFT / 2)))
    rows = [
        claims.near("TVC", f"σ = {SPREAD}, Δμ = {SHIFT}: erf(Δμ / (2 √2 σ))", 0.1974, most(SHIFT), absolute=5e-5),
        claims.near(
            "TVC", "the same: Δμ · .399 / σ, the sharp slope", 0.1995, SHIFT * STEEPEST / SPREAD, absolute=5e-5
        ),
        claims.near(
            "TVC",
            "the same: Δμ / (√2 σ), the paper's",
            0.3536,
            SHIFT / (math.sqrt(2) * SPREAD),
            absolute=5e-5,
            note="valid, and 1.8 times what is needed",
        ),
        claims.near(
            "Lemma 15", "bins with an edge midway between the means: TV of the ids", 0.1974, equal, absolute=5e-5
        ),
        *(
            claims.at_most("Lemma 15", f"{name}: largest TV of the ids over that of the Gaussians", 1 + 1e-12, value)
            for name, value in largest.items()
        ),
        claims.at_most("Def 4", f"all {tried} cases: largest cost at ε' = {JUMP} minus TV", 1e-12, cost_over),
    ]
    return claims.results(rows, shifts=SHIFTS, **curves)


def plot(found: claims.Found) -> object:
    made, (axes,) = claims.figure()
    axes.loglog(found["shifts"], found["bound"], "--", color=claims.INK)
    claims.label_at_end(axes, found["shifts"], found["bound"], "Gaussians", claims.INK)
    for name, colour, place in (
        ("bins", claims.COLOURS[2], 0),
        ("k-means", claims.COLOURS[1], 1),
        ("trap", claims.COLOURS[0], 2),
    ):
        axes.loglog(found["shifts"], found[name], "o", color=colour, markersize=7 - 2 * place, label=name)
    axes.legend(loc="upper left")
    axes.set(
        xlabel="distance of the means Δμ",
        ylabel="total variation of the ids",
        xlim=(found["shifts"][0] / 1.3, found["shifts"][-1] * 2.5),
    )
    return made


if __name__ == "__main__":
    claims.main(__doc__, run, plot)
