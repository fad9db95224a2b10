"""Algorithm 1 of Cao & Xie 2026: what looking less often, with a model in between, costs and brings.

    pip install "action-tokenizers[data,plots,sim]"
    python recipes/cloning/run_augmentation.py --data PUSHT --publish   # PUSHT: the folder of its demonstrations
    python recipes/cloning/run_augmentation.py --smoke      # a small trap and a made-up reach: no simulator, seconds

Four systems. The trap of Theorem 6: the quantized expert, as endless data would clone it, with the exact transition
model and with one fitted to 50 demonstrations. PushT: an agent that is drawn to the place it is told, which forgets
errors, and a block that does not. Meta-World's reach: told differences, an arm adds errors up, but does not fall. An
inverted pendulum (gymnasium): what is not looked at falls. Between two looks at the state the policy is asked
`sub_horizon` times in states that the model foresees.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cloning_tables import HERE, interval, write_section
from cloning_tasks import META_WORLD, Task, made_up, meta_world, pusht

from action_tokenizers import ActionTokenizer, BinningTokenizer, Episodes, ResidualVQTokenizer
from action_tokenizers.cloning.expert import QuantizedExpert
from action_tokenizers.cloning.model import TransitionModel, executed_steps, fit_model
from action_tokenizers.cloning.planning import Planner
from action_tokenizers.cloning.rollout import Simulator, rollout
from action_tokenizers.cloning.training import clone
from action_tokenizers.diagnostics.known import Trap, binning_control

EPSILONS = (2.0**-5, 2.0**-6, 2.0**-7)
TRAP_SUB_HORIZONS = (1, 4, 16, 64, 256)
SUB_HORIZONS = (1, 2, 4, 8, 16)
CHAINS = 128
RESULTS = HERE / "augmentation.json"
FIGURE = HERE / "figures" / "augmentation.svg"

Floats = NDArray[np.float32]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Exact:
    """The trap's own motion under the expert: what a model learns from endless demonstrations."""

    trap: Trap

    def foresee(self, states: Floats, actions: Floats, *, seed: int) -> NDArray[np.float64]:
        x = np.asarray(states, np.float64)
        return self.trap.step(x, self.trap.expert(x))


def trap_rows(epsilon: float, smoke: bool = False) -> Rows:
    """Return the regret per step on the trap for every sub-horizon and both models."""
    trap = Trap(epsilon)
    horizon = 200 if smoke else trap.horizon
    codec = trap.tokenizer(horizon=1)
    recorded = executed_steps(codec, trap.demonstrations(50, horizon=20))
    fitted = fit_model(recorded, steps=100 if smoke else 1000)
    rows: Rows = []
    for k in (1, 4, horizon) if smoke else (*TRAP_SUB_HORIZONS, horizon):
        models: dict[str, TransitionModel | None] = {"exact": Exact(trap), "fitted": fitted} if k > 1 else {"-": None}
        for name, model in models.items():
            regret = trap_regret(trap, codec, horizon, model, k)
            rows.append({"tokenizer": "trap", "model": name, "sub_horizon": k, "regret": regret})
    control = trap_regret(trap, binning_control(2 * epsilon, horizon=1), horizon)
    rows.append({"tokenizer": "bins", "model": "-", "sub_horizon": 1, "regret": control})
    return [{"epsilon": epsilon, "steps": horizon, **row} for row in rows]


def trap_regret(
    trap: Trap, codec: ActionTokenizer, horizon: int, model: TransitionModel | None = None, sub_horizon: int = 1
) -> float:
    """Return what the quantized expert loses per step, over chains from `trap.start`."""
    policy = QuantizedExpert(codec, lambda x: trap.expert(x)[:, None])
    planner = Planner(policy, model=model, sub_horizon=sub_horizon)
    x, regret = trap.start(CHAINS), np.zeros(horizon)
    h = look = 0
    while h < horizon:
        plan = planner.plan(x[:, None], seed=look)
        if plan.diverged.any():
            raise RuntimeError(f"the model left what it knows in {plan.diverged.sum()} chains at step {h}")
        for u in plan.actions[..., 0].T[: horizon - h]:
            regret[h] = np.abs(u - trap.expert(x)).mean()
            x, h = trap.step(x, u.astype(np.float64)), h + 1
        look += 1
    return float(regret.mean())


class Pendulum:
    """An inverted pendulum on a cart that must not tilt by .2; a fallen one stays where it is."""

    STEPS = 200
    GAIN = np.array([0.5, 8.0, 0.5, 2.0])

    def __init__(self) -> None:
        import gymnasium

        self.env: Any = gymnasium.make("InvertedPendulum-v5").unwrapped

    def reset(self, start: int) -> Any:
        self.steps, self.has_fallen = 0, False
        self.state, _ = self.env.reset(seed=start)
        return self.state

    def step(self, action: Floats) -> tuple[Any, float]:
        if not self.has_fallen:
            self.state, _, self.has_fallen, _, _ = self.env.step(np.clip(action, -3, 3))
            self.steps += not self.has_fallen
        return self.state, self.steps / self.STEPS


def pendulum() -> Task:
    """Return demonstrations of a linear expert that is pushed about, so that a model has something to learn from."""

    def demonstrations(starts: range) -> Episodes:
        robot, actions, states = Pendulum(), [], []
        for start in starts:
            rng = np.random.default_rng([2, start])
            rows = [robot.reset(start)]
            done = []
            for _ in range(100):
                pushed = np.clip(robot.GAIN @ rows[-1] + rng.normal(0, 0.3), -3, 3)
                done.append(np.array([pushed], np.float32))
                rows.append(robot.step(done[-1])[0])
            actions.append(np.stack(done))
            states.append(np.stack(rows[:-1]).astype(np.float32))
        return Episodes(actions, states=states, fps=25, source=f"inverted pendulum {starts.start}-{starts.stop - 1}")

    return Task(
        "inverted pendulum",
        demonstrations(range(40)),
        demonstrations(range(40, 60)),
        Pendulum,
        tuple(range(40, 60)),
        steps=Pendulum.STEPS,
        horizon=1,
        execute=1,
        range="minmax",
        unit=np.ones(1),
    )


def codecs(task: Task) -> dict[str, ActionTokenizer]:
    """Return a fine and a coarse tokenizer, unfitted."""
    if task.horizon == 1:
        return {f"bins{n}": BinningTokenizer(horizon=1, range=task.range, bins=n) for n in (256, 8)}
    given: dict[str, Any] = {"horizon": task.horizon, "range": task.range}
    fine = {"rvq4x128": ResidualVQTokenizer(levels=4, codebook_size=128, **given)}
    if task.name in META_WORLD:  # bins are what reach can be cloned through
        return {"bins256": BinningTokenizer(bins=256, **given), **fine}
    return {**fine, "rvq1x16": ResidualVQTokenizer(levels=1, codebook_size=16, **given)}


def task_rows(task: Task, smoke: bool = False) -> Rows:
    """Return scores and costs for every tokenizer and sub-horizon, from the same starts."""
    rows: Rows = []
    simulators: list[Simulator] = [task.simulator() for _ in task.starts]
    for name, unfitted in codecs(task).items():
        codec = unfitted.fit(task.fit)
        start = time.process_time()
        policy = clone(codec, task.fit, steps=200 if smoke else 1000)
        trained = time.process_time()
        recorded = executed_steps(codec, task.fit, task.execute)
        model = fit_model(recorded, steps=200 if smoke else 1500, members=2)
        costs = {"clone_s": trained - start, "model_s": time.process_time() - trained}
        held_out = executed_steps(codec, task.held_out, task.execute)
        foreseen = model.foresee(held_out.states, held_out.actions, seed=0)
        moved = np.linalg.norm(held_out.after - held_out.states, axis=1).mean()
        missed = np.linalg.norm(held_out.after - foreseen, axis=1).mean()
        for k in (1, 4) if smoke else SUB_HORIZONS:
            planner = Planner(policy, execute=task.execute, model=model, sub_horizon=k)
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the model left what it knows")
                done = rollout(planner, iter(simulators).__next__, task.starts, steps=task.steps)
            rows.append(
                {
                    "task": task.name,
                    "tokenizer": name,
                    "sub_horizon": k,
                    "scores": [round(float(score), 5) for score in done.scores],
                    "looks": float(done.looks.sum() / done.steps.sum()),
                    "asks": float(done.asks.sum() / done.steps.sum()),
                    "diverged": float(done.diverged.sum() / done.looks.sum()),
                    "model_error": float(missed / moved),
                    "rollout_s": time.process_time() - start,
                    **costs,
                }
            )
            print(task.name, name, k, f"{done.scores.mean():.3f}", flush=True)
    return rows


def trap_table(rows: Rows) -> str:
    """Return the regret per step by epsilon and sub-horizon."""
    lines = [["ε", "steps", "model", "asks between two looks", "regret per step"], ["---"] * 5]
    for row in rows:
        between = "all" if row["sub_horizon"] == row["steps"] else str(row["sub_horizon"])
        what = "bins of width 2ε" if row["tokenizer"] == "bins" else row["model"]
        lines.append([f"2^{np.log2(row['epsilon']):.0f}", str(row["steps"]), what, between, f"{row['regret']:.4f}"])
    return _table(lines)


def task_table(rows: Rows) -> str:
    """Return score and cost by task, tokenizer and sub-horizon; differences are over starts, in pairs."""
    head = ["task", "tokenizer", "asks between two looks", "score", "against 1 ask", "looks / step", "asks / step"]
    lines = [[*head, "plans cut", "model's error / motion", "seconds (clone, model, rollouts)"], ["---"] * 10]
    first: dict[tuple[str, str], NDArray[np.float64]] = {}
    for row in rows:
        scores = np.array(row["scores"])
        reference = first.setdefault((row["task"], row["tokenizer"]), scores)
        apart = "-" if row["sub_horizon"] == 1 else interval(scores - reference, signed=True)
        seconds = ", ".join(f"{row[key]:.0f}" for key in ("clone_s", "model_s", "rollout_s"))
        cells = [row["task"], row["tokenizer"], str(row["sub_horizon"]), interval(scores), apart]
        cells += [
            f"{row['looks']:.3f}",
            f"{row['asks']:.3f}",
            f"{row['diverged']:.1%}",
            f"{row['model_error']:.2f}",
            seconds,
        ]
        lines.append(cells)
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(found: dict[str, Rows]) -> Any:
    """Return a figure: regret on the trap and score in the simulators against the sub-horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    trap, tasks = figure.subplots(1, 2)
    for epsilon in dict.fromkeys(row["epsilon"] for row in found["trap"]):
        rows = [row for row in found["trap"] if row["epsilon"] == epsilon and row["model"] in ("-", "fitted")]
        chain = [row for row in rows if row["tokenizer"] == "trap"]
        (line,) = trap.plot(
            [row["sub_horizon"] for row in chain],
            [row["regret"] for row in chain],
            "o-",
            label=f"ε = $2^{{{np.log2(epsilon):.0f}}}$",
        )
        control = next(row["regret"] for row in rows if row["tokenizer"] == "bins")
        trap.axhline(control, color=line.get_color(), linestyle=":", linewidth=1)
    trap.set(xscale="log", yscale="log", xlabel="asks between two looks", ylabel="regret per step")
    trap.set_title("The trap, fitted model (dotted: bins, which need none)", fontsize=9)
    trap.legend(fontsize=8)
    for key in dict.fromkeys((row["task"], row["tokenizer"]) for row in found["tasks"]):
        rows = [row for row in found["tasks"] if (row["task"], row["tokenizer"]) == key]
        tasks.plot([r["sub_horizon"] for r in rows], [np.mean(r["scores"]) for r in rows], "o-", label=", ".join(key))
    tasks.set(xscale="log", xlabel="asks between two looks", ylabel="score", ylim=(-0.03, 1.03))
    tasks.set_title("Simulators, cloned policies", fontsize=9)
    tasks.set_xticks(SUB_HORIZONS, [str(k) for k in SUB_HORIZONS], minor=False)
    tasks.minorticks_off()
    tasks.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def text(found: dict[str, Rows]) -> str:
    """Return the section of the README."""
    picture = "![Regret and score against the asks between two looks](figures/augmentation.svg)"
    return "\n\n".join([trap_table(found["trap"]), task_table(found["tasks"]), picture])


def run(smoke: bool = False, data: Path | None = None) -> dict[str, Rows]:
    """Return the rows of both tables; PushT needs the folder of its demonstrations."""
    torch.set_num_threads(1)
    epsilons = EPSILONS[:1] if smoke else EPSILONS
    prepared: list[Callable[[], Task]] = [made_up]
    if not smoke:
        prepared = [partial(meta_world, "reach-v3"), pendulum]
        prepared += [] if data is None else [partial(pusht, data)]
    return {
        "trap": [row for epsilon in epsilons for row in trap_rows(epsilon, smoke)],
        "tasks": [row for prepare in prepared for row in task_rows(prepare(), smoke)],
    }


def holds(found: dict[str, Rows]) -> bool:
    """Say whether the regret of the trap falls to order epsilon with either model, and without one does not fall."""
    for epsilon in dict.fromkeys(row["epsilon"] for row in found["trap"]):
        rows = [row for row in found["trap"] if row["epsilon"] == epsilon and row["tokenizer"] == "trap"]
        whole = [row["regret"] for row in rows if row["sub_horizon"] == row["steps"]]
        ordinary = next(row["regret"] for row in rows if row["sub_horizon"] == 1)
        # Theorem 7 on this system: (1 + b / (1 - a)) times the error on the expert's way, (d + 1/2) / b epsilon
        if max(whole) > 1.4 * 5.7 * epsilon or ordinary < 0.4:
            return False
    return True


def publish(found: dict[str, Rows]) -> None:
    """Write augmentation.json, the figure and the section of the README."""
    RESULTS.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
    FIGURE.parent.mkdir(exist_ok=True)
    # without a date and with named ids equal results are equal bytes
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "augmentation"}):
        plot(found).savefig(FIGURE, metadata={"Date": None})
    write_section("augmentation", text(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print the tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="a small trap and a made-up reach")
    parser.add_argument("--data", type=Path, help="folder of the PushT demonstrations; without it PushT is left out")
    parser.add_argument("--publish", action="store_true", help="rewrite augmentation.json, the figure and the README")
    options = parser.parse_args(arguments)
    found = run(options.smoke, options.data)
    print(f"{trap_table(found['trap'])}\n\n{task_table(found['tasks'])}")
    if options.publish:
        publish(found)
    return 0 if holds(found) else 1


if __name__ == "__main__":
    sys.exit(main())
