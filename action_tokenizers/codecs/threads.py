"""Row blocks over a small thread pool: the kernels release the GIL, so threads are enough.

numba's own `parallel=True` is not used: its OpenMP layer kills DataLoader workers that were forked after the
parent had encoded, and its work queue aborts when two threads enter it at once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

__all__ = ["over_rows"]

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def over_rows(kernel: Callable[[int, int], None], rows: int, *, least: int = 256) -> None:
    """Call `kernel(start, stop)` until it has covered `rows` rows, on as many threads as torch may use.

    torch's own setting decides the number, so a DataLoader worker (one torch thread) never oversubscribes.
    A block has at least `least` rows; whatever one block raises is raised here.
    """
    threads = min(torch.get_num_threads(), max(1, rows // least))
    if threads == 1:
        if rows:
            kernel(0, rows)
        return
    bounds = [rows * i // threads for i in range(threads + 1)]
    futures = [_workers(threads).submit(kernel, *span) for span in pairwise(bounds[1:])]
    kernel(0, bounds[1])  # this thread works too
    for future in futures:
        future.result()


def _workers(threads: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    pool = _pool
    if pool is None or _pool_size < threads:
        # a smaller pool may be in use by another thread: it is left to finish and collected then
        pool = _pool = ThreadPoolExecutor(threads, thread_name_prefix="action_tokenizers")
        _pool_size = threads
    return pool


def _forget_pool() -> None:
    """The threads do not survive a fork: the child starts its own."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
