import sys

import numpy as np
import pytest

from action_tokenizers.cli import DEMO_DATA
from action_tokenizers.data import Episodes
from action_tokenizers.data.readers import arrays
from action_tokenizers.data.readers.detect import layout_of
from action_tokenizers.errors import ActionTokenizerError, FormatError, MissingExtraError


@pytest.mark.parametrize("names", [[], ["README.md", "videos/"], [f"{i:03}.mp4" for i in range(50)]])
def test_a_folder_of_no_known_layout_lists_what_is_there(tmp_path, names):
    root = tmp_path / "stuff"
    root.mkdir()
    for name in names:
        (root / name).mkdir() if name.endswith("/") else (root / name).touch()
    with pytest.raises(FormatError, match=r"in the folder stuff, found (nothing|README.md, videos/|000.mp4)") as caught:
        Episodes.load(root)
    for known in ("LeRobot", "parquet", "npz", "HDF5", "zarr", "RLDS"):
        assert known in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_file_of_no_known_layout(tmp_path):
    (tmp_path / "x.csv").touch()
    with pytest.raises(FormatError, match=r"got the file x.csv: known layouts"):
        Episodes.load(tmp_path / "x.csv")


def test_two_array_files_are_ambiguous_and_one_is_not(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 1)))
    assert Episodes.load(tmp_path).frames == 3
    np.save(tmp_path / "b.npy", np.zeros((3, 1)))
    with pytest.raises(FormatError, match=r"found a.npy, b.npy"):
        Episodes.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "package"),
    [("x.parquet", "pyarrow"), ("x.hdf5", "h5py"), ("x.zarr.zip", "zarr"), ("x.tfrecord", "tfrecord")],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    for loaded in [module for module in sys.modules if module.startswith(package + ".")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(MissingExtraError, match=rf"{package}.* pip install 'action-tokenizers\[data\]'"):
        Episodes.load(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_bytes_changed_anywhere_never_leak_a_strangers_error(tmp_path, name):
    path = tmp_path / name
    values = np.random.default_rng(0).normal(size=(20, 3))
    if name == "x.npz":
        np.savez_compressed(path, action=values)
    else:
        np.save(path, values)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        broken = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 200), 3):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            Episodes.load(path)
        except (ActionTokenizerError, MemoryError):
            refused += 1
    assert refused > 50


def test_parquet_with_a_broken_name_is_refused(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "x.parquet", {"action": np.zeros((4, 2)), "episode": np.zeros(4, int)})
    path.write_bytes(path.read_bytes().replace(b"action", b"\xff\xfetion"))
    with pytest.raises(FormatError, match=r"x\.parquet"):
        Episodes.load(path)


@pytest.mark.parametrize("error", [KeyError("x"), OSError("x"), NotImplementedError("x"), RecursionError("x")])
def test_what_a_reader_lets_through_names_the_file(tmp_path, monkeypatch, error):
    def fail(path, **_):
        raise error

    monkeypatch.setattr(arrays, "read", fail)
    (tmp_path / "x.npz").touch()
    with pytest.raises(FormatError, match=rf"x.npz, got {type(error).__name__}: .*; copy") as caught:
        Episodes.load(tmp_path / "x.npz")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [MemoryError, PermissionError, FileNotFoundError, ImportError, KeyboardInterrupt, DeprecationWarning]
)
def test_what_is_no_fault_of_the_file_passes(tmp_path, monkeypatch, error):
    def fail(path, **_):
        raise error

    monkeypatch.setattr(arrays, "read", fail)
    (tmp_path / "x.npz").touch()
    with pytest.raises(error):
        Episodes.load(tmp_path / "x.npz")


def test_an_episode_column_is_refused_where_the_layout_knows(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 1)))
    with pytest.raises(FormatError, match=r"no episode column for the layout arrays of x.npy, got episode='take'"):
        Episodes.load(tmp_path / "x.npy", episode="take")


def test_the_layout_is_named_without_reading(tmp_path):
    assert layout_of(DEMO_DATA) == "lerobot"
    (tmp_path / "x.npz").touch()
    assert layout_of(tmp_path) == layout_of(tmp_path / "x.npz") == "arrays"
    (tmp_path / "x.parquet").touch()
    assert layout_of(tmp_path) == "parquet"
    (tmp_path / "x.csv").touch()
    with pytest.raises(FormatError, match=r"got the file x\.csv: known layouts"):
        layout_of(tmp_path / "x.csv")
