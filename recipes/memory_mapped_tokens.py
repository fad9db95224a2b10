"""Encode a data set once, train from the file: ids in a memory map, read by DataLoader workers without copies.

    python recipes/memory_mapped_tokens.py --data my_robot/ --out tokens/      # any data set that `fit` reads
    python recipes/memory_mapped_tokens.py --smoke                             # synthetic, in a temporary folder

A folder holds `ids.npy`, the ids of all chunks one after another, int32 and without pads; `ends.npy`, where each
chunk's end; `tokenizer/`, the tokenizer that made them; and `tokens.json`, its digest, that of the ends and the number
of ids. It is written aside and renamed when it is complete. LeRobot and parquet data are read piece by piece (other
layouts as a whole) and ids are written batch by batch, so that neither needs to fit in memory; 8 bytes per chunk do.
`TokenFile` is a data set of such a folder for `torch.utils.data.DataLoader`: workers, forked or spawned, share its
pages through the operating system's cache, and `tokenizer.collate` makes padded ids and masks of its items. Encoding
itself may also run inside the workers, as `EncodeChunks` shows: torch gives a worker one thread, and so do the kernels
of this library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from action_tokenizers import ActionTokenizer, Episodes, FASTTokenizer
from action_tokenizers.data import smooth_episodes, stream
from action_tokenizers.data.chunks import gather, plan_chunks
from action_tokenizers.data.readers.detect import layout_of
from action_tokenizers.data.shards import STREAMED
from action_tokenizers.errors import FormatError
from action_tokenizers.integrations.token_shards import tokenizer_digest

IDS, ENDS, TOKENIZER, FACTS = "ids.npy", "ends.npy", "tokenizer", "tokens.json"
BATCH = 4096


def write_tokens(tokenizer: ActionTokenizer, batches: Iterable[NDArray[np.floating]], folder: Path) -> int:
    """Write the ids of batches of chunks `(n, t, d)` and the tokenizer to `folder`; return the number of chunks.

    Raises:
        FileExistsError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"expected a new or an empty folder, got {folder}; remove it or name another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.writing-{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        count = _write(tokenizer, batches, aside)
        if folder.exists():  # empty; not every system renames onto a folder
            folder.rmdir()
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return count


def _write(tokenizer: ActionTokenizer, batches: Iterable[NDArray[np.floating]], folder: Path) -> int:
    ends: list[NDArray[np.int64]] = []
    total = 0
    with (folder / IDS).open("wb") as file:
        _write_header(file, 0)
        for batch in batches:
            ids = tokenizer.encode(batch)
            mask = tokenizer.pad_mask(ids)
            file.write(ids[mask].astype(np.int32).tobytes())  # row by row: a mask keeps the order
            ends.append(total + np.cumsum(mask.sum(1)))
            total += int(mask.sum())
        file.seek(0)
        _write_header(file, total)
    np.save(folder / ENDS, np.concatenate(ends) if ends else np.empty(0, np.int64))
    tokenizer.save_pretrained(folder / TOKENIZER)
    facts = {"tokenizer": tokenizer_digest(tokenizer), "ends": _digest(folder / ENDS), "ids": total}
    (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    for path in folder.rglob("*"):  # else, after a power cut, the folder's new name could stand before the contents
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    return sum(map(len, ends))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_header(file: Any, length: int) -> None:
    """Write the header of a one-dimensional .npy file; numpy leaves room in it for the length to grow."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": (length,)})


class TokenFile(Dataset[NDArray[np.int64]]):
    """The ids of one chunk per item, from a folder that `write_tokens` wrote.

    The map is opened at the first item and left out of pickles, so that a spawned worker opens its own.

    Args:
        folder: where it lies.
        tokenizer: the one whose ids they must be; None: the one that lies beside them.

    Raises:
        FormatError: files that do not belong together, or that another tokenizer made.
    """

    def __init__(self, folder: str | Path, tokenizer: ActionTokenizer | None = None) -> None:
        self.folder = Path(folder)
        self._ids: NDArray[np.int32] | None = None
        try:
            facts = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
            made_by, ends, total = facts["tokenizer"], facts["ends"], facts["ids"]
            if _digest(self.folder / ENDS) != ends:
                raise ValueError(f"{ENDS} is another")
            self.ends = np.load(self.folder / ENDS)
            if len(self._open()) != total:
                raise ValueError(f"{len(self._open())} ids instead of {total} in {IDS}")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"expected what was written to {self.folder}, got {error}; write the folder anew"
            ) from error
        given = ActionTokenizer.from_pretrained(self.folder / TOKENIZER) if tokenizer is None else tokenizer
        if tokenizer_digest(given) != made_by:
            raise FormatError(
                f"expected the tokenizer that made the ids of {self.folder}, got another; write the folder anew"
            )

    def _open(self) -> NDArray[np.int32]:
        ids: NDArray[np.int32] = np.load(self.folder / IDS, mmap_mode="r" if len(self.ends) else None)
        return ids

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> NDArray[np.int64]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"expected a chunk in 0..{len(self) - 1}, got {i}")
        if self._ids is None:
            self._ids = self._open()
        i %= len(self)
        return self._ids[self.ends[i - 1] if i else 0 : self.ends[i]].astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids": None}


class EncodeChunks:
    """A collate function that encodes in the workers: chunks `(t, d)` to ids `(b, n)` and a mask `(b, n)`."""

    def __init__(self, tokenizer: ActionTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, chunks: Sequence[NDArray[np.floating]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.from_numpy(self.tokenizer.encode(np.stack(chunks)))
        return ids, self.tokenizer.pad_mask(ids)


def batches_of(pieces: Iterable[Episodes], horizon: int) -> Iterable[NDArray[np.floating]]:
    """Yield the chunks of all episodes, some thousand at a time."""
    for episodes in pieces:
        plan = plan_chunks(episodes, horizon)
        for start in range(0, len(plan), BATCH):
            yield gather(episodes, plan[start : start + BATCH]).actions


def pieces_of(data: str) -> Iterable[Episodes]:
    """Return the episodes of a data set, piece by piece where its layout is of files that can be read so."""
    if Path(data).exists() and layout_of(Path(data)) not in STREAMED:
        return [Episodes.load(data)]
    return stream(data, state=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, write, read once through two workers; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data set; see `Episodes.load`")
    parser.add_argument("--out", type=Path, help="folder for the ids")
    parser.add_argument("--horizon", type=int, help="steps per chunk; one second of data if not given")
    parser.add_argument("--smoke", action="store_true", help="a few synthetic episodes")
    options = parser.parse_args(arguments)
    if options.smoke == (options.data is not None) or (options.data and not options.out):
        parser.error("expected --smoke, or --data and --out")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary) / "tokens"
        smoke = [smooth_episodes(12, seed=0)]
        # once for the fit, which keeps a sample, and once for the ids
        tokenizer = FASTTokenizer(horizon=options.horizon).fit(smoke if options.smoke else pieces_of(options.data))
        pieces = smoke if options.smoke else pieces_of(options.data)
        count = write_tokens(tokenizer, batches_of(pieces, int(tokenizer.horizon or 1)), folder)
        data = TokenFile(folder, tokenizer)
        loader = DataLoader(data, batch_size=64, num_workers=2, collate_fn=tokenizer.collate, shuffle=True)
        said = sum(int(mask.sum()) for _, mask in loader)
    print(f"{count} chunks, {said} ids, {said / count:.1f} per chunk, read through 2 workers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
