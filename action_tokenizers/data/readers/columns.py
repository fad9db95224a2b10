"""Parquet columns as arrays: scalars, lists and fixed-size lists of numbers become `(rows, d)`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.readers.system import raise_of_the_system
from action_tokenizers.errors import FormatError
from action_tokenizers.extras import require

__all__ = [
    "column_batches",
    "join_tables",
    "numeric_columns",
    "read_columns",
    "row_count",
    "scalar_columns",
    "side_by_side",
]

Table = dict[str, NDArray[Any]]


def numeric_columns(path: Path) -> dict[str, str]:
    """Return the numeric columns of a file, in its order, with their dims as text: `{"action": "(7)"}`."""
    pa = require("pyarrow", "data")
    file = _open(path)
    schema = file.schema_arrow
    first: dict[str, Any] = {}
    lists = [field.name for field in schema if _is_list(pa, field.type) and _is_number(pa, field.type)]
    if lists and file.metadata.num_rows:
        first = next(file.iter_batches(batch_size=1, columns=lists)).to_pydict()
    dims = {}
    for field in schema:
        if _is_number(pa, field.type):
            value = first.get(field.name, [None])[0]
            dims[field.name] = f"({len(value) if value is not None else 1})"
    return dims


def scalar_columns(path: Path) -> list[str]:
    """Return the names of the columns of one value per row, text included."""
    nested = require("pyarrow", "data").types.is_nested
    return [str(field.name) for field in _open(path).schema_arrow if not nested(field.type)]


def read_columns(path: Path, names: Sequence[str]) -> Table:
    """Return the named columns, scalars `(rows,)` and lists `(rows, d)`, without touching any other column.

    Strings come back as object arrays.
    """
    pa = require("pyarrow", "data")
    try:
        table = _open(path).read(columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error
    lost = [name for name in names if table.column_names.count(name) != 1]
    if lost:
        raise FormatError(f"expected the columns {lost} once in {path.name}, got {table.column_names}")
    return {name: _values(pa, table.column(name), f"{name} in {path.name}") for name in names}


def column_batches(path: Path, names: Sequence[str], rows: int) -> Iterator[Table]:
    """Yield the named columns, as `read_columns` returns them, at most `rows` rows at a time and never none.

    What lies in memory is a batch, and of the file the compressed columns of one row group. The file is closed when the
    iteration ends or is given up, so that a data set may have more files than a process may open.
    """
    pa = require("pyarrow", "data")
    # buffered ahead, the columns of all row groups would stay in memory until the file is closed
    with _open(path, pre_buffer=False) as file:
        lost = [name for name in names if file.schema_arrow.names.count(name) != 1]
        if lost:
            raise FormatError(f"expected the columns {lost} once in {path.name}, got {file.schema_arrow.names}")
        try:
            for batch in file.iter_batches(batch_size=rows, columns=list(names)):
                if len(batch):
                    table = pa.Table.from_batches([batch])
                    yield {name: _values(pa, table.column(name), f"{name} in {path.name}") for name in names}
        except (pa.ArrowException, OSError) as error:
            raise _broken(path, error) from error


def row_count(path: Path) -> int:
    """Return the number of rows that the file's footer states."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def side_by_side(table: Table, parts: Mapping[str, Sequence[str]]) -> Table:
    """Return `(rows, d)` per part, its columns concatenated; parts without columns are left out."""
    joined = {}
    for part, names in parts.items():
        columns = [table[name] for name in names]
        if columns:
            rows = len(columns[0])
            joined[part] = np.concatenate([column.reshape(rows, column.size // max(rows, 1)) for column in columns], 1)
    return joined


def join_tables(tables: Sequence[Table], where: str) -> Table:
    """Return the rows of all files, one after the other; files without rows do not count."""
    full = [table for table in tables if len(next(iter(table.values())))]
    if not full:
        raise FormatError(f"expected rows in {where}, got none")
    for name in full[0]:
        widths = sorted({table[name].shape[1:] for table in full})
        if len(widths) > 1:
            raise FormatError(f"expected {name} of one width in all files of {where}, got {widths}")
    return {name: np.concatenate([table[name] for table in full]) for name in full[0]}


def _open(path: Path, pre_buffer: bool = True) -> Any:
    pa, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    try:
        return parquet.ParquetFile(path, pre_buffer=pre_buffer, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> FormatError:
    raise_of_the_system(error, path.name)
    said = " ".join(str(error).split())  # in lines, some of them empty
    return FormatError(f"expected a whole parquet file at {path.name}, got {said}: copy or fetch it again")


def _is_list(pa: ModuleType, kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(pa: ModuleType, kind: Any) -> bool:
    inner = kind.value_type if _is_list(pa, kind) else kind
    types = pa.types
    return bool(types.is_floating(inner) or types.is_integer(inner) or types.is_boolean(inner))


def _values(pa: ModuleType, column: Any, where: str) -> NDArray[Any]:
    kind = column.type
    if column.null_count:
        raise FormatError(f"expected a value in every row of {where}, got {column.null_count} null rows")
    if not _is_list(pa, kind):
        values: NDArray[Any] = column.to_numpy()
        return values
    parts = [_matrix(pa, chunk, kind, where) for chunk in column.chunks if len(chunk)]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise FormatError(f"expected rows of one length in {where}, got lengths {widths}")
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _matrix(pa: ModuleType, chunk: Any, kind: Any, where: str) -> NDArray[Any]:
    """Return one Arrow chunk of lists as `(rows, d)`."""
    flat = chunk.flatten()
    if flat.null_count:
        raise FormatError(f"expected numbers in {where}, got {flat.null_count} nulls among them")
    if pa.types.is_fixed_size_list(kind):
        lengths = np.array([kind.list_size])
    else:
        lengths = np.unique(np.diff(chunk.offsets.to_numpy()))
    if len(lengths) != 1:
        raise FormatError(f"expected rows of one length in {where}, got lengths {lengths.min()}..{lengths.max()}")
    matrix: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(chunk), int(lengths[0]))
    return matrix
