"""Action ids <-> rows of a language model: one table of integers, never through text.

Through text, ids change: OpenVLA's id 31881 is an invisible character, and Qwen re-encodes neighbouring tokens as one.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.doors import open_ids
from action_tokenizers.download import fetch
from action_tokenizers.errors import ActionValueError, FormatError, TokenError
from action_tokenizers.hub import REPO, VOCABULARY, read_json

__all__ = ["ActionVocabulary"]

FORMAT_VERSION = 1
MOST_ROWS = 1 << 31


@dataclass(frozen=True, eq=False)
class ActionVocabulary:
    """Which row of a language model stands for which action id.

    Action ids 0..m-1 have a row each. The tokenizer's pad has none: the first pad of a chunk becomes `end_id`, the
    language model's own end mark, and further ones `pad_id`. Build one with `append`, `add_tokens`, `tail`, `reserved`
    or `table`. They all take `text`, the language model's tokenizer object: its length and the number of rows of the
    model differ wherever the model is padded (Llama in OpenVLA: 32,000 ids, 32,064 rows), and rows counted from the
    wrong one are other words. Where there is no such object, `text` may be its length.

    Attributes:
        rows: `(m,)` int64, the row of each action id.
        text_size: ids of the language model's tokenizer.
        model_rows: rows of the language model's embedding and logits.
        end_id: the language model's end mark.
        pad_id: its padding; None: `end_id` again.
        has_pad: whether the action tokenizer has a pad; its id is then m.
        fixed_length: ids of every chunk, where the action tokenizer has no pad.
        overwrite: whether rows of the text may be taken.

    Example:
        >>> from action_tokenizers import BinningTokenizer
        >>> tokenizer = BinningTokenizer(bins=4).fit(np.linspace(-1, 1, 24).reshape(4, 3, 2))
        >>> vocabulary = ActionVocabulary.append(100, tokenizer, model_rows=128, end_id=2)
        >>> vocabulary.to_model([0, 3, 1, 2, 0, 0], end=True).tolist()
        [100, 103, 101, 102, 100, 100, 2]
        >>> vocabulary.to_actions([100, 103, 101, 102, 100, 100, 2]).tolist()
        [0, 3, 1, 2, 0, 0]
    """

    rows: torch.Tensor
    text_size: int
    model_rows: int
    end_id: int
    pad_id: int | None = None
    has_pad: bool = True
    fixed_length: int | None = None
    overwrite: bool = False
    _order: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a table that could not be inverted or that says two things at once.

        Raises:
            TokenError: rows that are not integers.
            ActionValueError: any other contradiction; says what to change.
        """
        rows = _integers(self.rows)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "_order", rows.argsort())
        for name in ("text_size", "model_rows", "end_id", "pad_id"):
            value = getattr(self, name)
            if not (value is None and name == "pad_id"):
                object.__setattr__(self, name, _whole(value, name))
        self._check_rows()

    def _check_rows(self) -> None:
        ordered = self.rows[self._order]
        twice = (ordered[1:] == ordered[:-1]).nonzero()
        if len(twice):
            row = int(ordered[twice[0]])
            shared = (self.rows == row).nonzero()[:2, 0].tolist()
            raise ActionValueError(f"expected a row for each action id, got row {row} for both ids {shared}")
        if int(ordered[0]) < 0:
            raise ActionValueError(f"expected rows >= 0, got {int(ordered[0])}")
        for name in ("end_id", "pad_id"):
            mark = getattr(self, name)
            if mark is not None and bool((self.rows == mark).any()):
                action = int((self.rows == mark).nonzero()[0])
                raise ActionValueError(
                    f"expected {name} outside the table, got {mark}, the row of action id {action}: an action would "
                    "end the chunk; give the language model's own mark, or other rows"
                )
        most = max(int(ordered[-1]), self.end_id, self.pad_id or 0, self.text_size - 1) + 1
        if most > self.model_rows:
            raise ActionValueError(
                f"expected a language model of at least {most} rows ({self.text_size} of text, action ids in rows "
                f"{int(ordered[0])}..{int(ordered[-1])}), got model_rows={self.model_rows}; call "
                f"model.resize_token_embeddings({most}), unless text_size counts the model's padding rows: "
                "give the language model's tokenizer object, which knows"
            )
        taken = int((self.rows < self.text_size).sum())
        if taken and not self.overwrite:
            raise ActionValueError(
                f"expected rows from {self.text_size} on, where the text ends, got {taken} rows of the text (row "
                f"{int(ordered[0])}); pass overwrite=True where these words may be lost or are reserved for such use"
            )

    @classmethod
    def append(
        cls, text: Any, tokenizer: ActionTokenizer, *, model_rows: int, end_id: int, pad_id: int | None = None
    ) -> Self:
        """Give the rows after the text: action id i has row `len(text) + i`.

        Args:
            text: the language model's tokenizer object, or its length.
            tokenizer: the fitted action tokenizer.
            model_rows: rows of the language model's embedding.
            end_id: its end mark.
            pad_id: its padding; None: `end_id` again.

        Raises:
            ActionValueError: more rows needed than the model has, or an end mark outside them.
        """
        size = _text_size(text)
        rows = size + torch.arange(_ids(tokenizer), device="cpu")
        return cls(rows, size, model_rows, end_id, pad_id, **_facts(tokenizer))

    @classmethod
    def tail(
        cls,
        text: Any,
        tokenizer: ActionTokenizer,
        *,
        model_rows: int,
        end_id: int,
        pad_id: int | None = None,
        skip: int = 0,
        size: int | None = None,
    ) -> Self:
        """Overwrite the last words of the text: action id i has row `size - 1 - skip - i`.

        OpenVLA skips none, pi0-FAST the last 128 of PaliGemma's 257,152 (its segmentation words). The words that are
        overwritten (there: its location words) cannot be told from actions any more.

        Args:
            text: the language model's tokenizer object, or its length.
            tokenizer: the fitted action tokenizer.
            model_rows: as in `append`, like `end_id` and `pad_id`.
            end_id: its end mark.
            pad_id: its padding.
            skip: words at the end that are left alone.
            size: where to count from. Needed where it is not plain: with tokens added to the language model's tokenizer
                it may be its base vocabulary (OpenVLA, pi0-FAST) or its length (MiniVLA), and a length that equals
                `model_rows` may be the padded one.

        Raises:
            ActionValueError: `size` is not plain, fewer words than action ids, or a special token among the rows.
        """
        start = _tail_end(text, model_rows, size) - 1 - _whole(skip, "skip")
        rows = start - torch.arange(_ids(tokenizer), device="cpu")
        if int(rows[-1]) < 0:
            raise ActionValueError(f"expected at least {len(rows)} words before row {start + 1}, got {start + 1}")
        special = sorted(set(getattr(text, "all_special_ids", ())) & set(rows.tolist()))
        if special:
            raise ActionValueError(
                f"expected no special token of the language model in rows {int(rows[-1])}..{start}, got ids {special}; "
                "skip them with skip=, or append"
            )
        return cls(rows, _text_size(text), model_rows, end_id, pad_id, **_facts(tokenizer), overwrite=True)

    @classmethod
    def reserved(cls, text: Any, tokenizer: ActionTokenizer, rows: Sequence[int], **model: Any) -> Self:
        """Give the first of `rows`, which the language model keeps free; more than needed may be named.

        Args:
            text: the language model's tokenizer object, or its length.
            tokenizer: the fitted action tokenizer.
            rows: a range or a list of rows.
            model: as in `table`; Llama 3's reserved tokens are words, so that they need `overwrite=True`.

        Raises:
            ActionValueError: fewer rows than action ids, or rows of the text without `overwrite`.
        """
        free, need = _integers(rows), _ids(tokenizer)
        if len(free) < need:
            raise ActionValueError(f"expected at least {need} reserved rows, one per action id, got {len(free)}")
        return cls.table(text, tokenizer, free[:need], **model)

    @classmethod
    def table(
        cls,
        text: Any,
        tokenizer: ActionTokenizer,
        rows: Any,
        *,
        model_rows: int,
        end_id: int,
        pad_id: int | None = None,
        overwrite: bool = False,
    ) -> Self:
        """Give action id i the row `rows[i]`.

        Args:
            text: the language model's tokenizer object, or its length.
            tokenizer: the fitted action tokenizer.
            rows: `(m,)` integers.
            model_rows: rows of the language model's embedding.
            end_id: its end mark.
            pad_id: its padding; None: `end_id` again.
            overwrite: say that rows before `len(text)` may be taken.

        Raises:
            TokenError: rows that are not integers.
            ActionValueError: another number of rows than of action ids, a row given twice, to a mark or to the text,
                or beyond the model.
        """
        table, need = _integers(rows), _ids(tokenizer)
        if len(table) != need:
            raise ActionValueError(f"expected {need} rows, one per action id, got {len(table)}; the pad needs none")
        facts = _facts(tokenizer)
        return cls(table, _text_size(text), model_rows, end_id, pad_id, **facts, overwrite=overwrite)

    @classmethod
    def add_tokens(
        cls,
        text: Any,
        tokenizer: ActionTokenizer,
        *,
        end_id: int,
        pad_id: int | None = None,
        model_rows: int | None = None,
        template: str = "<action_{}>",
    ) -> Self:
        """Add a named token per action id to the language model's tokenizer, and take the rows they really got.

        Called again on a tokenizer that has them all, it finds them. Afterwards call
        `model.resize_token_embeddings(vocabulary.model_rows)`.

        Args:
            text: the tokenizer object of transformers; changed in place.
            tokenizer: the fitted action tokenizer.
            end_id: the language model's end mark.
            pad_id: its padding; None: `end_id` again.
            model_rows: rows its embedding has or will have; None: as many as the tokenizer has ids.
            template: of the names; the braces take the action id.

        Raises:
            ActionValueError: names that are words already, or fewer rows than needed; `text` is then unchanged.
        """
        m, before = _ids(tokenizer), _text_size(text)
        names = [template.format(i) for i in range(m)]
        if len(set(names)) != m:
            raise ActionValueError(f"expected a template with braces for the action id, got {template!r}")
        unknown = (None, getattr(text, "unk_token_id", None))
        known = [i for i in text.convert_tokens_to_ids(names) if i not in unknown]
        if known and (len(known) < m or min(known) < (_base_size(text) or 0)):
            raise ActionValueError(
                f"expected {names[0]} to {names[-1]} to be new to the language model's tokenizer, or all added before, "
                f"got {len(known)} that it knows; give another template"
            )
        if not known:
            # a trial, so that a model with too few rows leaves the tokenizer as it was
            room = before + m if model_rows is None else model_rows
            cls.append(before, tokenizer, model_rows=room, end_id=end_id, pad_id=pad_id)
            text.add_tokens(names)
        rows, size = text.convert_tokens_to_ids(names), min(known, default=before)
        return cls(rows, size, len(text) if model_rows is None else model_rows, end_id, pad_id, **_facts(tokenizer))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], file: Path | str = VOCABULARY) -> Self:
        """Return what `to_json` described.

        Raises:
            FormatError: a newer version, unknown or missing keys, or a table that no constructor would make; names
                `file`.
        """
        names = {one.name for one in fields(cls) if one.init}
        version = data.get("format_version") if isinstance(data, Mapping) else None
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise FormatError(
                f"expected a format_version of 1 to {FORMAT_VERSION} in {file}, got {version!r}; "
                "a newer one needs a newer action-tokenizers"
            )
        if set(data) != names | {"format_version"}:
            raise FormatError(f"expected the keys {sorted(names | {'format_version'})} in {file}, got {sorted(data)}")
        length = data["fixed_length"]
        if not all(isinstance(data[name], bool) for name in ("has_pad", "overwrite")):
            raise FormatError(f"expected has_pad and overwrite as true or false in {file}, got others")
        if not isinstance(data["rows"], list):
            raise FormatError(f"expected rows as a list in {file}, got a {type(data['rows']).__name__}")
        try:
            if length is not None and (data["has_pad"] or _whole(length, "fixed_length") < 1):
                raise ActionValueError(f"expected a fixed_length only without a pad, got {length}")
            return cls(**{name: data[name] for name in names})
        except (ActionValueError, TokenError) as error:
            raise FormatError(f"expected the vocabulary of an action tokenizer in {file}, got: {error}") from error

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
        """Load the vocabulary saved with a tokenizer (`tokenizer.save_pretrained(folder, vocabulary=vocabulary)`).

        Args:
            name: a local folder, or `owner/name` on the Hub.
            revision: branch, tag or commit on the Hub.
            token: Hub token; None takes the one of `hf auth login`.
            cache_dir: where downloads are kept; None is the Hub's own cache.
            local_files_only: do not go online.

        Raises:
            FormatError: no `vocabulary.json` there, or a damaged one; names the file.
            HubError: the Hub did not serve the repository.
        """
        path = Path(name)
        if not path.is_dir():
            if not REPO.fullmatch(str(name)):
                raise FormatError(f"expected a folder of a saved tokenizer, or owner/name on the Hub, got {name}")
            path = fetch(
                str(name),
                (VOCABULARY,),
                revision=revision,
                repo_type="model",
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        return cls.from_json(read_json(path / VOCABULARY), path / VOCABULARY)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; `from_json` gives back an equal object."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        return {"format_version": FORMAT_VERSION, **values, "rows": self.rows.tolist()}

    def check(self, tokenizer: ActionTokenizer) -> None:
        """Raise ActionValueError unless this is a vocabulary of `tokenizer`'s ids."""
        facts = _facts(tokenizer)
        if len(self.rows) != _ids(tokenizer) or facts != {name: getattr(self, name) for name in facts}:
            raise ActionValueError(
                f"expected a vocabulary of {_ids(tokenizer)} action ids ({_ending(**facts)}), as this "
                f"{type(tokenizer).__name__} has, got one of {len(self.rows)} "
                f"({_ending(self.has_pad, self.fixed_length)}); build it anew from this tokenizer"
            )

    def to_model(self, ids: Any, *, end: bool = False) -> Any:
        """Return the language model's ids of action ids.

        Args:
            ids: `(..., n)` integers, or a list of id lists; pads may follow a chunk, nothing may follow a pad.
            end: append a column, so that every chunk gets its end mark. Without it the longest chunks of a call, and
                all where the tokenizer has no pad, have none.

        Returns:
            `(..., n)` int64, or `(..., n + 1)` with `end`; numpy, or torch on the device of `ids`.

        Raises:
            TokenError: not integers, no ids of the tokenizer, or an id after a pad; says where.
        """
        m = len(self.rows)
        given, give_back = open_ids(ids, _device(ids), m if self.has_pad else None)
        wrong = (given < 0) | (given > m if self.has_pad else given >= m)
        if bool(wrong.any()):
            raise TokenError(f"expected action ids in 0..{m - (not self.has_pad)}, got {_where(wrong, given)}")
        if end:
            given = torch.cat([given, given.new_full((len(given), 1), m)], dim=1)
        pads = (given == m).cumsum(dim=1)
        late = (given != m) & (pads > 0)
        if bool(late.any()):
            raise TokenError(f"expected nothing but pads {m} after a pad, got {_where(late, given)}")
        out = self.rows.to(given.device)[given.clamp(max=m - 1)]
        out[pads == 1] = self.end_id
        out[pads > 1] = self.end_id if self.pad_id is None else self.pad_id
        return give_back(out)

    def to_actions(self, ids: Any, *, errors: str = "strict") -> Any:
        """Return the action ids of what a language model wrote: everything up to the first end mark of a row.

        Args:
            ids: `(..., n)` integers, or a list of id lists; the generated part, without the prompt.
            errors: `strict` refuses ids that stand for no action. `mask`, for free generations, returns them as -1:
                `tokenizer.try_decode` keeps what is before and flags the row.

        Returns:
            `(..., k)` int64, k the longest row; shorter ones are filled with the tokenizer's pad. Without a pad, k is
            at most the length of a chunk, a shorter row is filled with -1, and in one that goes on beyond that length
            the last id is -1: both are flagged by `try_decode`.

        Raises:
            TokenError: not integers or, under `strict`, an id of no action, or more ids than a chunk has; names row,
                position and id.
        """
        if errors not in ("strict", "mask"):
            raise ActionValueError(f"expected errors='strict' or 'mask', got {errors!r}")
        given, give_back = open_ids(ids, _device(ids), self.end_id)
        said = (given == self.end_id).cumsum(dim=1) == 0
        order = self._order.to(given.device)
        place = torch.searchsorted(self.rows.to(given.device)[order], given.contiguous())
        actions = order[place.clamp(max=len(order) - 1)]
        foreign = said & (self.rows.to(given.device)[actions] != given)
        if errors == "strict" and bool(foreign.any()):
            raise TokenError(
                f"expected rows of action ids, then the end mark {self.end_id}, got {_where(foreign, given)}; "
                "generate under ActionLogitsProcessor, or pass errors='mask' and use try_decode"
            )
        actions[foreign] = -1
        actions[~said] = len(self.rows) if self.has_pad else -1
        lengths = said.sum(dim=1)
        longest = int(lengths.max()) if len(lengths) else 0
        if self.fixed_length is not None and longest > self.fixed_length:
            longest = self.fixed_length
            over = said & (torch.arange(given.shape[1], device=given.device) == longest)
            if errors == "strict":
                raise TokenError(
                    f"expected the end mark {self.end_id} after the {longest} ids of a chunk, got {_where(over, given)}"
                )
            actions[lengths > longest, longest - 1] = -1
        return give_back(actions[:, :longest])


def _ids(tokenizer: ActionTokenizer) -> int:
    """Return m, the ids that need a row: all but the pad."""
    return tokenizer.vocab_size - (tokenizer.pad_id is not None)


def _facts(tokenizer: ActionTokenizer) -> dict[str, Any]:
    has_pad = tokenizer.pad_id is not None
    return {"has_pad": has_pad, "fixed_length": None if has_pad else tokenizer.max_tokens}


def _ending(has_pad: bool, fixed_length: int | None) -> str:
    return "and a pad" if has_pad else f"no pad, {fixed_length} ids per chunk"


def _text_size(text: Any) -> int:
    if isinstance(text, int | np.integer):
        return _whole(text, "text")
    # a name has a length too, and a table counted from it would be wrong without a word
    if not hasattr(text, "__len__") or not (hasattr(text, "vocab_size") or hasattr(text, "convert_tokens_to_ids")):
        raise ActionValueError(
            f"expected the language model's tokenizer object, or its length, got a {type(text).__name__}"
        )
    return len(text)


def _base_size(text: Any) -> int | None:
    """Return the words of a language model's tokenizer before any were added, where it knows."""
    size = getattr(text, "vocab_size", None)
    return size() if callable(size) else size  # a method of sentencepiece


def _tail_end(text: Any, model_rows: int, size: int | None) -> int:
    length, base = _text_size(text), _base_size(text)
    plain = sorted({length} if base is None else {base, length})
    is_number = isinstance(text, int | np.integer)
    if size is not None:
        if _whole(size, "size") in plain or (is_number and size < length):
            return size
        raise ActionValueError(f"expected size= {' or '.join(map(str, plain))}, as the text has, got {size}")
    if len(plain) == 1 and not (is_number and length == model_rows):
        return length
    why = "the language model's tokenizer has added tokens" if len(plain) > 1 else "a model's rows may be padded"
    raise ActionValueError(
        f"expected size= {' or '.join(map(str, plain))} to say where the tail is counted from, because {why}; "
        "got none (OpenVLA and pi0-FAST count from the vocab_size of the language model's tokenizer)"
    )


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= int(value) < MOST_ROWS:
        raise ActionValueError(f"expected {name} an integer >= 0, got {value!r}")
    return int(value)


def _integers(rows: Any) -> torch.Tensor:
    """Return a table as `(m,)` int64 on the CPU."""
    if not isinstance(rows, Iterable):
        raise TokenError(f"expected rows as a sequence of integers, got {rows!r}")
    values = rows.tolist() if isinstance(rows, np.ndarray | torch.Tensor) else list(rows)
    for row in values:
        if not isinstance(row, int | np.integer) or isinstance(row, bool) or abs(int(row)) >= MOST_ROWS:
            raise TokenError(f"expected integer rows, got {row!r}; tokens have names, their ids are meant")
    if not values:
        raise TokenError("expected a row for each action id, got none")
    return torch.tensor([int(row) for row in values], dtype=torch.int64, device="cpu")


def _device(ids: Any) -> torch.device:
    return ids.device if isinstance(ids, torch.Tensor) else torch.device("cpu")


def _where(wrong: torch.Tensor, ids: torch.Tensor) -> str:
    row, position = wrong.nonzero()[0].tolist()
    return f"id {int(ids[row, position])} in row {row}, position {position} ({int(wrong.sum())} such ids)"
