"""What the system says is told as such; what is wrong with a file is left to the caller."""

import errno

import pytest

from action_tokenizers.data.readers.system import raise_of_the_system
from action_tokenizers.errors import FormatError


def because(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.EACCES, errno.ENOMEM, errno.ESTALE, errno.EIO, errno.EHOSTUNREACH]
)
def test_an_error_of_the_system_keeps_its_kind_and_names_the_file(number: int) -> None:
    original = OSError(number, "as the system says it")
    once = because(FormatError("broken"), original)
    twice = because(FormatError("broken"), because(OSError(number, "a.parquet: as the system says it"), once))
    for error in (original, once, twice):
        with pytest.raises(OSError, match=r"\] b\.parquet: as the system says it$") as told:
            raise_of_the_system(error, "b.parquet")
        assert told.value.errno == number
        assert type(told.value) is type(original)


def test_memory_that_runs_out_is_no_fault_of_the_file() -> None:
    with pytest.raises(MemoryError):
        raise_of_the_system(because(FormatError("broken"), MemoryError()), "a.parquet")


@pytest.mark.parametrize(
    "error", [FormatError("broken"), OSError("no number"), OSError(errno.ENOENT, "gone"), KeyError()]
)
def test_anything_else_passes(error: Exception) -> None:
    raise_of_the_system(because(FormatError("told"), error), "a.parquet")
