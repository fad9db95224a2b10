"""transformers: generate chunks and nothing but chunks, and load saved tokenizers with `AutoProcessor`.

Works with transformers 4.57 and 5. `ActionLogitsProcessor` needs torch alone.
"""

from functools import cache
from typing import Any

import torch

from action_tokenizers.artifact import MODEL_TYPE
from action_tokenizers.base import ActionTokenizer
from action_tokenizers.errors import ActionValueError, TokenError
from action_tokenizers.extras import require
from action_tokenizers.vocabulary import ActionVocabulary

__all__ = ["ActionLogitsProcessor", "ActionProcessor", "register"]

PASSED_ON = ("revision", "token", "cache_dir", "local_files_only")


class ActionLogitsProcessor:
    """Leave a language model only the ids after which a chunk can still be completed; then only its end mark.

    For `model.generate(..., logits_processor=[processor], max_new_tokens=processor.max_new_tokens,
    eos_token_id=vocabulary.end_id)`: greedy, sampling or beams, any batch, any device. Scores are only ever lowered to
    -inf. One processor serves one `generate` at a time.

    Beam search keeps beams of probability 0 alive where fewer ids are allowed than it has beams, and they hold ids
    nobody allowed; speculative decoding tries such ids. They get nothing but the end mark. The action part that
    `generate` begins with is checked: there, ids that begin no chunk are an error.

    Continuous batching hands a processor no rows of its own, and drops it.

    Args:
        tokenizer: the fitted action tokenizer.
        vocabulary: the rows of its ids.
        start: where the action part begins: the length of the prompts, which are padded on the left.
        begin_id: instead of `start`: the action part of a row begins after its last `begin_id`.
        horizon: as in `tokenizer.allowed`, where the fit left it open.
        action_dim: likewise.

    Example:
        >>> import numpy as np
        >>> from action_tokenizers import BinningTokenizer
        >>> tokenizer = BinningTokenizer(bins=4).fit(np.linspace(-1, 1, 24).reshape(4, 3, 2))
        >>> vocabulary = ActionVocabulary.append(100, tokenizer, model_rows=128, end_id=2)
        >>> process = ActionLogitsProcessor(tokenizer, vocabulary, start=3)
        >>> process(torch.tensor([[1, 7, 9]]), torch.zeros(1, 128)).isfinite().nonzero()[:, 1].tolist()
        [100, 101, 102, 103]
    """

    supports_continuous_batching = False

    def __init__(
        self,
        tokenizer: ActionTokenizer,
        vocabulary: ActionVocabulary,
        *,
        start: int | None = None,
        begin_id: int | None = None,
        horizon: int | None = None,
        action_dim: int | None = None,
    ) -> None:
        vocabulary.check(tokenizer)
        if (start is None) == (begin_id is None):
            raise ActionValueError(f"expected start= or begin_id=, got {start} and {begin_id}")
        for name, place in (("start", start), ("begin_id", begin_id)):
            if place is not None and (isinstance(place, bool) or not isinstance(place, int) or place < 0):
                raise ActionValueError(f"expected {name} >= 0, an integer, got {place!r}")
        if begin_id is not None and (begin_id == vocabulary.end_id or bool((vocabulary.rows == begin_id).any())):
            raise ActionValueError(f"expected a begin_id that is no action and no end mark, got {begin_id}")
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.start = start
        self.begin_id = begin_id
        self._shape = {"horizon": horizon, "action_dim": action_dim}
        # after the end mark, and in rows that a batch waits for
        self._rest = vocabulary.end_id if vocabulary.pad_id is None else vocabulary.pad_id
        self._width = max(int(vocabulary.rows.max()), vocabulary.end_id, self._rest) + 1
        self._seen = -1
        self._begun = torch.empty(0, 0, dtype=torch.int64)  # what the generation at hand began with
        self.max_new_tokens = tokenizer.max_tokens_for(horizon, action_dim) + 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores (b, rows)` with -inf wherever the next id of `input_ids (b, n)` may not be.

        Raises:
            TokenError: no `begin_id` in a row, or an action part that begins no chunk at the start of a generation.
            ActionValueError: prompts shorter than `start`, fewer scores than rows, or no id left that another
                processor allows.
        """
        if scores.shape[1] < self._width:
            raise ActionValueError(
                f"expected scores of at least {self._width} rows, got {scores.shape[1]}: the language model is smaller "
                f"than the table; call model.resize_token_embeddings({self._width})"
            )
        n = input_ids.shape[1]
        # any later call is one id longer: what that id is was our choice, or that of a search without hope
        begun = self._begun.to(input_ids.device)
        goes_on = n == self._seen + 1 and torch.equal(input_ids[:, : begun.shape[1]], begun)
        strict, self._seen = not goes_on, n
        if strict:
            self._begun = input_ids.clone()
        lengths = self._lengths(input_ids)
        actions, ended = self._read(input_ids, lengths, strict)
        if strict:
            self._check_ended(actions, ended)
        allowed = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        allowed[ended, self._rest] = True
        for length in sorted(set(lengths[~ended].tolist())):
            rows = (~ended & (lengths == length)).nonzero()[:, 0]
            self._allow(allowed, rows, actions[rows, :length], strict)
        hopeless = ~(allowed & (scores > -torch.inf)).any(dim=1)
        if bool(hopeless.any()):
            row = int(hopeless.nonzero()[0])
            raise ActionValueError(
                f"expected a score above -inf among the ids that may follow, got none in row {row}: another processor "
                "forbids them (min_new_tokens, suppress_tokens, bad_words_ids), or scores are NaN"
            )
        return scores.masked_fill(~allowed, -torch.inf)

    def _lengths(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return how many ids of each row are its action part, `(b,)`."""
        b, n = input_ids.shape
        if self.begin_id is None:
            length = n - (self.start or 0)
            if length < 0:
                raise ActionValueError(f"expected prompts of at least start={self.start} ids, got {n}")
            return torch.full((b,), length, device=input_ids.device)
        begins = (input_ids == self.begin_id).int()
        if not bool(begins.any(dim=1).all()):
            row = int((begins.sum(dim=1) == 0).nonzero()[0])
            raise TokenError(f"expected begin_id {self.begin_id} in every row, got none in row {row}")
        return begins.flip(1).argmax(dim=1)

    def _read(self, input_ids: torch.Tensor, lengths: torch.Tensor, strict: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the action ids of each row, on the left, and whether its end mark has come."""
        longest = int(lengths.max()) if len(lengths) else 0
        steps = torch.arange(longest, device=input_ids.device)
        inside = steps < lengths[:, None]
        at = (input_ids.shape[1] - lengths[:, None] + steps).clamp(max=max(0, input_ids.shape[1] - 1))
        end = self.vocabulary.end_id
        written = input_ids.gather(1, at).where(inside, end)
        try:
            actions = self.vocabulary.to_actions(written, errors="strict" if strict else "mask")
        except TokenError as error:
            raise TokenError(f"in the action part, which begins {self._begin()}: {error}") from error
        return actions, ((written == end) & inside).any(dim=1)

    def _allow(self, allowed: torch.Tensor, rows: torch.Tensor, prefix: torch.Tensor, strict: bool) -> None:
        """Mark what may follow the action ids `prefix (r, m)` in `rows (r,)` of the mask."""
        shape = self._shape
        following = self.tokenizer.allowed(prefix, **shape)[:, : len(self.vocabulary.rows)]
        closed = ~following.any(dim=1)
        if strict and bool(closed.any()):
            self._refuse(closed & (self.tokenizer.length(prefix, **shape) != prefix.shape[1]), rows, prefix)
        table = self.vocabulary.rows.to(allowed.device)
        allowed[rows[:, None], table] = following.to(allowed.device)
        allowed[rows[closed], self.vocabulary.end_id] = True

    def _check_ended(self, actions: torch.Tensor, ended: torch.Tensor) -> None:
        """Refuse an action part that came with an end mark before its chunk was complete."""
        if bool(ended.any()):
            pad = len(self.vocabulary.rows) if self.vocabulary.has_pad else -1
            written, rows = actions[ended], ended.nonzero()[:, 0]
            self._refuse(self.tokenizer.length(written, **self._shape) != (written != pad).sum(1), rows, written)

    def _refuse(self, lost: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor) -> None:
        if bool(lost.any()):
            raise TokenError(
                f"expected an action part that begins a chunk, got the ids {ids[lost][0].tolist()} in row "
                f"{int(rows[lost][0])}, where it begins {self._begin()}; check where the prompt ends"
            )

    def _begin(self) -> str:
        return f"at {self.start}" if self.begin_id is None else f"after the last id {self.begin_id}"


class ActionProcessor:
    """What `AutoProcessor` finds after `register()`: it loads the tokenizer itself, not a wrapper around it."""

    @classmethod
    def from_pretrained(cls, name: Any, **options: Any) -> ActionTokenizer:
        """Return `ActionTokenizer.from_pretrained(name)`; of the options those about the Hub are passed on."""
        return ActionTokenizer.from_pretrained(name, **{key: options[key] for key in PASSED_ON if key in options})


def register() -> None:
    """Let `AutoProcessor.from_pretrained(folder)` return our tokenizers without running code from the folder.

    May be called any number of times.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", "transformers")
    config = _config_class()
    transformers.AutoConfig.register(MODEL_TYPE, config, exist_ok=True)
    transformers.AutoProcessor.register(config, ActionProcessor, exist_ok=True)


@cache
def _config_class() -> Any:
    # made here because its base class comes with transformers, and once because it is the key of their registry
    base = require("transformers", "transformers").PretrainedConfig
    return type("ActionTokenizerConfig", (base,), {"model_type": MODEL_TYPE, "__module__": __name__})
