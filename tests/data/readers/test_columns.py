import numpy as np
import pytest

from action_tokenizers.data.readers.columns import (
    column_batches,
    join_tables,
    numeric_columns,
    read_columns,
    row_count,
    scalar_columns,
    side_by_side,
)
from action_tokenizers.errors import FormatError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def save(tmp_path):
    def write(**columns):
        path = tmp_path / "x.parquet"
        parquet.write_table(pa.table(columns), path, row_group_size=3)
        return path

    return write


def matrix(kind):
    return pa.array([[float(i), i + 0.5] for i in range(10)], kind)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float32(), 2),
        pa.list_(pa.float16()),
    ],
    ids=str,
)
def test_lists_of_every_kind_become_matrices(save, kind):
    read = read_columns(save(action=matrix(kind)), ["action"])["action"]
    np.testing.assert_array_equal(read, np.arange(10)[:, None] + [0, 0.5])


def test_columns_keep_their_order_and_say_their_dims(save):
    path = save(
        text=pa.array(["a"]),
        b=pa.array([[True, False, True]]),
        a=pa.array([1]),
        deep=pa.array([[[1.0]]]),
        c=pa.array([[1.0]], pa.list_(pa.float32(), 1)),
    )
    assert list(numeric_columns(path).items()) == [("b", "(3)"), ("a", "(1)"), ("c", "(1)")]
    assert scalar_columns(path) == ["text", "a"]


def test_a_name_that_begins_another_is_not_mixed_up(save):
    path = save(**{"action": pa.array([[1.0]]), "action.left": pa.array([[2.0]]), "action_is": pa.array([3.0])})
    read = read_columns(path, ["action", "action.left"])
    assert {name: values.tolist() for name, values in read.items()} == {"action": [[1.0]], "action.left": [[2.0]]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0], [1.0, 2.0]], r"rows of one length in a of x.parquet|lengths 1\.\.2"),
        ([[1.0], None], "1 null rows"),
        ([[1.0], [None]], "1 nulls among them"),
        ([1.0, None], "1 null rows"),
    ],
)
def test_holes_and_ragged_rows_are_refused(save, values, message):
    with pytest.raises(FormatError, match=message):
        read_columns(save(a=pa.array(values)), ["a"])


def test_ragged_over_row_groups(save):
    with pytest.raises(FormatError, match="rows of one length"):
        read_columns(save(a=pa.array([[1.0]] * 3 + [[1.0, 2.0]] * 3)), ["a"])


def test_a_missing_column_is_named(save):
    with pytest.raises(FormatError, match=r"columns \['b'\] once in x.parquet, got \['a'\]"):
        read_columns(save(a=pa.array([1.0])), ["a", "b"])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nonsense" * 20])
def test_files_that_are_not_parquet_are_named(tmp_path, content):
    (tmp_path / "y.parquet").write_bytes(content)
    for read in (numeric_columns, scalar_columns, lambda path: read_columns(path, ["a"])):
        with pytest.raises(FormatError, match=r"whole parquet file at y.parquet"):
            read(tmp_path / "y.parquet")


def test_damage_inside_a_file_is_named(tmp_path):
    path = tmp_path / "z.parquet"
    parquet.write_table(pa.table({"a": np.random.default_rng(0).normal(size=20000)}), path)
    raw = bytearray(path.read_bytes())
    raw[4:2000] = b"\xff" * 1996
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"whole parquet file at z.parquet"):
        read_columns(path, ["a"])


def test_tables_are_laid_side_by_side_and_joined():
    table = {"a": np.ones((2, 3)), "b": np.zeros(2)}
    wide = side_by_side(table, {"action": ["b", "a"], "state": []})
    assert {name: values.shape for name, values in wide.items()} == {"action": (2, 4)}
    empty = side_by_side({"a": np.ones((0, 0)), "b": np.ones(0)}, {"action": ["b", "a"]})
    assert join_tables([wide, empty, wide], "x")["action"].shape == (4, 4)
    with pytest.raises(FormatError, match="expected rows in x, got none"):
        join_tables([empty], "x")


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_batches_together_are_the_columns(save, rows):
    path = save(a=matrix(pa.list_(pa.float32())), b=pa.array(range(10)), c=pa.array(["x"] * 10))
    batches = list(column_batches(path, ["a", "b"], rows))
    whole = read_columns(path, ["a", "b"])
    assert all(0 < len(batch["b"]) <= rows for batch in batches)
    for name in ("a", "b"):
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), whole[name])
    assert row_count(path) == 10


def test_batches_of_a_lost_column_or_a_damaged_page(save):
    path = save(a=pa.array(np.arange(10.0)))
    with pytest.raises(FormatError, match=r"expected the columns \['b'\] once in x\.parquet"):
        next(column_batches(path, ["b"], 2))
    parquet.write_table(pa.table({"a": np.arange(10.0)}), path, write_page_checksum=True, use_dictionary=False)
    data = bytearray(path.read_bytes())
    column = parquet.read_metadata(path).row_group(0).column(0)
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match=r"whole parquet file at x\.parquet"):
        list(column_batches(path, ["a"], 2))


def test_batches_hold_no_row_group_that_was_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 4096))
    table = pa.table({"a": values.ravel()})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=4096, use_dictionary=False, compression="none")
    del table
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in column_batches(tmp_path / "x.parquet", ["a"], 4096)]
    assert len(held) == 40
    assert max(held) < 6 * values[0].nbytes
    assert pa.total_allocated_bytes() == before
