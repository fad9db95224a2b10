"""Row blocks over the thread pool: every row once, errors heard, and no trouble after a fork."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from action_tokenizers.codecs import threads
from action_tokenizers.codecs.threads import all_rows, at_once, over_rows


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.usefixtures("torch_threads")
def test_covers_every_row_once(count):
    torch.set_num_threads(count)
    for rows in [0, 1, 2, 5, 7, 8, 15, 16, 17, 63, 64, 100, 1000, 1001]:
        for least in (1, 2, 7, 256):
            seen = np.zeros(rows, np.int64)
            spans = []

            def kernel(start: int, stop: int, seen=seen, spans=spans) -> None:
                spans.append((start, stop))
                seen[start:stop] += 1

            over_rows(kernel, rows, least=least)
            assert (seen == 1).all()
            assert all(start < stop for start, stop in spans)
            blocks = min(threads.BLOCKS * count, max(1, rows // least)) if count > 1 else 1
            assert len(spans) == (blocks if rows else 0)
            assert min((stop - start for start, stop in spans), default=least) >= min(least, rows)


LATE = """
    import atexit, threading, time
    import numpy as np, torch
    from action_tokenizers.codecs.threads import over_rows

    torch.set_num_threads(2)
    seen = np.zeros((3, 1000), np.int64)

    def count(i):
        over_rows(lambda start, stop: np.add.at(seen[i], np.arange(start, stop), 1), 1000, least=10)
        print((seen[i] == 1).all())

    def late():
        time.sleep(0.5)
        count(1)

    {first}
    atexit.register(count, 2)
    threading.Thread(target=late).start()
"""


@pytest.mark.parametrize(("first", "said"), [("count(0)", 3), ("", 2)])
def test_works_alone_where_the_interpreter_is_about_to_end(first, said):
    script = textwrap.dedent(LATE.format(first=first))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True"] * said, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.usefixtures("torch_threads")
def test_all_rows_hears_every_block(count):
    torch.set_num_threads(count)
    assert all_rows(lambda start, stop: False, 0)
    for wrong in (None, 0, 50, 99):
        seen = np.zeros(100, np.int64)

        def kernel(start: int, stop: int, seen=seen, wrong=wrong) -> bool:
            seen[start:stop] += 1
            return wrong is None or not start <= wrong < stop

        assert all_rows(kernel, 100, least=10) == (wrong is None)
        assert (seen == 1).all()  # also after one that says no


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.usefixtures("torch_threads")
def test_at_once_returns_in_order(count):
    torch.set_num_threads(count)
    for number in (0, 1, 2, 7):
        assert at_once(lambda i: i * i, number) == [i * i for i in range(number)]


@pytest.mark.usefixtures("torch_threads")
def test_nobody_writes_after_an_interrupt():
    """Ctrl-C in a thread that has done its blocks and waits for one that has not."""
    torch.set_num_threads(2)
    main, begun, written = threading.get_ident(), threading.Barrier(2, timeout=20), []

    def kernel(start: int, stop: int) -> None:
        if start in (0, 25):  # one each
            begun.wait()
        if threading.get_ident() != main:
            time.sleep(0.2)  # the other thread takes what is left, and waits
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.3)
            written.append(start)

    with pytest.raises(KeyboardInterrupt):
        over_rows(kernel, 100, least=25)
    before = len(written)
    assert before == 1
    time.sleep(0.5)
    assert len(written) == before


@pytest.mark.parametrize("fails", ["main", "helper", "both"])
@pytest.mark.usefixtures("torch_threads")
def test_an_error_holds_the_arrays_no_longer_than_itself(fails):
    """Without the collector of rings, which may come late to arrays of gigabytes."""
    torch.set_num_threads(2)
    main, array = threading.get_ident(), np.zeros(10)
    begun, alive = threading.Barrier(2, timeout=20), weakref.ref(array)

    def call(array: np.ndarray) -> None:
        def kernel(start: int, stop: int) -> None:
            if start in (0, 25):
                begun.wait()
            if fails in ("both", "main" if threading.get_ident() == main else "helper"):
                raise ValueError(len(array))

        over_rows(kernel, 100, least=25)

    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            call(array)
            raise AssertionError("no error was heard")
        del array
        patience = time.monotonic() + 20
        while alive() is not None and time.monotonic() < patience:  # the other thread may not have left it yet
            time.sleep(0.01)
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("torch_threads")
def test_uses_several_threads():
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=20)  # nobody passes alone
    names = []

    def kernel(start: int, stop: int) -> None:
        names.append(threading.current_thread().name)
        meeting.wait()

    over_rows(kernel, 2, least=1)
    assert len(set(names)) == 2
    assert threading.current_thread().name in names


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.usefixtures("torch_threads")
def test_raises_what_a_block_raises(bad):
    torch.set_num_threads(3)

    def kernel(start: int, stop: int) -> None:
        if start == bad:
            raise KeyError(f"block {start}")

    with pytest.raises(KeyError, match=f"block {bad}"):
        over_rows(kernel, 3, least=1)
    seen = []
    over_rows(lambda i, j: seen.append((i, j)), 3, least=1)  # and the pool still works
    assert sorted(seen) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.usefixtures("torch_threads")
def test_nobody_minds_that_another_thread_took_the_last_block():
    torch.set_num_threads(4)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(3000):
            seen = []
            over_rows(lambda i, j, seen=seen: seen.append(i), 16, least=1)
            assert len(seen) == 16
    finally:
        sys.setswitchinterval(before)


@pytest.mark.usefixtures("torch_threads")
def test_nobody_works_any_more_after_it_raised(monkeypatch):
    torch.set_num_threads(3)
    over_rows(lambda i, j: None, 12, least=1)
    submit, asked, rows = threads._pool.submit, [], []

    class Stop(BaseException):
        """As a keyboard interrupt, which may come anywhere."""

    def second_fails(work):
        asked.append(work)
        if len(asked) == 2:
            raise failure
        return submit(work)

    def slow(start: int, stop: int) -> None:
        time.sleep(0.02)
        rows.append(start)

    monkeypatch.setattr(threads._pool, "submit", second_fails)
    failure: BaseException = Stop()
    with pytest.raises(Stop):
        over_rows(slow, 12, least=1)
    written = len(rows)
    time.sleep(0.1)
    assert len(rows) == written < 12


@pytest.mark.usefixtures("torch_threads")
def test_where_no_thread_can_be_started_those_there_are_do_it_all(monkeypatch):
    """The pool queues what it cannot start a thread for: late, another of its threads may come to it."""
    torch.set_num_threads(3)
    late, submit = [], threads.ThreadPoolExecutor.submit

    def queued_but_not_started(pool, work):
        late.append(work)
        if len(late) % 2 == 0:
            raise RuntimeError("can't start new thread")
        return submit(pool, work)

    monkeypatch.setattr(threads.ThreadPoolExecutor, "submit", queued_but_not_started)
    held = []
    for _ in range(5):
        seen = np.zeros(1000, np.int64)
        held.append(weakref.ref(seen))

        def kernel(start: int, stop: int, seen=seen) -> None:
            seen[start:stop] += 1

        over_rows(kernel, 1000, least=10)
        assert (seen == 1).all()
        for work in late:
            work()
        assert (seen == 1).all()
        assert threads._pool is None  # and its queue with it
    del seen, kernel
    gc.collect()
    assert not any(array() is not None for array in held)


@pytest.mark.usefixtures("torch_threads")
def test_a_thread_that_comes_while_the_last_blocks_are_worked_on_is_waited_for():
    torch.set_num_threads(2)
    for _ in range(30):
        seen = np.zeros(8, np.int64)

        def slow_elsewhere(start: int, stop: int, seen=seen) -> None:
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.003)
            seen[start:stop] += 1

        over_rows(slow_elsewhere, 8, least=1)
        assert (seen == 1).all()


@pytest.mark.usefixtures("torch_threads")
def test_the_pool_grows_and_is_kept():
    torch.set_num_threads(2)
    over_rows(lambda i, j: None, 100, least=1)
    small = threads._pool
    torch.set_num_threads(5)
    over_rows(lambda i, j: None, 100, least=1)
    large = threads._pool
    torch.set_num_threads(2)
    over_rows(lambda i, j: None, 100, least=1)
    assert threads._pool is large
    assert threads._pool_size >= 5
    assert small is not None


@pytest.mark.usefixtures("torch_threads")
def test_several_callers_at_once():
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 3000, 60).tolist()

    def one(rows: int) -> bool:
        seen = np.zeros(rows, np.int64)

        def kernel(start: int, stop: int) -> None:
            seen[start:stop] += 1

        over_rows(kernel, rows, least=16)
        return bool((seen == 1).all())

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(one, sizes))


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="needs fork")
@pytest.mark.usefixtures("torch_threads")
def test_works_in_a_child_that_was_forked_after_use():
    """A DataLoader worker: the parent's pool has no threads there, and waiting for them would last for ever."""
    torch.set_num_threads(2)
    over_rows(lambda i, j: None, 100, least=1)
    assert threads._pool is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(2)
            seen = np.zeros(100, np.int64)

            def kernel(start: int, stop: int) -> None:
                seen[start:stop] += 1

            waiting = threading.Thread(target=over_rows, args=(kernel, 100), kwargs={"least": 1}, daemon=True)
            waiting.start()
            waiting.join(20)
            code = 0 if not waiting.is_alive() and (seen == 1).all() and threads._pool is not None else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    over_rows(lambda i, j: None, 100, least=1)  # the parent's pool is as it was


FORKED = """
    import os, signal, sys
    import numpy as np, torch
    from action_tokenizers import BinningTokenizer, FASTTokenizer, KMeansTokenizer, ResidualVQTokenizer

    torch.set_num_threads(4)
    chunks = np.random.default_rng(0).uniform(-1, 1, (3000, 8, 3)).astype(np.float32)
    families = (
        BinningTokenizer(bins=16),
        FASTTokenizer(vocab_size=300),
        KMeansTokenizer(codebook_size=32, groups=[[2, 0], [1]]),
        KMeansTokenizer(codebook_size=32, horizon=8, scope="chunk"),
        ResidualVQTokenizer(levels=2, codebook_size=16),
    )
    fitted = [family.fit(chunks[:300]) for family in families]
    ids = [tokenizer.encode(chunks) for tokenizer in fitted]
    torch.mm(torch.rand(1000, 1000), torch.rand(1000, 1000))  # torch's threads are there, and are not in the child
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = [np.array_equal(tokenizer.encode(chunks), before) for tokenizer, before in zip(fitted, ids)]
        decoded = [np.isfinite(tokenizer.decode(before)).all() for tokenizer, before in zip(fitted, ids)]
        os._exit(0 if all(same) and all(decoded) else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_every_family_works_in_a_forked_child_that_keeps_its_threads():
    script = textwrap.dedent(FORKED)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
