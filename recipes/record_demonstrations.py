"""Record the demonstrations that the package embeds: three Meta-World tasks, 25 start states each.

    pip install "action-tokenizers[data,sim]"
    python recipes/record_demonstrations.py             # writes action_tokenizers/data/demo, 15 s
    python recipes/record_demonstrations.py --verify    # replays that folder through the simulator, 10 s
    python recipes/record_demonstrations.py --smoke     # one start per task, temporary folder, verified

Meta-World's scripted expert drives the robot. Its action is clipped to [-1, 1], the xyz part receives a
little execution noise, the sum is clipped again and rounded to float32. That *executed* action is what is
recorded, so replaying an episode open loop from its start gives back the recorded states without error.
A start at which the expert fails is tried again with other noise; one that never succeeds is skipped.

The folder is in LeRobot v3.0 format. Three extra columns of ``meta/episodes`` name what it takes to replay an
episode or to record it again: ``metaworld/task``, ``metaworld/start`` (k of ``train_tasks[k]``) and
``metaworld/noise_seed``.

Equal versions of metaworld, numpy and pyarrow write equal bytes on x86-64 Linux with FMA. Where the C
library rounds sin and cos differently, grasps amplify the last bit: replays of the embedded folder still
succeed there, but their states differ by up to 3 cm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from action_tokenizers.integrations.simulators import (
    ACTION_NAMES,
    FPS,
    STATE_NAMES,
    Demonstration,
    MetaWorldTask,
    state_of,
)

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "action_tokenizers" / "data" / "demo"

TASKS = {
    "pick-place-v3": "Pick up the puck and hold it at the goal.",
    "peg-insert-side-v3": "Pick up the peg and insert it sideways into the hole.",
    "assembly-v3": "Pick up the nut and place it onto the peg.",
}
STARTS_PER_TASK = 25
NOISE_SEEDS = range(10)

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"


@dataclass(frozen=True)
class Episode:
    """A demonstration of one of the tasks."""

    task: str
    recorded: Demonstration

    def __len__(self) -> int:
        return len(self.recorded)


# --- recording ---------------------------------------------------------------------------------------------


def record_task(task: str, count: int) -> list[Episode]:
    """``count`` successful episodes from ``count`` distinct starts, the lowest that succeed."""
    simulator = MetaWorldTask(task)
    episodes: list[Episode] = []
    skipped: list[int] = []
    attempts = 0
    for start in range(simulator.starts):
        if len(episodes) == count:
            break
        for noise_seed in NOISE_SEEDS:
            attempts += 1
            recorded = simulator.demonstrate(start, noise_seed)
            if recorded is not None:
                episodes.append(Episode(task, recorded))
                break
        else:
            skipped.append(start)
    if len(episodes) < count:
        raise RuntimeError(f"{task}: only {len(episodes)} of {count} starts succeeded")
    frames = sum(map(len, episodes))
    print(f"{task}: {count} episodes, {frames} frames, {attempts} attempts, starts skipped: {skipped}")
    return episodes


# --- writing -----------------------------------------------------------------------------------------------


def columns_of(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """One row per frame, episodes one after the other."""
    lengths = [len(episode) for episode in episodes]
    task_names = list(TASKS)
    frame_index = np.concatenate([np.arange(length) for length in lengths])
    return {
        "action": np.concatenate([episode.recorded.actions for episode in episodes]),
        "observation.state": np.concatenate([episode.recorded.states for episode in episodes]),
        "next.success": np.concatenate([episode.recorded.successes for episode in episodes]),
        "timestamp": (frame_index / FPS).astype(np.float32),
        "frame_index": frame_index,
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "index": np.arange(sum(lengths)),
        "task_index": np.repeat([task_names.index(episode.task) for episode in episodes], lengths),
    }


def statistics(values: np.ndarray) -> dict[str, list[Any]]:
    """Minimum, maximum, mean and standard deviation per dimension, as LeRobot stores them."""
    values = values.reshape(len(values), -1)
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0, dtype=np.float64).tolist(),
        "std": values.std(axis=0, dtype=np.float64).tolist(),
        "count": [len(values)],
    }


def frame_table(columns: dict[str, np.ndarray]) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        array = pa.array(values.reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(array, values.shape[1]) if values.ndim == 2 else array
    return pa.table(arrays)


def episode_table(episodes: list[Episode], columns: dict[str, np.ndarray]) -> pa.Table:
    rows = []
    begin = 0
    for index, episode in enumerate(episodes):
        end = begin + len(episode)
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [TASKS[episode.task]],
            "length": len(episode),
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": begin,
            "dataset_to_index": end,
            "metaworld/task": episode.task,
            "metaworld/start": episode.recorded.start,
            "metaworld/noise_seed": episode.recorded.noise_seed,
        }
        for name, values in columns.items():
            for statistic, value in statistics(values[begin:end]).items():
                row[f"stats/{name}/{statistic}"] = value
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        rows.append(row)
        begin = end
    return pa.Table.from_pylist(rows)


def task_table() -> pa.Table:
    """Task indices with the task text as the pandas index, which is where LeRobot looks for it."""
    index = "__index_level_0__"
    columns = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, field, kind, dtype in [
            ("task_index", "task_index", "int64", "int64"),
            (None, index, "unicode", "object"),
        ]
    ]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": columns}
    table = pa.table({"task_index": pa.array(range(len(TASKS))), index: pa.array(TASKS.values())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def info_of(episodes: list[Episode], columns: dict[str, np.ndarray]) -> dict[str, Any]:
    names = {"action": list(ACTION_NAMES), "observation.state": list(STATE_NAMES)}
    features = {
        name: {
            "dtype": str(values.dtype),
            "shape": [1] if values.ndim == 1 else [values.shape[1]],
            "names": names.get(name),
        }
        for name, values in columns.items()
    }
    return {
        "codebase_version": "v3.0",
        "robot_type": "sawyer",
        "total_episodes": len(episodes),
        "total_frames": len(columns["index"]),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features,
    }


def write_dataset(folder: Path, episodes: list[Episode]) -> None:
    columns = columns_of(episodes)
    tables = {
        DATA_PATH.format(chunk_index=0, file_index=0): frame_table(columns),
        EPISODES_PATH: episode_table(episodes, columns),
        "meta/tasks.parquet": task_table(),
    }
    documents = {
        "meta/info.json": info_of(episodes, columns),
        "meta/stats.json": {name: statistics(values) for name, values in columns.items()},
    }
    for path in [*tables, *documents]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    for path, table in tables.items():
        # Float columns hardly repeat a value: without dictionaries the file is a third smaller.
        pq.write_table(table, folder / path, compression="zstd", use_dictionary=False)
    for path, document in documents.items():
        (folder / path).write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")


# --- verifying ---------------------------------------------------------------------------------------------


def read_dataset(folder: Path) -> Iterator[Episode]:
    frames = pq.read_table(folder / DATA_PATH.format(chunk_index=0, file_index=0))
    states, actions = (
        frames[name].combine_chunks().flatten().to_numpy().reshape(len(frames), -1)
        for name in ("observation.state", "action")
    )
    successes = frames["next.success"].to_numpy()
    for row in pq.read_table(folder / EPISODES_PATH).to_pylist():
        rows = slice(row["dataset_from_index"], row["dataset_to_index"])
        start, noise_seed = row["metaworld/start"], row["metaworld/noise_seed"]
        recorded = Demonstration(start, noise_seed, states[rows], actions[rows], successes[rows])
        yield Episode(row["metaworld/task"], recorded)


def replay(simulator: MetaWorldTask, recorded: Demonstration) -> tuple[np.ndarray, np.ndarray]:
    """The states and successes that the recorded actions give, executed open loop from the recorded start."""
    states, successes = [], []
    observation = simulator.reset(recorded.start)
    for action in recorded.actions:
        states.append(state_of(observation))
        observation, success = simulator.step(action)
        successes.append(success)
    return np.stack(states), np.array(successes)


def verify(folder: Path) -> None:
    """Replay every episode; ``SystemExit`` unless all succeed with a state error of zero."""
    episodes = list(read_dataset(folder))
    reproduced = True
    for task in TASKS:
        simulator = MetaWorldTask(task)
        succeeded, errors = [], []
        for recorded in (episode.recorded for episode in episodes if episode.task == task):
            states, successes = replay(simulator, recorded)
            succeeded.append(successes.any())
            errors.append(np.abs(states - recorded.states).max())
            reproduced &= np.array_equal(successes, recorded.successes)
        counts = f"{sum(succeeded)} of {len(succeeded)} replays succeed"
        print(f"{task}: {counts}, largest state error {max(errors):g}")
        reproduced &= all(succeeded) and not any(errors)
    if not reproduced:
        raise SystemExit(f"{folder}: replay does not reproduce the recording")


# -----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="the folder (default: the embedded data set)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--verify", action="store_true", help="replay the folder instead of recording it")
    mode.add_argument("--smoke", action="store_true", help="one start per task, into a temporary folder")
    args = parser.parse_args()

    folder = args.out or (Path(tempfile.mkdtemp(prefix="demonstrations-")) if args.smoke else DEMO_FOLDER)
    if not args.verify:
        count = 1 if args.smoke else STARTS_PER_TASK
        write_dataset(folder, [episode for task in TASKS for episode in record_task(task, count)])
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{folder}: {size / 1e6:.2f} MB")
    if args.verify or args.smoke:
        verify(folder)


if __name__ == "__main__":
    main()
