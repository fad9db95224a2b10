"""Row blocks over a small thread pool: the kernels release the GIL, so threads are enough.

numba's own `parallel=True` is not used: its OpenMP layer kills DataLoader workers that were forked after the
parent had encoded, and its work queue aborts when two threads enter it at once.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

__all__ = ["all_rows", "at_once", "over_rows"]

T = TypeVar("T")

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
    work = _Work(kernel, pairwise([rows * i // blocks for i in range(blocks + 1)]))
    error = None
    try:
        _ask(work.help, threads - 1)
        work.do()
    finally:
        error = work.end()  # nobody writes to the caller's arrays after this call
    if error is not None:
        try:
            raise error
        finally:
            del error  # it holds this frame, which would hold it, and with it the caller's arrays


class _Work:
    """The blocks of one call, which several threads take from."""

    def __init__(self, kernel: Callable[[int, int], None], spans: Iterable[tuple[int, int]]) -> None:
        self._errors: list[BaseException] = []  # of those that help
        self._kernel: Callable[[int, int], None] | None = kernel
        self._left = deque(spans)
        self._busy, self._change = 0, threading.Condition()

    def do(self) -> None:
        """Take blocks until there are none; after an error nobody takes any."""
        while True:
            try:
                span = self._left.popleft()
            except IndexError:  # asked for and not looked at before: another may take the last one in between
                return
            try:
                self._kernel(*span)  # type: ignore[misc]
            except BaseException:
                self._left.clear()
                raise

    def help(self) -> None:
        """Do some of it, unless it is over: a thread may come to it late."""
        with self._change:
            if self._kernel is None:
                return
            self._busy += 1
        try:
            self.do()
        except BaseException as error:  # raised by the thread that waits for it
            self._errors.append(error)
        finally:
            with self._change:
                self._busy -= 1
                self._change.notify()

    def end(self) -> BaseException | None:
        """Wait for those that help, also when interrupted, let nobody begin, and return what one of them raised."""
        try:
            with self._change:
                self._left.clear()
                self._change.wait_for(lambda: not self._busy)
                self._kernel = None  # what still lies in a queue shall hold no arrays
                errors, self._errors = self._errors, []
        except BaseException:
            self.end()
            raise
        return errors[0] if errors else None


def _ask(help_out: Callable[[], None], threads: int) -> None:
    """Ask so many threads to help, as far as there are any."""
    global _pool
    try:
        for _ in range(threads):
            _workers(threads + 1).submit(help_out)
    except RuntimeError:
        # no thread can be started, or the interpreter is about to end: those there are do it all, and what may lie in a
        # queue that nobody reads goes with it
        with _lock:
            _pool = None


def all_rows(kernel: Callable[[int, int], bool], rows: int, *, least: int = 256) -> bool:
    """Call `kernel(start, stop)` as `over_rows` does, and say whether it returned true for every block."""
    fine: list[bool] = []
    over_rows(lambda i, j: fine.append(kernel(i, j)), rows, least=least)
    return all(fine)


def at_once(do: Callable[[int], T], number: int) -> list[T]:
    """Return `do(0)` ... `do(number - 1)`, called as `over_rows` does."""
    found: dict[int, T] = {}

    def some(first: int, stop: int) -> None:
        for i in range(first, stop):
            found[i] = do(i)

    over_rows(some, number, least=1)
    return [found[i] for i in range(number)]


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
