"""What the system says of this machine or this moment, and not of a file: it may be read later, or elsewhere."""

import errno

__all__ = ["raise_of_the_system"]

NOT_BROKEN = frozenset(
    getattr(errno, name)
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR"),
        *("EACCES", "EPERM", "ENOSPC", "EDQUOT", "EROFS", "EIO", "EPIPE"),
        *("ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH"),
    )
    if hasattr(errno, name)
)


def raise_of_the_system(error: BaseException, name: str) -> None:
    """Raise the error behind `error` that says nothing about the file `name`, if there is such.

    Raises:
        OSError: Too many open files, no permission, a lost connection and the like; of the original kind, and names
            the file.
        MemoryError: As it came.
    """
    first: BaseException | None = None  # the one that all others came of: it names no file yet
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, MemoryError) or (isinstance(below, OSError) and below.errno in NOT_BROKEN):
            first = below
        below = below.__cause__
    if isinstance(first, OSError):
        raise type(first)(first.errno, f"{name}: {first.strerror}") from error
    if first is not None:
        raise first
