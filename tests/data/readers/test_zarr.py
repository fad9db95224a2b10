import shutil
import zipfile

import numpy as np
import pytest

from action_tokenizers.data import Episodes
from action_tokenizers.errors import FormatError

zarr = pytest.importorskip("zarr")


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def buffer(request, tmp_path, walks):
    """A replay buffer of two episodes, 4 and 6 rows, in both zarr formats."""
    if not hasattr(zarr, "create_group"):
        pytest.skip("zarr 2 writes only its own format")
    path = tmp_path / "replay.zarr"
    root = zarr.create_group(str(path), zarr_format=request.param)
    data = root.create_group("data")
    for name, values in (("action", walks((10,), 2)[0]), ("state", walks((10,), 5)[0]), ("img", np.zeros((10, 2, 2)))):
        data.create_array(name, data=values)
    root.create_group("meta").create_array("episode_ends", data=np.array([4, 10]))
    return path


def packed(path, target, inside=""):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, inside + file.relative_to(path).as_posix())
    return target


def test_the_recorded_zip_equals_the_flat_file(shared_data, equal_episodes):
    flat = Episodes.load(shared_data / "pusht")
    equal_episodes(Episodes.load(shared_data / "pusht" / "original_zarr"), flat)
    equal_episodes(Episodes.load(shared_data / "pusht" / "original_zarr" / "pusht_lowdim.zarr.zip"), flat)


@pytest.mark.parametrize("inside", [None, "", "replay.zarr/"])
def test_folder_and_zip(buffer, tmp_path, walks, inside):
    path = buffer if inside is None else packed(buffer, tmp_path / "x.zarr.zip", inside)
    read = Episodes.load(path)
    assert read.lengths == (4, 6)
    np.testing.assert_array_equal(np.concatenate(read.actions), walks((10,), 2)[0])
    np.testing.assert_array_equal(np.concatenate(read.states), walks((10,), 5)[0])


def test_a_missing_column_lists_shapes(buffer):
    with pytest.raises(FormatError, match=r"'pose' in replay.zarr, got action \(10, 2\), state \(10, 5\): name"):
        Episodes.load(buffer, action="pose")


def test_broken_buffers_are_named(buffer, tmp_path):
    shutil.rmtree(buffer / "meta" / "episode_ends")
    with pytest.raises(FormatError, match=r"meta/episode_ends at replay.zarr"):
        Episodes.load(buffer)
    with pytest.raises(FormatError, match="got a zip without it"):
        Episodes.load(packed(buffer, tmp_path / "x.zarr.zip"))
    (tmp_path / "y.zarr.zip").write_bytes(b"PK nothing")
    with pytest.raises(FormatError, match=r"meta/episode_ends at y.zarr.zip"):
        Episodes.load(tmp_path / "y.zarr.zip")


def test_rows_after_the_last_end_are_refused(buffer):
    shutil.rmtree(buffer / "meta" / "episode_ends")
    zarr.open_group(str(buffer), mode="a")["meta"].create_array("episode_ends", data=np.array([4, 7]))
    with pytest.raises(FormatError, match=r"replay.zarr, got 7 and 10 rows of action, 10 rows of state: add"):
        Episodes.load(buffer)


def test_data_that_is_an_array_is_refused(buffer):
    shutil.rmtree(buffer / "data")
    zarr.open_group(str(buffer), mode="a").create_array("data", data=np.zeros((10, 2)))
    with pytest.raises(FormatError, match=r"readable data set at .*replay.zarr, got AttributeError"):
        Episodes.load(buffer)
