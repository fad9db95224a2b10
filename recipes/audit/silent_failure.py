"""When the silent-failure flag fires: on the trap of Theorem 6, and not on ordinary tokenizers of recorded data.

    python recipes/audit/silent_failure.py --data DATA --json recipes/audit/silent_failure.json   # 20 minutes
    python recipes/audit/silent_failure.py --smoke                                                     # seconds

The trap (epsilon = 2**-7): 100 times 100 episodes of 1,507 steps drawn anew. Recorded data: four data sets, six
families, five splits of the episodes into 60 % to fit and 40 % to audit, and of each 20 draws of 10 or more of the
latter: 100 runs each. The flag is the audit's own (`conditions.silent_failure`); the alarm is its smoothness half, and
what is counted where the flag needs more than the data have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from action_tokenizers import (
    ActionTokenizer,
    BinningTokenizer,
    ChunkSample,
    Episodes,
    FASTTokenizer,
    KMeansTokenizer,
    ResidualVQTokenizer,
)
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.conditions import silent_failure
from action_tokenizers.diagnostics.error import error_mean, far, unit_of
from action_tokenizers.diagnostics.expert import Models, expert_spread
from action_tokenizers.diagnostics.known import Trap
from action_tokenizers.diagnostics.measure import clopper_pearson
from action_tokenizers.diagnostics.places import Places
from action_tokenizers.diagnostics.smoothness import COARSE, FINE, LEAST_EPISODES, RARE, episode_jump, worst_jumps
from action_tokenizers.diagnostics.subject import Subject

SETS = {"g1_inspire_bottle": 30, "pusht": 10, "adroit_door": 50, "crazyflie_100hz": 50}
FAMILIES: dict[str, Callable[[int], ActionTokenizer]] = {
    "bins": lambda t: BinningTokenizer(horizon=t),
    "quantile bins": lambda t: BinningTokenizer(horizon=t, strategy="quantile"),
    "k-means": lambda t: KMeansTokenizer(horizon=t),
    "k-means chunk": lambda t: KMeansTokenizer(horizon=t, scope="chunk"),
    "residual VQ": lambda t: ResidualVQTokenizer(horizon=t),
    "FAST": lambda t: FASTTokenizer(horizon=t),
}
SPLITS, DRAWS, SEEDS = 5, 20, 100
STRIDE = 5


def on_the_trap(seeds: int) -> dict[str, Any]:
    """Return in how many draws of 100 episodes the flag fires on the trap, and the numbers it rests on."""
    trap = Trap(2**-7)
    tokenizer = trap.tokenizer(137)
    fired, shares, spreads = 0, [], []
    for seed in range(seeds):
        episodes = trap.demonstrations(100, seed=seed)
        subject = Subject.of(tokenizer, episodes, 137, unit_of(episodes.actions))
        states = [s.astype(np.float64) for s in episodes.states or ()]
        taken = [
            error_mean(subject),
            episode_jump(subject, COARSE, families=(), etas=(), seed=seed),
            episode_jump(subject, FINE, families=(), etas=(), seed=seed),
            expert_spread(Models(Places.of(subject, states, seed))),
        ]
        measures = {m.name: m for m in taken}
        fired += bool(silent_failure(measures))
        shares.append(measures["episode_jump_fine"].value)
        spreads.append(measures["expert_spread"].value)
    return {"runs": seeds, "fired": fired, "least_share": min(shares), "largest_spread": max(spreads)}


def on_recorded_data(
    episodes: Episodes, horizon: int, make: Callable[[int], ActionTokenizer], splits: int
) -> dict[str, Any]:
    """Return in how many of the draws the jump alarm is on, and the largest share of episodes that jump."""
    alarms, largest = 0, 0.0
    for split in range(splits):
        train, test = episodes.split(max(0.4, (LEAST_EPISODES + 0.5) / len(episodes)), seed=split)
        tokenizer = make(horizon).fit(ChunkSample(seed=split).add(train, horizon, STRIDE))
        subject = Subject.of(tokenizer, test, horizon, unit_of(episodes.actions))
        # what an episode's worst jump is does not depend on the other episodes; where "far" begins does
        worst = {eta: worst_jumps(subject, eta, seed=split) for eta in (COARSE, FINE)}
        error = subject.average(np.linalg.norm(subject.error, axis=-1))
        random = np.random.default_rng(split)
        for _ in range(DRAWS):
            some = random.permutation(len(error))[: random.integers(LEAST_EPISODES, len(error) + 1)]
            mean = float(error[some].mean())
            hits = {eta: int((values[some] > far(mean, eta)).sum()) for eta, values in worst.items()}
            alarms += all(clopper_pearson(h, len(some))[0] > RARE for h in hits.values())
            largest = max(largest, min(hits.values()) / len(some))
    return {"runs": splits * DRAWS, "alarms": alarms, "largest_share": largest}


def spread_of(episodes: Episodes, horizon: int) -> float | None:
    """Return the spread of the demonstrators' actions given the state, which a tokenizer has no part in."""
    if episodes.states is None:
        return None
    tokenizer = BinningTokenizer(horizon=horizon).fit(ChunkSample().add(episodes, horizon, STRIDE))
    subject = Subject.of(tokenizer, episodes, horizon, unit_of(episodes.actions))
    return expert_spread(Models(Places.of(subject, [s.astype(np.float64) for s in episodes.states]))).value


def table(found: dict[str, Any]) -> str:
    """Return the counts as Markdown."""
    trap = found["trap"]
    lines = [
        f"The flag fires on the trap in {trap['fired']} of {trap['runs']} draws (episodes that jump at 2 %: at "
        f"least {trap['least_share']:.2f}; spread of the expert: at most {trap['largest_spread']:.4f}).",
        "",
        "Jump alarms in the runs on recorded data; in brackets the largest share of episodes that jump at both sizes:",
        "",
        f"| | {' | '.join(FAMILIES)} | spread of the expert |",
        f"|---|{'---:|' * (len(FAMILIES) + 1)}",
    ]
    for name, row in found["data"].items():
        cells = [f"{c['alarms']} of {c['runs']} ({c['largest_share']:.2f})" for c in row["families"].values()]
        spread = "-" if row["spread"] is None else f"{row['spread']:.3f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the recorded data sets")
    parser.add_argument("--smoke", action="store_true", help="two draws of the trap, one synthetic data set, one split")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    options = parser.parse_args()
    if options.data is None and not options.smoke:
        parser.error("expected --data or --smoke")
    if options.smoke:
        sets = {"synthetic": (smooth_episodes(30, length=(40, 60), action_dim=3, seed=0), 10)}
    else:
        sets = {name: (Episodes.load(options.data / name), horizon) for name, horizon in SETS.items()}
    found: dict[str, Any] = {"trap": on_the_trap(2 if options.smoke else SEEDS), "data": {}}
    for name, (episodes, horizon) in sets.items():
        families = {
            family: on_recorded_data(episodes, horizon, make, 1 if options.smoke else SPLITS)
            for family, make in FAMILIES.items()
        }
        found["data"][name] = {"spread": spread_of(episodes, horizon), "families": families}
        print(f"{name} done", flush=True)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
