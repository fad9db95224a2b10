"""Tokenizers at work in other processes and threads."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from action_tokenizers import ActionTokenizer

SCRIPT = """
import sys
import numpy as np
from action_tokenizers import ActionTokenizer
folder = sys.argv[1]
tokenizer = ActionTokenizer.from_pretrained(folder + "/tokenizer")
ids = tokenizer.encode(np.load(folder + "/actions.npy"))
np.savez(folder + "/found.npz", ids=ids, actions=tokenizer.decode(ids))
"""


def encode_in_workers(tokenizer: ActionTokenizer, actions: np.ndarray, start: str) -> None:
    """Two DataLoader workers encode after the parent has; their ids are the parent's."""
    expected = tokenizer.encode(actions)  # before the workers start: what it leaves behind must not kill them
    loader = DataLoader(
        list(actions),
        batch_size=len(actions) // 4,
        collate_fn=tokenizer.encode,
        num_workers=2,
        multiprocessing_context=start,
    )
    found = list(loader)
    rows = [tuple(row[: int(tokenizer.length(row))]) for ids in found for row in ids]
    assert rows == [tuple(row[: int(tokenizer.length(row))]) for row in expected]


def encode_in_threads(tokenizer: ActionTokenizer, actions: np.ndarray) -> None:
    """Two threads that encode and decode at once get what one gets."""
    ids = tokenizer.encode(actions)
    decoded = tokenizer.decode(ids)
    barrier = threading.Barrier(2)
    wrong: list[object] = []

    def work() -> None:
        barrier.wait()
        try:
            for _ in range(8):
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


def encode_in_another_process(tokenizer: ActionTokenizer, actions: np.ndarray, folder: Path) -> None:
    """A fresh interpreter that loads the folder gives the same ids and actions, bit for bit."""
    tokenizer.save_pretrained(folder / "tokenizer")
    np.save(folder / "actions.npy", actions)
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT, str(folder)], check=True, timeout=300)
    found = np.load(folder / "found.npz")
    ids = tokenizer.encode(actions)
    np.testing.assert_array_equal(found["ids"], ids)
    np.testing.assert_array_equal(found["actions"], tokenizer.decode(ids))
