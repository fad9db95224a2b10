"""Tokenizers at work in other processes and threads."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from action_tokenizers import ActionTokenizer

SCRIPT = """
import sys
import numpy as np
from action_tokenizers import ActionTokenizer
folder = sys.argv[1]
actions = np.load(folder + "/actions.npy")
for i in range(int(sys.argv[2])):
    tokenizer = ActionTokenizer.from_pretrained(f"{folder}/{i}")
    ids = tokenizer.encode(actions)
    np.savez(f"{folder}/{i}.npz", ids=ids, actions=tokenizer.decode(ids))
"""


class EncodeWith:
    """A collate function that spawned workers can import: the ids of a batch under each tokenizer."""

    def __init__(self, tokenizers: Sequence[ActionTokenizer]) -> None:
        self.tokenizers = tokenizers

    def __call__(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        return [tokenizer.encode(batch) for tokenizer in self.tokenizers]


def _rows(tokenizer: ActionTokenizer, ids: Any) -> list[list[int]]:
    return [row[:m].tolist() for row, m in zip(ids, tokenizer.length(ids), strict=True)]


def encode_in_workers(tokenizers: Sequence[ActionTokenizer], actions: np.ndarray, start: str) -> None:
    """Two DataLoader workers encode after the parent has; their ids are the parent's."""
    # the parent first, on all its threads: what that leaves behind must not kill the workers
    expected = [_rows(tokenizer, tokenizer.encode(actions)) for tokenizer in tokenizers]
    loader = DataLoader(
        list(actions),
        batch_size=len(actions) // 4,
        collate_fn=EncodeWith(tokenizers),
        num_workers=2,
        multiprocessing_context=start,
        timeout=120,
    )
    batches = list(loader)
    for i, tokenizer in enumerate(tokenizers):
        assert [row for batch in batches for row in _rows(tokenizer, batch[i])] == expected[i]


def encode_in_threads(tokenizer: ActionTokenizer, actions: np.ndarray) -> None:
    """Two threads that encode and decode at once get what one gets."""
    ids = tokenizer.encode(actions)
    decoded = tokenizer.decode(ids)
    barrier = threading.Barrier(2)
    wrong: list[object] = []

    def work() -> None:
        barrier.wait()
        try:
            for _ in range(4):
                if not np.array_equal(tokenizer.encode(actions), ids):
                    wrong.append("ids")
                if not np.array_equal(tokenizer.decode(ids), decoded):
                    wrong.append("actions")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def encode_in_another_process(tokenizers: Sequence[ActionTokenizer], actions: np.ndarray, folder: Path) -> None:
    """A fresh interpreter that loads the folders gives the same ids and actions, bit for bit."""
    for i, tokenizer in enumerate(tokenizers):
        tokenizer.save_pretrained(folder / str(i))
    np.save(folder / "actions.npy", actions)
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(folder), str(len(tokenizers))]
    subprocess.run(command, check=True, timeout=300)
    for i, tokenizer in enumerate(tokenizers):
        found = np.load(folder / f"{i}.npz")
        ids = tokenizer.encode(actions)
        np.testing.assert_array_equal(found["ids"], ids)
        np.testing.assert_array_equal(found["actions"], tokenizer.decode(ids))
