"""Several files into a folder: all or none, whatever fails, and nothing of anybody else's is touched."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from action_tokenizers.folder import write_folder

OURS = ("config.json", "tensors.bin", "notes.md", "stale.json")
NEW = {"tensors.bin": b"new tensors", "notes.md": b"new notes", "config.json": b"new config"}
OLD = {"config.json": b"old config", "tensors.bin": b"old tensors", "stale.json": b"of an older save"}
THEIRS = {"diary.txt": b"mine", "logs/run/1.txt": b"mine too", "logs/config.json": b"not ours: in a folder"}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> set[str]:
    """Everything there, folders too: litter would show."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_a_new_folder_with_its_parents(tmp_path):
    target = tmp_path / "a" / "b c" / "t"
    assert write_folder(target, NEW, OURS) == target
    assert files(tmp_path) == {f"a/b c/t/{name}": data for name, data in NEW.items()}
    assert names(target) == set(NEW)


def test_an_empty_folder_that_is_there(tmp_path):
    write_folder(tmp_path, NEW, OURS)
    assert files(tmp_path) == NEW


def test_ours_are_replaced_and_theirs_stay(tmp_path):
    fill(tmp_path, OLD | THEIRS)
    write_folder(tmp_path, NEW, OURS)
    assert files(tmp_path) == NEW | THEIRS
    assert names(tmp_path) == {*NEW, *THEIRS, "logs", "logs/run"}


def test_relative_paths_and_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, THEIRS))
    assert write_folder(".", NEW, OURS) == tmp_path
    assert files(Path()) == NEW | THEIRS
    assert write_folder("sub", NEW, OURS) == tmp_path / "sub"
    assert files(tmp_path / "sub") == NEW


def test_the_folder_itself_is_never_swapped(tmp_path):
    """Somebody may be working in it, or it may be a mount."""
    before = tmp_path.stat().st_ino
    tmp_path.chmod(0o750)
    for _ in range(2):
        write_folder(tmp_path, NEW, OURS)
    assert tmp_path.stat().st_ino == before
    assert tmp_path.stat().st_mode & 0o777 == 0o750


def test_links_are_followed(tmp_path):
    real = tmp_path / "real"
    fill(real, OLD | THEIRS)
    (tmp_path / "link").symlink_to("real")
    assert write_folder(tmp_path / "link", NEW, OURS) == real
    assert (tmp_path / "link").is_symlink()
    assert files(real) == NEW | THEIRS
    (tmp_path / "to be").symlink_to("not yet there")
    assert write_folder(tmp_path / "to be", NEW, OURS) == tmp_path / "not yet there"
    assert files(tmp_path / "not yet there") == NEW


def test_a_file_that_is_a_link_is_replaced_not_written_through(tmp_path):
    """As in the Hub's cache, where files are links to blobs that other revisions share."""
    blob = tmp_path / "blob"
    blob.write_bytes(b"shared")
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "config.json").symlink_to(blob)
    (folder / "stale.json").symlink_to(blob)
    write_folder(folder, NEW, OURS)
    assert files(folder) == NEW
    assert blob.read_bytes() == b"shared"
    assert not (folder / "config.json").is_symlink()


def test_a_dead_link_of_our_name_goes(tmp_path):
    (tmp_path / "config.json").symlink_to("nowhere")
    (tmp_path / "stale.json").symlink_to("nowhere")
    write_folder(tmp_path, NEW, OURS)
    assert files(tmp_path) == NEW
    assert names(tmp_path) == set(NEW)


def test_a_file_as_target_is_kept(tmp_path):
    (tmp_path / "t").write_bytes(b"precious")
    with pytest.raises(OSError, match="folder"):
        write_folder(tmp_path / "t", NEW, OURS)
    with pytest.raises(OSError, match="t"):
        write_folder(tmp_path / "t" / "below", NEW, OURS)
    assert files(tmp_path) == {"t": b"precious"}


def test_a_folder_of_our_name_is_no_file_to_replace(tmp_path):
    fill(tmp_path, THEIRS | {"config.json/inner.txt": b"mine"})
    with pytest.raises(OSError, match=r"config\.json"):
        write_folder(tmp_path, NEW, OURS)
    assert files(tmp_path) == THEIRS | {"config.json/inner.txt": b"mine"}
    assert not [name for name in names(tmp_path) if "saving" in name]


def test_no_name_must_be_known_twice(tmp_path):
    """`ours` may be any iterable, also one that can be read once."""
    fill(tmp_path, OLD | THEIRS)
    write_folder(tmp_path, NEW, iter(OURS))
    assert files(tmp_path) == NEW | THEIRS


NESTED = {"sub/tensors.bin": b"new", "notes.md": b"new notes", "sub/config.json": b"new config"}


def test_names_may_name_a_subfolder(tmp_path):
    assert write_folder(tmp_path / "new", NESTED, ()) == tmp_path / "new"
    assert files(tmp_path / "new") == NESTED
    fill(tmp_path / "old", {"sub/config.json": b"old", "sub/stale.json": b"stale", "sub/diary.txt": b"mine"} | THEIRS)
    write_folder(tmp_path / "old", NESTED, ["sub/stale.json", "gone/stale.json"])
    assert files(tmp_path / "old") == NESTED | THEIRS | {"sub/diary.txt": b"mine"}
    assert "gone" not in names(tmp_path / "old")


def test_a_file_in_place_of_the_subfolder_is_kept(tmp_path):
    fill(tmp_path, {"sub": b"precious", "notes.md": b"old notes"})
    with pytest.raises(OSError, match="sub"):
        write_folder(tmp_path, NESTED, OURS)
    assert files(tmp_path) == {"sub": b"precious", "notes.md": b"old notes"}


OPERATIONS: dict[str, tuple[Any, str]] = {
    "write": (Path, "write_bytes"),
    "mkdir": (Path, "mkdir"),
    "unlink": (Path, "unlink"),
    "rename": (os, "replace"),
    "copy": (shutil, "copy2"),
}


def fail_at(monkeypatch: pytest.MonkeyPatch, operation: str, count: int, error: BaseException) -> list[int]:
    """Let the `count`-th call of an operation fail; the returned list holds how many calls there were."""
    owner, attribute = OPERATIONS[operation]
    original: Callable[..., Any] = getattr(owner, attribute)
    calls = [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, failing)
    return calls


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("nested", [False, True])
def test_whatever_fails_the_folder_is_as_it_was(nested, there, operation, error, tmp_path, monkeypatch):
    """Every call of every operation fails once."""
    before = OLD | THEIRS if there else {}
    new = {**NESTED, **NEW} if nested else NEW
    failures = 0
    for count in range(1, 20):
        target = tmp_path / str(count) / "t"
        target.parent.mkdir()
        if there:
            fill(target, before)
        with monkeypatch.context() as patched:
            calls = fail_at(patched, operation, count, error)
            try:
                write_folder(target, new, OURS)
            except type(error):
                failures += 1
                assert (files(target) if there else names(target.parent)) == (before if there else set()), count
            else:
                assert files(target) == (new | THEIRS if there else new), count
        assert not [name for name in names(target.parent) if "saving" in name], count
        if calls[0] < count:
            break
    else:
        pytest.fail("it never came to an end")
    if operation in ("write", "mkdir", "rename"):
        assert failures


def test_a_failed_write_leaves_no_empty_subfolder(tmp_path, monkeypatch):
    fill(tmp_path, OLD)
    with monkeypatch.context() as patched:
        fail_at(patched, "rename", 2, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            write_folder(tmp_path, NESTED, OURS)
    assert names(tmp_path) == set(OLD)


def test_the_last_name_is_replaced_last(tmp_path, monkeypatch):
    """The config vouches for the others: whoever reads in between sees old with old, or a mismatch, never a lie."""
    fill(tmp_path, OLD)
    order = []
    original = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), original(a, b)))
    write_folder(tmp_path, NEW, OURS)
    assert order == list(NEW)
