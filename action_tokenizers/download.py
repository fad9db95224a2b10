"""Files of a Hub repository in a local folder: the only importer of huggingface_hub beside hub.py."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from action_tokenizers.errors import FormatError

__all__ = ["fetch"]


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

    Args:
        repo: `owner/name`.
        patterns: File name patterns (`"meta/**"`); nothing else is downloaded.
        revision: Branch, tag or commit; None is the main branch.
        repo_type: `"dataset"` or `"model"`.
        token: Hub token; None takes the one of `hf auth login`.
        cache_dir: Where downloads are kept; None is the Hub's own cache.
        local_files_only: Do not go online: only what the cache holds.

    Raises:
        FormatError: No such repository or revision, no permission, or offline and not in the cache.
    """
    from huggingface_hub import errors, snapshot_download

    at = f"{repo_type} {repo!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        folder = snapshot_download(
            repo,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=list(patterns),
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
        )
    except errors.GatedRepoError as error:
        raise FormatError(f"{at} is gated: ask for access on its page, then pass token=") from error
    except errors.RevisionNotFoundError as error:
        raise FormatError(f"expected an existing revision, got none: {at}") from error
    except errors.RepositoryNotFoundError as error:
        raise FormatError(
            f"expected a Hub repository or a local path, got none: {at}. If it is private, pass token= or "
            "run `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise FormatError(
            f"{at} is not in the cache and the Hub is not reached: go online, or give a local folder"
        ) from error
    except errors.HfHubHTTPError as error:
        raise FormatError(f"the Hub did not serve {at}: {error}") from error
    except (errors.HFValidationError, OSError) as error:
        raise FormatError(f"could not fetch {at}: {error}") from error
    if not any(Path(folder).rglob("*")):
        raise FormatError(f"expected files {', '.join(patterns)} in the {at}, got none of them")
    return Path(folder)
