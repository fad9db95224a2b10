"""`kernel`: compile a function with numba, keeping the machine code on disk where a disk will take it."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

__all__ = ["inner_kernel", "kernel", "loose_kernel"]

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Return `function` compiled without the GIL, serial, its code cached beside the source or in the user's cache.

    In a read-only installation without a home (a container's service user) there is nowhere to cache: then every
    process compiles anew, instead of failing at import. An edit of any file beside this one makes the kernels anew.
    """
    return _compile(function)


def inner_kernel(function: F) -> F:
    """Return `function` for kernels that call it for every element: it becomes part of each of them.

    A call between kernels counts the references to every array it hands over, which may cost more than what it does.
    """
    return cast(F, numba.njit(nogil=True, inline="always")(function))


def loose_kernel(function: F) -> F:
    """Return `function` compiled like a `kernel`, but with sums of floats in any order, for finite numbers only."""
    return _compile(function, fastmath={"reassoc", "contract", "nnan", "nsz"})


def _compile(function: F, **options: Any) -> F:
    try:
        compiled = numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:
        return cast(F, numba.njit(nogil=True, **options)(function))
    # numba looks at the kernel's own file alone, but machine code also holds the kernels and constants of other files
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None:
        index._source_stamp = (index._source_stamp, _digest())
    return cast(F, compiled)


@functools.cache
def _digest() -> str:
    """Return a digest of all sources beside this one, names included."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
