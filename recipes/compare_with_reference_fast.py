"""FAST of this library against the published algorithm: same episodes, same chunks, same command.

    python recipes/compare_with_reference_fast.py --data DATA --strict

The criterion: at scale 10 and a vocabulary of 1024 we have the same error within 2 % and never more tokens
on g1, adroit, pusht and crazyflie, for every seed.

The protocol, and which reading of it the orientation numbers settle. `numpy.random.default_rng(seed)`
permutes the episodes; the first `int(0.2 * episodes)` are held out, whole. Chunks start at every third
frame and never cross an episode. The training chunks are a random 8,000 where there are more (g1 and
crazyflie; drawn with the same generator); the cap would hold for the held-out chunks too, but for seeds
0, 1 and 2 there are never that many. q01/q99 of the training frames scale actions to [-1, 1], clipped;
errors are in these units, so what clipping loses is not counted. Tokens are the mean number of ids of a
held-out chunk, without end mark and padding. Our vocabulary of 1024 includes the end mark.

With this reading the stand-in gives, for seed 0, 56.2, 550, 4.95 and 43.9 tokens with MSE 1.88e-4, 7.47e-4,
4.25e-4 and 6.76e-4: the orientation numbers of the plan (56, 550, 5.0, 44; 1.9e-4, 7.5e-4, 4.3e-4, 6.8e-4)
are those of one split, not means over the seeds. The reading was searched for, not written down anywhere: ten
orders of the episodes were tried, with 0.2 * episodes rounded down and to the nearest, and only this one comes
near all eight (rounded to the nearest, crazyflie has 45.3 tokens). How the cap picks its chunks, and whether it
also falls on the held-out ones, makes too little difference to tell. Other seeds move crazyflie a lot (44.7 and
56.3 tokens; mean 48.3): five of its 59 flights hold 60 % of the frames.

Two things make the errors comparable:

* A coefficient that the reference did not see in training loses a byte of its text; the chunk then decodes
  to zeros (wrong count) or to actions in the thousands (U+FFFD read as a coefficient). This happens on real
  data: in seed 1 of adroit a joint that stays at the upper end of its range for twelve chunks comes out as
  +926, and the mean error as 980. A chunk whose error is above what rounding alone can cause,
  0.25 / scale^2 since the transform is orthonormal, counts as *lost*; the errors of both sides are compared
  on the chunks that the reference does not lose, and the lost ones of either side have their own column.
* We clamp decoded actions to the range, which lowers the error by 1-4 %. The reference is therefore also
  given clamped. The limit of +2 % holds against the smaller of its two errors; an error below both is no
  failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))

from reference_fast import ReferenceFAST

SCALE = 10
VOCAB_SIZE = 1024
STRIDE = 3
HELD_OUT = 0.2
TOLERANCE = 0.02

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class DataSet:
    """One folder under `--data`, its horizon, and what the plan says the reference gives."""

    folder: str
    horizon: int
    expected_tokens: float
    expected_mse: float


DATA_SETS: tuple[DataSet, ...] = (
    DataSet("g1_inspire_bottle", 30, 56, 1.9e-4),
    DataSet("adroit_door", 50, 550, 7.5e-4),
    DataSet("pusht", 10, 5.0, 4.3e-4),
    DataSet("crazyflie_100hz", 50, 44, 6.8e-4),
)


@dataclass(frozen=True)
class Split:
    """Normalised chunks `(n, t, d)` of one seed."""

    train: Floats
    test: Floats


@dataclass(frozen=True)
class Coded:
    """What one tokenizer made of the held-out chunks."""

    tokens: float
    vocab_size: int
    decoded: Floats

    def errors(self, chunks: Floats, clamp: bool = False) -> NDArray[np.float64]:
        """Return the mean squared error of each chunk `(n,)`."""
        decoded = np.clip(self.decoded, -1, 1) if clamp else self.decoded
        errors: NDArray[np.float64] = np.square(decoded.astype(np.float64) - chunks).mean(axis=(1, 2))
        return errors


@dataclass(frozen=True)
class Run:
    """One row of the comparison; ours is None with `--reference-only`."""

    data: str
    seed: int
    train_chunks: int
    test_chunks: int
    reference_tokens: float
    reference_vocab_size: int
    reference_lost: int
    reference_mse: float
    reference_mse_clamped: float
    reference_mse_with_lost: float
    ours_tokens: float | None = None
    ours_vocab_size: int | None = None
    ours_lost: int | None = None
    ours_mse: float | None = None
    ours_mse_with_lost: float | None = None

    @property
    def error_change(self) -> float | None:
        """Our error relative to the better of the reference's two."""
        if self.ours_mse is None:
            return None
        return self.ours_mse / min(self.reference_mse, self.reference_mse_clamped) - 1

    @property
    def failed(self) -> list[str]:
        """The parts of the criterion that do not hold."""
        failed = []
        if self.ours_tokens is not None and self.ours_tokens > self.reference_tokens:
            failed.append("more tokens")
        if self.error_change is not None and not self.error_change <= TOLERANCE:
            failed.append("larger error")
        return failed


def read_episodes(folder: Path) -> list[Floats]:
    """Return the actions `(frames, d)` of every episode."""
    table = pq.read_table(folder / "episodes.parquet", columns=["episode_index", "action"])
    episode = table["episode_index"].to_numpy()
    actions = table["action"].combine_chunks().flatten().to_numpy().reshape(len(episode), -1)
    return [actions[episode == index] for index in np.unique(episode)]


def cut(episodes: Sequence[Floats], horizon: int) -> Floats:
    """Return every `STRIDE`-th chunk `(n, t, d)`; episodes shorter than a chunk give none."""
    windows = [
        np.lib.stride_tricks.sliding_window_view(actions, horizon, axis=0)[::STRIDE]
        for actions in episodes
        if len(actions) >= horizon
    ]
    return np.concatenate(windows).transpose(0, 2, 1)


def split(episodes: Sequence[Floats], horizon: int, seed: int, max_chunks: int) -> Split:
    """Hold out whole episodes, scale by the quantiles of the others, cut."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(episodes))
    held_out = int(HELD_OUT * len(episodes))
    test, train = ([episodes[i] for i in part] for part in (order[:held_out], order[held_out:]))
    low, high = np.quantile(np.concatenate(train).astype(np.float64), [0.01, 0.99], axis=0)
    width = np.where(high > low, high - low, 1)

    def chunks(part: Sequence[Floats]) -> Floats:
        cuts = cut(part, horizon)
        if len(cuts) > max_chunks:
            cuts = cuts[rng.permutation(len(cuts))[:max_chunks]]
        scaled: Floats = np.clip(2 * (cuts - low) / width - 1, -1, 1).astype(np.float32)
        return scaled

    return Split(chunks(train), chunks(test))


def code_with_reference(data: Split, vocab_size: int) -> Coded:
    """Fit the stand-in on the training chunks and send the held-out ones through it."""
    reference = ReferenceFAST.fit(list(data.train), scale=SCALE, vocab_size=vocab_size)
    ids = reference.encode_batch(data.test)
    decoded = reference.decode(ids, *data.test.shape[1:])
    return Coded(sum(map(len, ids)) / len(ids), len(reference), decoded)


def code_with_ours(data: Split, vocab_size: int) -> Coded:
    """The same with this library."""
    from action_tokenizers import FASTTokenizer

    tokenizer = FASTTokenizer(horizon=data.train.shape[1], range="unit", scale=SCALE, vocab_size=vocab_size).fit(
        data.train
    )
    ids = tokenizer.encode(data.test)
    return Coded(float((ids != tokenizer.pad_id).sum() / len(ids)), tokenizer.vocab_size, tokenizer.decode(ids))


def compare(data: Split, vocab_size: int, reference_only: bool = False) -> dict[str, Any]:
    """Return the measured fields of a `Run`."""
    rounding = 1.001 * 0.25 / SCALE**2
    reference = code_with_reference(data, vocab_size)
    errors = reference.errors(data.test)
    intact = errors <= rounding
    measured: dict[str, Any] = {
        "train_chunks": len(data.train),
        "test_chunks": len(data.test),
        "reference_tokens": reference.tokens,
        "reference_vocab_size": reference.vocab_size,
        "reference_lost": int((~intact).sum()),
        "reference_mse": float(errors[intact].mean()),
        "reference_mse_clamped": float(reference.errors(data.test, clamp=True)[intact].mean()),
        "reference_mse_with_lost": float(errors.mean()),
    }
    if not reference_only:
        ours = code_with_ours(data, vocab_size)
        errors = ours.errors(data.test)
        measured |= {
            "ours_tokens": ours.tokens,
            "ours_vocab_size": ours.vocab_size,
            "ours_lost": int((errors > rounding).sum()),
            "ours_mse": float(errors[intact].mean()),
            "ours_mse_with_lost": float(errors.mean()),
        }
    return measured


def markdown(runs: Sequence[Run]) -> str:
    """Return the table, with the orientation numbers in the last column."""
    expected = {data_set.folder: data_set for data_set in DATA_SETS}
    lines = [
        "| data | seed | chunks fit / held out | tokens reference | tokens ours | MSE reference | clamped "
        "| MSE ours | error | lost reference / ours | holds | plan: tokens, MSE |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        plan = expected[run.data]
        ours, change, lost, verdict = ("-", "-"), "-", "-", "-"
        if run.ours_tokens is not None and run.error_change is not None:
            ours = (f"{run.ours_tokens:.2f}", f"{run.ours_mse:.3e}")
            change, lost = f"{run.error_change:+.1%}", str(run.ours_lost)
            verdict = "no: " + ", ".join(run.failed) if run.failed else "yes"
        lines.append(
            f"| {run.data} | {run.seed} | {run.train_chunks} / {run.test_chunks} "
            f"| {run.reference_tokens:.2f} | {ours[0]} "
            f"| {run.reference_mse:.3e} | {run.reference_mse_clamped:.3e} | {ours[1]} | {change} "
            f"| {run.reference_lost} / {lost} | {verdict} "
            f"| {plan.expected_tokens:g}, {plan.expected_mse:.1e} |"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=shared, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--reference-only", action="store_true", help="measure the reference alone")
    parser.add_argument("--smoke", action="store_true", help="one small data set, one seed, small vocabulary")
    parser.add_argument("--strict", action="store_true", help="exit 1 when the criterion does not hold")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every data set and seed; return the exit code."""
    options = parse(arguments)
    data_sets, seeds, max_chunks, vocab_size = DATA_SETS, options.seeds, 8_000, VOCAB_SIZE
    if options.smoke:
        data_sets = tuple(data_set for data_set in DATA_SETS if data_set.folder == "pusht")
        seeds, max_chunks, vocab_size = seeds[:1], 500, 256

    runs = []
    for data_set in data_sets:
        episodes = read_episodes(options.data / data_set.folder)
        for seed in seeds:
            data = split(episodes, data_set.horizon, seed, max_chunks)
            measured = compare(data, vocab_size, options.reference_only)
            runs.append(Run(data_set.folder, seed, **measured))

    holds = None if options.reference_only else not any(run.failed for run in runs)
    print(f"FAST, scale {SCALE}, vocabulary {vocab_size}, at most {max_chunks} chunks, stride {STRIDE}\n")
    print(markdown(runs))
    if holds is not None:
        print(f"\nNever more tokens and at most {TOLERANCE:.0%} more error: {'yes' if holds else 'NO'}.")
    if options.json:
        report = {
            "versions": {name: version(name) for name in ("numpy", "scipy", "tokenizers", "action-tokenizers")},
            "protocol": {
                "scale": SCALE,
                "vocab_size": vocab_size,
                "max_chunks": max_chunks,
                "stride": STRIDE,
                "held_out": HELD_OUT,
            },
            "runs": [asdict(run) | {"error_change": run.error_change, "failed": run.failed} for run in runs],
            "holds": holds,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if options.strict and holds is False else 0


if __name__ == "__main__":
    sys.exit(main())
