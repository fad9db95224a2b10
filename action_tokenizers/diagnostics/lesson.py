"""What a small probe is taught and asked: chunks of recorded actions, and single ids of them.

The probe sees what was recorded up to the chunk's first step: the last action (zeros and a flag at an episode's
start), the state where states are given, and the ids of a chunk that would hold the last action for good, which say
the same in the tokenizer's own words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.data.chunks import ChunkPlan, gather, plan_chunks, windows
from action_tokenizers.diagnostics.grammar import Grammar, Held, spread
from action_tokenizers.diagnostics.scene import Coded
from action_tokenizers.diagnostics.subject import Subject

__all__ = ["Chunks", "Examples", "Lesson", "coded_at", "holding", "thinned"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
States = Sequence[npt.NDArray[np.floating]]

CHUNKS = 4096  # about the most windows to train on, and the most chunks to judge on
PLACES = 32  # most ids per window that are trained on, and per chunk that are judged


class Chunks(NamedTuple):
    """Some chunks, and what the probe is shown of each before its first id."""

    ids: Ints  # (n, m)
    lengths: Ints  # (n,)
    episode: Ints  # (n,)
    last: Floats  # (n, d) the action before; 0 where there is none
    starts: Bools  # (n,) whether there is none
    state: Floats  # (n, ds)
    held: Held

    @classmethod
    def of(
        cls, subject: Subject, states: States | None, coded: Coded, plan: ChunkPlan, ids: Ints, grammar: Grammar
    ) -> "Chunks":
        """Look up what was recorded before the chunks of a `plan`, which are `coded` as `ids (n, m)`."""
        episodes, tokenizer, key = subject.episodes, subject.tokenizer, subject.key
        starts = plan.first == 0
        places = list(zip(plan.position.tolist(), plan.first.tolist(), strict=True))
        last = np.array([episodes.actions[at][max(first - 1, 0)] for at, first in places], np.float64)
        last[starts] = 0
        state = np.empty((len(places), 0)) if states is None else np.array([states[at][first] for at, first in places])
        hold = Coded(holding(last, coded), np.zeros_like(coded.is_pad)).encode(tokenizer, key)
        hold[starts] = -1
        lengths = np.asarray(tokenizer.length(ids, **coded.shape))
        return cls(ids, lengths, plan.position, last, starts, state, grammar.held(hold))

    def at(self, which: Ints) -> "Chunks":
        """Return some of them."""
        return Chunks(
            self.ids[which],
            self.lengths[which],
            self.episode[which],
            self.last[which],
            self.starts[which],
            self.state[which],
            self.held[which],
        )


class Examples(NamedTuple):
    """Single ids to predict, and what the probe looks at beside what it is shown of the chunk."""

    chunk: Ints  # (b,)
    position: Ints  # (b,)
    place: Ints  # (b, 4)
    looks: Ints  # (b, LOOKS)
    target: Ints  # (b,)

    @classmethod
    def of(cls, grammar: Grammar, chunks: Chunks, most: int, rng: np.random.Generator) -> "Examples":
        """Take at most `most` ids of each chunk: evenly spread from a random start, so that each is as likely."""
        counts = np.minimum(chunks.lengths, most)
        chunk, nth = spread(counts)
        share = (nth + rng.random(len(counts))[chunk]) / counts[chunk]
        position = np.minimum((share * chunks.lengths[chunk]).astype(np.int64), chunks.lengths[chunk] - 1)
        place, looks = grammar.context(chunks.ids, chunk, position, chunks.held)
        return cls(chunk, position, place, looks, chunks.ids[chunk, position])

    def at(self, which: Ints) -> "Examples":
        """Return some of them."""
        return Examples(*(field[which] for field in self))


class Lesson(NamedTuple):
    """The windows to train on, from anywhere in the episodes, and the chunks to judge on, of all episodes."""

    subject: Subject
    grammar: Grammar
    rows: Ints  # of the subject's chunks: those to judge on
    coded: Coded  # the windows
    windows: Chunks
    chunks: Chunks
    train: Examples
    judge: Examples

    @classmethod
    def of(cls, subject: Subject, states: States | None, rows: Ints, seed: int) -> "Lesson":
        """Prepare a lesson.

        Args:
            subject: the tokenizer on the episodes.
            states: per episode `(t_i, ds)`, or None.
            rows: which of its chunks to judge on, all of them wholly recorded.
            seed: of the ids that are asked of long chunks.
        """
        rng = np.random.default_rng([seed, 3])
        plan, coded = _windows(subject)
        ids = coded.encode(subject.tokenizer, subject.key)
        lengths = np.asarray(subject.tokenizer.length(ids, **coded.shape))
        grammar = Grammar.of(subject.tokenizer, coded.shape, ids, lengths)
        windows = Chunks.of(subject, states, coded, plan, ids, grammar)
        plan = ChunkPlan(subject.episode[rows], subject.first[rows], subject.horizon, ())
        chunks = Chunks.of(subject, states, coded_at(subject.coded, rows), plan, subject.ids[rows], grammar)
        train, judge = (Examples.of(grammar, some, PLACES, rng) for some in (windows, chunks))
        return cls(subject, grammar, rows, coded, windows, chunks, train, judge)


def thinned(episode: Ints) -> Bools:
    """Say which of the chunks of `episode (n,)`, ascending, to keep: about `CHUNKS`, evenly, at least one of each."""
    _, nth = spread(np.unique(episode, return_counts=True)[1])
    kept: Bools = nth % max(1, -(-len(episode) // CHUNKS)) == 0
    return kept


def coded_at(coded: Coded, rows: Ints) -> Coded:
    """Return some of the chunks."""
    reference = None if coded.reference is None else coded.reference[rows]
    return Coded(coded.actions[rows], coded.is_pad[rows], reference, coded.relative)


def holding(actions: Floats, coded: Coded) -> Singles:
    """Return chunks that hold `actions (n, d)`, as `coded` is coded, `(n, t, d)`."""
    chunks = np.repeat(actions[:, None].astype(np.float32), coded.actions.shape[1], axis=1)
    if coded.relative is None or coded.reference is None:
        return chunks
    return np.asarray(coded.relative.apply(chunks, coded.reference))


def _windows(subject: Subject) -> tuple[ChunkPlan, Coded]:
    """Return whole windows, evenly spread over the episodes, as they are coded."""
    episodes, horizon = subject.episodes, subject.horizon
    plan = plan_chunks(episodes, horizon)
    if episodes.action_is_pad is not None:
        padded = [windows(mask, horizon).any(1) for mask in episodes.action_is_pad]
        whole = [not padded[at][first] for at, first in zip(plan.position, plan.first, strict=True)]
        plan = plan[np.array(whole, np.bool_)]
    plan = plan[thinned(plan.position)]
    return plan, Coded.of(gather(episodes, plan, subject.tokenizer.relative), subject.tokenizer.relative)
