import sys

import numpy as np
import pytest

from action_tokenizers.data import Episodes
from action_tokenizers.errors import FormatError, MissingExtraError


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
