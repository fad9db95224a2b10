"""A folder <-> a tokenizer <-> the Hub: `config.json`, `model.safetensors` and a card; no pickle, no remote code."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from action_tokenizers.artifact import MODEL_TYPE, from_parts, to_json_bytes, to_parts, tokenizer_class_of
from action_tokenizers.card import check_audit, model_card
from action_tokenizers.download import fetch, publish
from action_tokenizers.errors import ActionValueError, FormatError
from action_tokenizers.folder import write_folder
from action_tokenizers.registry import tokenizer_class
from action_tokenizers.shim import MODULE, PROCESSOR, PROCESSOR_CLASS, SHIM

__all__ = ["PretrainedMixin"]

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
VOCABULARY, AUDIT, TOKENIZER_JSON = "vocabulary.json", "audit.json", "tokenizer.json"
# every name this library ever writes: a save replaces them all and keeps whatever else lies in the folder
OURS = (CONFIG, TENSORS, CARD, PROCESSOR, MODULE, VOCABULARY, TOKENIZER_JSON, AUDIT)
# what a published FAST folder keeps its byte-pair encoding in, by the transformers release that saved it
PUBLISHED = (TOKENIZER_JSON, f"bpe_tokenizer/{TOKENIZER_JSON}")
MOST_CONFIG_BYTES = 16 << 20
MOST_TENSOR_BYTES = 8 << 30
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


class PretrainedMixin:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for tokenizers."""

    _beside: dict[str, Any]  # JSON of the files that travel with the tokenizer: vocabulary and audit

    @property
    def audit(self) -> Mapping[str, Any] | None:
        """The audit it was saved with, as in `audit.json`; None where it has not been audited."""
        return cast(Mapping[str, Any] | None, self._beside.get(AUDIT))

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        vocabulary: Any = None,
        audit: Any = None,
        license: str | None = None,
    ) -> Path:
        """Write the tokenizer to `folder`, all files at once or none.

        Files of an older save are replaced, files that are not ours are kept. Equal tokenizers give equal bytes.

        Args:
            folder: made if missing.
            vocabulary: an `ActionVocabulary`, saved with it; None keeps the one it was loaded with.
            audit: a mapping, or an object with `to_json()`, saved with it and told in the card: `data` says what was
                measured on, `measures` is a list of `name`, `meaning` and `value`, `caption` a sentence above them.
                None keeps the one it was loaded with.
            license: as the Hub names it (`apache-2.0`), kept in the provenance; None keeps the one it was loaded with.

        Raises:
            NotFittedError: not fitted.
            ActionValueError: a parameter that JSON cannot hold, the vocabulary of another tokenizer, or an audit or a
                license that is none.
            FormatError: the folder holds files of something else, such as a language model, under the same names.
            OSError: the folder cannot be written.
        """
        files = self._files(vocabulary, audit, license)
        _refuse_foreign(Path(folder))
        return write_folder(folder, files, OURS)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a tokenizer from a folder or a Hub repository; the base class returns the family that was saved.

        Published FAST folders (`physical-intelligence/fast` and refits of it) load too. Nothing that is downloaded is
        executed.

        Args:
            name: a local folder, or `owner/name` on the Hub.
            revision: branch, tag or commit on the Hub.
            token: Hub token; None takes the one of `hf auth login`.
            cache_dir: where downloads are kept; None is the Hub's own cache.
            local_files_only: do not go online.

        Raises:
            FormatError: a missing, damaged, oversized or newer file, an unknown key or tensor, or tensors that do not
                belong to the config; names the file.
            UnknownTokenizerError: a tokenizer type nobody here knows; names what wrote it.
            HubError: the Hub did not serve the repository.
        """
        path = Path(name)
        if path.is_dir():
            return cls._from_folder(path)
        if isinstance(name, os.PathLike) or not REPO.fullmatch(name):
            raise FormatError(f"expected a folder written by save_pretrained, or owner/name on the Hub, got {name}")

        def get(names: tuple[str, ...], revision: str | None) -> Path:
            return fetch(
                name,
                names,
                revision=revision,
                repo_type="model",
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )

        try:
            return cls._from_hub(get, revision)
        except FormatError as error:
            raise type(error)(f"model {name!r} of the Hub: {error}") from error

    def push_to_hub(
        self,
        repo: str,
        *,
        vocabulary: Any = None,
        audit: Any = None,
        license: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Push action tokenizer",
        create_pr: bool = False,
    ) -> str:
        """Save to a Hub repository in one commit: it holds the whole tokenizer or stays as it was.

        Args:
            repo: `owner/name`; created if missing. Files in it that are not ours are kept.
            vocabulary: as in `save_pretrained`.
            audit: as in `save_pretrained`.
            license: as in `save_pretrained`.
            revision: branch to commit to, created from the main branch if missing; None is the main branch.
            private: of a repository that is created; None is the account's default.
            token: Hub token; None takes the one of `hf auth login`.
            commit_message: of the commit.
            create_pr: open a pull request instead.

        Returns:
            The address of the commit or the pull request.

        Raises:
            NotFittedError: not fitted.
            ActionValueError: as in `save_pretrained`.
            FormatError: the repository holds files of something else under the same names.
            HubError: no permission, no connection, somebody else's commit in between, or the Hub refused.
        """
        if not REPO.fullmatch(repo):
            raise FormatError(f"expected owner/name on the Hub, got {repo!r}")
        return publish(
            self._files(vocabulary, audit, license),
            repo,
            replaces=OURS,
            mark=CONFIG,
            is_ours=_is_ours,
            revision=revision,
            private=private,
            token=token,
            message=commit_message,
            create_pr=create_pr,
        )

    @classmethod
    def _from_hub(cls, get: Callable[[tuple[str, ...], str | None], Path], revision: str | None) -> Self:
        # the small files first: whoever names a language model by mistake must not wait for its weights
        path = get((CONFIG, PROCESSOR), revision)
        has_config = (path / CONFIG).is_file()
        if has_config:
            cls._config_of(path)
        # of the same commit: the folder is named after it
        return cls._from_folder(get(OURS if has_config else (PROCESSOR, *PUBLISHED), path.name))

    @classmethod
    def _from_folder(cls, path: Path) -> Self:
        tokenizer: Any
        if _is_published(path):
            with torch.device("cpu"):  # also where a policy is being built under another default device
                tokenizer = tokenizer_class("published_fast").from_published(path)  # type: ignore[attr-defined]
            _check_family(cls, type(tokenizer), path)
            return cast(Self, tokenizer)
        config, digest = cls._config_of(path)
        tokenizer = from_parts(config, _read_tensors(path / TENSORS, digest), path / CONFIG)
        for name in (VOCABULARY, AUDIT):
            if (path / name).is_file():
                tokenizer._beside[name] = read_json(path / name)
        try:
            check_audit(tokenizer.audit)
        except ActionValueError as error:
            raise FormatError(f"{path / AUDIT}: {error}") from error
        return cast(Self, tokenizer)

    @classmethod
    def _config_of(cls, path: Path) -> tuple[dict[str, Any], Any]:
        """Return the config of a folder and the digest of its tensors, once it is one that `cls` may load."""
        config = read_json(path / CONFIG)
        digest = config.pop("sha256", None)
        _check_family(cls, tokenizer_class_of(config, path / CONFIG), path)
        return config, digest

    def _files(self, vocabulary: Any, audit: Any, license: str | None) -> dict[str, bytes]:
        """Return every file of the folder, the config last: it makes the others valid."""
        config, state = to_parts(self)
        if license is not None:
            if not isinstance(license, str) or not license.strip():
                raise ActionValueError(f"expected license as the Hub names it, such as 'apache-2.0', got {license!r}")
            config["provenance"]["license"] = license
        if vocabulary is not None:
            if not hasattr(vocabulary, "check"):
                raise ActionValueError(
                    f"expected an ActionVocabulary, got a {type(vocabulary).__name__}; see from_json"
                )
            vocabulary.check(self)
        given = {VOCABULARY: vocabulary, AUDIT: audit}
        beside = self._beside | {name: _json_of(value) for name, value in given.items() if value is not None}
        check_audit(beside.get(AUDIT))
        tensors = save_tensors(state)
        more = self._more_files()  # type: ignore[attr-defined]
        return {
            TENSORS: tensors,
            **more,
            **{name: to_json_bytes(value) for name, value in sorted(beside.items())},
            **SHIM,
            CARD: model_card(config, self.decode_alone, beside.get(AUDIT)).encode(),  # type: ignore[attr-defined]
            CONFIG: to_json_bytes({**config, "sha256": hashlib.sha256(tensors).hexdigest()}),
        }


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a tokenizer folder.

    Raises:
        FormatError: missing, oversized, or not a JSON object; names the file.
    """
    data = _read(file, MOST_CONFIG_BYTES)
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"expected JSON in {file}, got {error}; the file is damaged") from error
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object in {file}, got a {type(value).__name__}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which JSON does not have")


def _json_of(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    return dict(value) if isinstance(value, Mapping) else value


def _check_family(asked: type, found: type, path: Path) -> None:
    if not issubclass(found, asked):
        raise FormatError(
            f"expected a {asked.__name__} in {path}, got a {found.__name__}; ActionTokenizer.from_pretrained loads any"
        )


def _is_published(path: Path) -> bool:
    """Say whether this is a published FAST folder and not one of ours."""
    if (path / CONFIG).exists() or not any((path / name).is_file() for name in PUBLISHED):
        return False
    return (path / PROCESSOR).is_file() and read_json(path / PROCESSOR).get("processor_class") != PROCESSOR_CLASS


def _is_ours(config: bytes) -> bool:
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("model_type") == MODEL_TYPE


def _refuse_foreign(folder: Path) -> None:
    """Never write over a model that somebody trained: its files have the names of ours."""
    held = [name for name in OURS if (folder / name).is_file()]
    if held and not ((folder / CONFIG).is_file() and _is_ours((folder / CONFIG).read_bytes())):
        raise FormatError(
            f"expected a new folder or one of ours, got files of something else in {folder}, which would be "
            f"overwritten: {', '.join(held)}; save to a folder of its own"
        )


def _read_tensors(file: Path, sha256: Any) -> dict[str, torch.Tensor]:
    if sha256 is None:
        raise FormatError(f"expected the key sha256 in {file.parent / CONFIG}, got none")
    data = _read(file, MOST_TENSOR_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FormatError(f"expected {file} as saved with its {CONFIG}, got other bytes; copy both files again")
    try:
        with torch.device("cpu"):  # also where a policy is being built under another default device
            return load_tensors(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FormatError(f"expected safetensors in {file}, got {error}; the file is damaged") from error


def _read(file: Path, most: int) -> bytes:
    if not file.is_file():
        raise FormatError(f"expected {file.name} in {file.parent}, got no such file")
    size = file.stat().st_size
    if size > most:
        raise FormatError(f"expected at most {most} bytes in {file}, got {size}")
    return file.read_bytes()
