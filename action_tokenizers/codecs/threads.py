"""Row blocks over a small thread pool: the kernels release the GIL, so threads are enough.

numba's own `parallel=True` is not used: its OpenMP layer kills DataLoader workers that were forked after the
parent had encoded, and its work queue aborts when two threads enter it at once.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import pairwise

import torch

__all__ = ["all_rows", "over_rows"]

# per thread: enough that one which comes late costs little, few enough that a block's own cost does not count
BLOCKS = 4

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = threading.Lock()


def over_rows(kernel: Callable[[int, int], None], rows: int, *, least: int = 256) -> None:
    """Call `kernel(start, stop)` until it has covered `rows` rows, on as many threads as torch may use.

    torch's own setting decides the number, so a DataLoader worker (one torch thread) never oversubscribes.
    A block has at least `least` rows; whatever one block raises is raised here. Whoever is free takes the next block:
    for milliseconds after an operation of torch its threads spin on the other cores, and a thread that must wait for
    one of these leaves its share to this one.
    """
    threads = min(torch.get_num_threads(), max(1, rows // least))
    if threads == 1:
        if rows:
            kernel(0, rows)
        return
    blocks = min(BLOCKS * threads, rows // least)
    left = deque(pairwise([rows * i // blocks for i in range(blocks + 1)]))

    def work() -> None:
        while True:
            try:
                span = left.popleft()
            except IndexError:  # asked for and not looked at before: another thread may take the last one in between
                return
            try:
                kernel(*span)
            except BaseException:
                left.clear()
                raise

    begun: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # the interpreter is about to end and starts no threads: this one does it all
            for _ in range(threads - 1):
                begun.append(_workers(threads).submit(work))
        work()
    finally:
        left.clear()
        # nobody writes to the caller's arrays after this call
        wait([future for future in begun if not future.cancel()])
    for future in begun:
        if not future.cancelled():
            future.result()


def all_rows(kernel: Callable[[int, int], bool], rows: int, *, least: int = 256) -> bool:
    """Call `kernel(start, stop)` as `over_rows` does, and say whether it returned true for every block."""
    fine: list[bool] = []
    over_rows(lambda i, j: fine.append(kernel(i, j)), rows, least=least)
    return all(fine)


def _workers(threads: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    pool = _pool
    if pool is None or _pool_size < threads:
        # a smaller pool may be in use by another thread: it is left to finish and collected then
        with _lock:
            pool = _pool
            if pool is None or _pool_size < threads:
                pool = _pool = ThreadPoolExecutor(threads, thread_name_prefix="action_tokenizers")
                _pool_size = threads
    return pool


def _forget_pool() -> None:
    """The threads do not survive a fork: the child starts its own."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()  # another thread may have held the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
