"""What an audit costs: seconds and memory of the four families, and how they grow with the episodes.

    python recipes/benchmarks/audit_speed.py --data DATA     # two minutes
    python recipes/benchmarks/audit_speed.py --smoke                                              # synthetic

Each family is fitted on all episodes and audited on 25, 50 and 100 of them, with states: speed is measured, not the
tokenizers, so it does not matter that they are not held out. Peak memory is that of the whole process, data included.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from action_tokenizers import Episodes
from action_tokenizers.data import smooth_episodes
from action_tokenizers.diagnostics.audit import audit
from action_tokenizers.registry import FAMILIES, tokenizer_class

SIZES = (25, 50, 100)


def measure(episodes: Episodes, sizes: tuple[int, ...], horizon: int) -> dict[str, Any]:
    """Return seconds per family and number of episodes, and the peak memory of the process in GB."""
    audit(tokenizer_class("binning")(horizon=horizon).fit(episodes[[0, 1]]), episodes[[0, 1]])  # warm kernels
    seconds: dict[str, dict[int, float]] = {}
    for name in FAMILIES:
        tokenizer = tokenizer_class(name)(horizon=horizon).fit(episodes)
        seconds[name] = {}
        for size in sizes:
            part = episodes[list(range(size))]
            began = time.perf_counter()
            audit(tokenizer, part)
            seconds[name][size] = time.perf_counter() - began
    return {
        "frames": episodes.frames,
        "action_dim": episodes.action_dim,
        "horizon": horizon,
        "seconds": seconds,
        "together": {size: sum(times[size] for times in seconds.values()) for size in sizes},
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def table(found: dict[str, Any]) -> str:
    """Return the seconds as Markdown."""
    sizes = list(found["together"])
    lines = [f"| audit | {' | '.join(f'{size} episodes' for size in sizes)} |", f"|---|{'---:|' * len(sizes)}"]
    rows = {**found["seconds"], "together": found["together"]}
    lines += [f"| {name} | {' | '.join(f'{times[size]:.1f} s' for size in sizes)} |" for name, times in rows.items()]
    return "\n".join([*lines, "", f"Peak memory of the process: {found['peak_gb']:.2f} GB."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a data set of 100 episodes or more")
    parser.add_argument("--horizon", type=int, help="steps per chunk (one second)")
    parser.add_argument("--smoke", action="store_true", help="a few synthetic episodes")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    if options.data is None and not options.smoke:
        parser.error("expected --data or --smoke")
    if options.smoke:
        episodes, sizes = smooth_episodes(6, length=(40, 60), action_dim=3, seed=0), (6,)
    else:
        episodes, sizes = Episodes.load(options.data), SIZES
    found = measure(episodes, sizes, options.horizon or round(episodes.fps or 10))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
