"""Fit what is not fitted on one part of the episodes, and keep the other for measuring."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data import ChunkSample, Episodes, default_horizon
from action_tokenizers.errors import ActionShapeError, ActionTokenizerError, ActionValueError
from action_tokenizers.ranges import OpenRange
from action_tokenizers.tokenizers.published_fast import PublishedFASTTokenizer

__all__ = ["Fitted", "common_horizon", "fit_all"]


@dataclass(frozen=True)
class Fitted:
    """Fitted tokenizers by name, and the episodes that none of those fitted here has seen.

    Attributes:
        tokenizers: all of them.
        held_out: what to measure on.
        notes: what a reader must know.
        train: what those in `fresh` were fitted on; None where none was fitted here.
        fresh: names of the tokenizers fitted here.
    """

    tokenizers: dict[str, ActionTokenizer]
    held_out: Episodes
    notes: list[str]
    train: Episodes | None = None
    fresh: frozenset[str] = frozenset()


def common_horizon(tokenizers: Mapping[str, ActionTokenizer], episodes: Episodes) -> int:
    """Return the horizon that all of them have or ask for; one second of data where they leave it open.

    Raises:
        ActionShapeError: several, or none to be had.
    """
    asked = {h for h in (t.horizon if t.is_fitted else t.asked_horizon for t in tokenizers.values()) if h is not None}
    if len(asked) > 1:
        raise ActionShapeError(f"expected tokenizers of one horizon to compare, got {sorted(asked)}")
    horizon = asked.pop() if asked else default_horizon(episodes)
    if horizon is None:
        raise ActionShapeError(
            f"expected a horizon, but {episodes.source} has no fps to take one second of; give horizon= (--horizon)"
        )
    return horizon


def fit_all(
    tokenizers: Mapping[str, ActionTokenizer],
    episodes: Episodes,
    horizon: int,
    *,
    test: float = 0.2,
    stride: int = 1,
    seed: int = 0,
    allow_single_episode: bool = False,
    skip_unfit: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Fit copies of the unfitted ones on one part of the episodes; where all are fitted, hold out all episodes.

    Args:
        tokenizers: name -> tokenizer; they stay as they are.
        episodes: demonstrations.
        horizon: steps per chunk.
        test: share of the episodes to hold out.
        stride: between the starts of chunks.
        seed: of the split.
        allow_single_episode: split a single episode in time.
        skip_unfit: note those that cannot be fitted on these data, instead of raising.
        progress: called as `progress(stage, done, total)`.

    Raises:
        ActionValueError: one single episode without `allow_single_episode`, or nothing that can be fitted.
    """
    notes: list[str] = []
    if all(t.is_fitted and not _takes_normalised(t) for t in tokenizers.values()):
        return Fitted(dict(tokenizers), episodes, notes)
    if len(episodes) == 1 and not allow_single_episode:
        raise ActionValueError(
            f"expected two or more episodes to hold some out, got the single one of {episodes.source}; to split it in "
            "time and call the halves held-out all the same, pass allow_single_episode (--allow-single-episode)"
        )
    train, held_out = episodes.split(test, seed=seed, horizon=horizon)
    if not held_out.independent:
        notes.append("both halves come from one recording: the numbers are not independent of the fit")
    sample = ChunkSample().add(train, horizon, stride)
    if sample.skipped:
        notes.append(f"{sample.skipped} training episodes are shorter than the horizon and were skipped")
    fitted: dict[str, ActionTokenizer] = {}
    for done, (name, tokenizer) in enumerate(tokenizers.items()):
        if progress is not None:
            progress("fit", done, len(tokenizers))
        if _takes_normalised(tokenizer):
            fitted[name] = tokenizer.with_range(sample)
            notes.append(f"{name} takes normalised actions: it was given the q01-q99 range of the training episodes")
            continue
        if tokenizer.is_fitted:
            fitted[name] = tokenizer
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*shorter than the horizon")  # the note says it
            try:
                fitted[name] = copy.deepcopy(tokenizer).fit(sample)
            except ActionTokenizerError as error:
                if not skip_unfit:
                    raise
                notes.append(f"{name} was left out: {error}")
    if not fitted:
        raise ActionValueError(f"expected a tokenizer that can be fitted on these data, got none; {'; '.join(notes)}")
    fresh = frozenset(name for name in fitted if not tokenizers[name].is_fitted)
    return Fitted(fitted, held_out, notes, train, fresh)


def _takes_normalised(tokenizer: ActionTokenizer) -> TypeGuard[PublishedFASTTokenizer]:
    """Say whether it was imported without a normaliser, so that raw actions mean nothing to it."""
    return isinstance(tokenizer, PublishedFASTTokenizer) and isinstance(tokenizer.range, OpenRange)
