"""`kernel`: compile a function with numba, keeping the machine code on disk where a disk will take it."""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["kernel", "loose_kernel"]


def kernel(function: Callable[..., Any]) -> Any:
    """Return `function` compiled without the GIL, serial, its code cached beside the source or in the user's cache.

    In a read-only installation without a home (a container's service user) there is nowhere to cache: then every
    process compiles anew, instead of failing at import.
    """
    return _compile(function)


def loose_kernel(function: Callable[..., Any]) -> Any:
    """Return `function` compiled like a `kernel`, but with sums of floats in any order, for finite numbers only."""
    return _compile(function, fastmath={"reassoc", "contract", "nnan", "nsz"})


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(nogil=True, **options)(function)
