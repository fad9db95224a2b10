"""One thing in a process of its own: how long the first call takes, and how much memory a job needs.

`run_speed.py` starts it; by hand: python recipes/benchmarks/fresh_process.py first_call ours 50 14
Prints one line of JSON. The data are as in `run_speed.py`. Ours and the stand-in prepare the same way, so that what the
peaks have in common (interpreter, libraries, data) is the same; `before` is the peak when the job begins.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

SCALE, VOCAB_SIZE = 10, 1024


def first_call(side: str, horizon: int, action_dim: int) -> dict[str, float]:
    """Return the milliseconds of the import, of the first and the second call of encode and decode on one chunk.

    A small fit comes before, in which our training kernels are loaded, or compiled; the codec's are not.
    """
    taken: dict[str, float] = {}

    def take(name: str, job: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = job()
        taken[name] = (time.perf_counter() - start) * 1e3
        return result

    def load() -> Any:
        if side == "ours":
            from action_tokenizers import FASTTokenizer

            return FASTTokenizer
        from reference_fast import ReferenceFAST

        return ReferenceFAST

    kind = take("import", load)
    from action_tokenizers.data.synthetic import smooth_chunks

    train, one = smooth_chunks(500, horizon, action_dim, seed=1), smooth_chunks(1, horizon, action_dim, seed=0)
    tokenizer = take("fit", lambda: _fit(kind, side, train))
    for name in ("first", "second"):
        ids = take(f"{name} encode", lambda: tokenizer.encode(one))
        take(f"{name} decode", lambda ids=ids: _decode(tokenizer, side, ids, horizon, action_dim))
    return taken


def memory(side: str, operation: str, chunks: int, horizon: int, action_dim: int) -> dict[str, float]:
    """Return the peak memory of the process in MB, before and after an operation on so many chunks."""
    from reference_fast import ReferenceFAST

    from action_tokenizers import FASTTokenizer
    from action_tokenizers.data.synthetic import smooth_chunks

    kind: Any = FASTTokenizer if side == "ours" else ReferenceFAST
    train = smooth_chunks(500, horizon, action_dim, seed=1)
    actions = _many(smooth_chunks, chunks, horizon, action_dim)
    tokenizer = _fit(kind, side, train)
    _decode(tokenizer, side, tokenizer.encode(actions[:8]), horizon, action_dim)
    before = _peak()
    if operation == "fit":
        _fit(kind, side, actions)
    else:
        ids = tokenizer.encode(actions)
        if operation == "decode":
            before = _peak()
            _decode(tokenizer, side, ids, horizon, action_dim)
    return {"before": before, "peak": _peak()}


def _many(make: Any, chunks: int, horizon: int, action_dim: int) -> Any:
    """Return chunks without the peak that making all of them at once would leave behind."""
    import numpy as np

    actions = np.empty((chunks, horizon, action_dim), np.float32)
    for start in range(0, chunks, 1000):
        actions[start : start + 1000] = make(min(1000, chunks - start), horizon, action_dim, seed=2 + start)
    return actions


def _fit(kind: Any, side: str, chunks: Any) -> Any:
    if side == "ours":
        return kind(horizon=chunks.shape[1], range="unit", scale=SCALE, vocab_size=VOCAB_SIZE).fit(chunks)
    return kind.fit(list(chunks), scale=SCALE, vocab_size=VOCAB_SIZE)


def _decode(tokenizer: Any, side: str, ids: Any, horizon: int, action_dim: int) -> Any:
    return tokenizer.decode(ids) if side == "ours" else tokenizer.decode(ids, horizon, action_dim)


def _peak() -> float:
    """Return the peak memory in MB: of this program, where the system says so.

    On Linux the peak that getrusage knows survives exec, so it may be that of whoever started this process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit code."""
    what, side, *rest = sys.argv[1:] if arguments is None else arguments
    if what == "first_call":
        print(json.dumps(first_call(side, *map(int, rest))))
    else:
        print(json.dumps(memory(side, rest[0], *map(int, rest[1:]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
