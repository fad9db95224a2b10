"""Files of a Hub repository, fetched and published: the only importer of huggingface_hub."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from action_tokenizers.errors import FormatError, HubError

__all__ = ["fetch", "publish"]

# the Hub itself writes one into a new repository
CARD = "README.md"
# a repository's own .gitignore would leave files out of a commit without a word
IGNORE_NOTHING = "# nothing"
ADVICE = {
    401: "the Hub does not accept the token; pass token=, or run `hf auth login`",
    403: "the token may not do this; ask for access, or pass another token=",
    412: "somebody else has committed meanwhile; push again",
    429: "too many requests; wait, then try again",
}


def fetch(
    repo: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    repo_type: Literal["dataset", "model"] = "dataset",
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a local folder with those files of a Hub repository that match `patterns`.

    Where the Hub does not answer, what the cache holds of that revision is taken.

    Args:
        repo: `owner/name`.
        patterns: File name patterns (`"meta/**"`); nothing else is downloaded.
        revision: Branch, tag or commit; None is the main branch.
        repo_type: `"dataset"` or `"model"`.
        token: Hub token; None takes the one of `hf auth login`.
        cache_dir: Where downloads are kept; None is the Hub's own cache.
        local_files_only: Do not go online: only what the cache holds.

    Returns:
        The cache's folder of that commit, named after it.

    Raises:
        HubError: No such repository or revision, no permission, no connection, or offline and not in the cache.
        FormatError: The repository holds none of these files.
    """
    from huggingface_hub import snapshot_download

    at = _at(repo, repo_type, revision)
    with _told(f"fetch {at}", at):
        folder = Path(
            snapshot_download(
                repo,
                repo_type=repo_type,
                revision=revision,
                allow_patterns=list(patterns),
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
            )
        )
    # others may have put more files into the same folder
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    if not any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
        raise FormatError(f"expected files {', '.join(patterns)} in the {at}, got none of them")
    return folder


def publish(
    files: Mapping[str, bytes],
    repo: str,
    *,
    replaces: Sequence[str],
    mark: str,
    is_ours: Callable[[bytes], bool],
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str,
    create_pr: bool = False,
) -> str:
    """Make a Hub model repository hold `files`, in one commit, and return its address.

    Args:
        files: Name -> content.
        repo: `owner/name`; created if missing.
        replaces: Names that are ours: the commit deletes those that `files` lacks, all others are kept.
        mark: The file that tells whose the repository is.
        is_ours: Says so from its content. A repository that has names of ours, but no such file, is somebody else's.
        revision: Branch, created from the main branch if missing; None is the main branch.
        private: Of a repository that is created.
        token: Hub token; None takes the one of `hf auth login`.
        message: Of the commit.
        create_pr: Open a pull request instead of committing.

    Raises:
        HubError: No permission, no connection, a commit of somebody else in between, or the Hub refused. No file has
            changed (or all have, where only the answer was lost: repeating it does no harm); a repository or branch
            that was created for the commit may remain.
        FormatError: The repository is somebody else's.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    at = _at(repo, "model", revision)
    api = HfApi(token=token)
    with _told(f"push to {at}", at):
        api.create_repo(repo, private=private, exist_ok=True)
        branches_off = False
        try:
            head = api.model_info(repo, revision=revision).sha
        except RevisionNotFoundError:
            if create_pr:
                raise
            head, branches_off = api.model_info(repo).sha, True
        held = {found.path for found in api.get_paths_info(repo, list(replaces), revision=head)}
        with TemporaryDirectory() as folder:  # not the cache: its copy may be stale
            marked = mark in held and is_ours(
                Path(api.hf_hub_download(repo, mark, revision=head, cache_dir=folder)).read_bytes()
            )
    if held - {CARD} and not marked:
        raise FormatError(
            f"expected a new repository or one of ours, got files of something else in the {at}, which would be "
            f"overwritten: {', '.join(sorted(held))}; push to a repository of its own"
        )
    added = [CommitOperationAdd(name, data) for name, data in files.items()]
    gone = [CommitOperationDelete(name) for name in sorted(held - set(files))]
    with _told(f"push to {at}", at):
        if branches_off:
            api.create_branch(repo, branch=str(revision), revision=head, exist_ok=True)
        api.preupload_lfs_files(
            repo, added, revision=revision, create_pr=create_pr, free_memory=False, gitignore_content=IGNORE_NOTHING
        )
        commit = api.create_commit(
            repo,
            [*added, *gone],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,  # what was looked at is what is overwritten
        )
    return str(commit.pr_url or commit.commit_url)


def _at(repo: str, repo_type: str, revision: str | None) -> str:
    return f"{repo_type} {repo!r}" + (f" at revision {revision!r}" if revision else "")


@contextmanager
def _told(what: str, at: str) -> Iterator[None]:
    """Say in one line what the Hub, the connection or the cache refused."""
    try:
        yield
    # its HTTP client, its JSON reader and its checks raise what they like, and that changes between releases
    except Exception as error:
        raise HubError(_reason(error, what, at)) from error


def _reason(error: BaseException, what: str, at: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        if error.__cause__ is not None and _status(error.__cause__) is not None:
            return _reason(error.__cause__, what, at)  # the cache was only asked because the Hub had refused
        return f"could not {what}: the Hub is not reached and the cache has no copy; go online, or give a local folder"
    if isinstance(error, errors.GatedRepoError):
        return f"{at} is gated: ask for access on its page, then pass token="
    if isinstance(error, errors.RevisionNotFoundError):
        return f"expected an existing revision, got none: {at}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"expected a Hub repository or a local path, got none: {at}. If it is private, pass token= or "
            "run `hf auth login`"
        )
    status = _status(error)
    advice = f"{ADVICE[status]}; " if status in ADVICE else ""
    return f"could not {what}: {advice}{type(error).__name__}: {' '.join(str(error).split())}"


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of the Hub client carries."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
