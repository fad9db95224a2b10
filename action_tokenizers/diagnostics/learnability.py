"""How well a small, fixed probe learns to predict the ids: one model and one budget for every tokenizer.

The probe stands for a policy that is trained on ids. It sees what was recorded up to the chunk's first step: the last
action (zeros and a flag at an episode's start), the state where states are given, and the ids of a chunk that would
hold the last action for good, which say the same in the tokenizer's own words. It predicts the ids one after another,
each from these, from four earlier ids and from the id's place in the chunk. Its first guess is how often each id
stands there at all (the unigram baseline), and what it learns is added to that. It is trained on one half of the
episodes, on windows from anywhere in them, until a fifth of that half is predicted no better, and judged on the other
half; then the halves change places.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy, embedding

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data.chunks import ChunkPlan, gather, plan_chunks, windows
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure, bootstrap_t
from action_tokenizers.diagnostics.scene import Coded
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.slots import SlotTokenizer

__all__ = ["ESTIMATORS", "learnability"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
States = Sequence[npt.NDArray[np.floating]]

STEPS = 200  # of the optimiser,
BATCH = 512  # ids each: the budget, the same for every tokenizer
RATE = 1e-2
HIDDEN, WIDTH = 128, 32  # units of the hidden layer, dims of an id's embedding
LOOKS = 5  # ids that the probe looks at: four earlier ones, and the one that would hold the last action
CHUNKS = 4096  # about the most windows to train on, and the most chunks to judge on
PLACES = 32  # most ids per window that are trained on, and per chunk that are judged
CHOICES = 1024  # most ids per place that are told apart; the rarer ones share what is left
GROUPS = 8  # most kinds of place in one batch
BLOCK = 4096  # ids judged at once
JUDGED = 2000  # most ids that decide when training stops
DECODED = 128  # most chunks that are decoded
FEW = 10  # episodes, below which a note says so
STOPS = (0, 4, 8, 16, 32, 64, 100, 150)  # steps, beside the last one, after which training may stop

# how much of the unigram is the place's own, and how much of it is spread evenly: the best of these
PLACED, BLIND = (0.0, 0.5, 0.9), (0.3, 0.1, 0.03, 0.01)

ESTIMATORS = (
    Estimator(
        name="probe_nll",
        heading="nats per chunk under a small probe",
        unit="nats per chunk",
        kinds=(Kind.CONSISTENT,),
        meaning="How badly a small model, trained on half of these episodes, predicts the ids of the other half: 0 is "
        "certainty, and each further 0.7 is one coin flip that it has to guess.",
        caution="Compare only at equal chunk length and data: it is the number of this probe and this many episodes, "
        "and a large policy learns more. The interval leaves out the luck of training.",
        advice="Of tokenizers with equal error take the one with fewer nats. Close to the unigram baseline the probe "
        "has learnt next to nothing: coarser cells, fewer ids or more episodes.",
        source="replay of 44 tokenizers on 9 simulated tasks and cloning on 2 of them, 2026",
        function="learnability.learnability",
        test="test_learnability.py::test_ids_that_follow_from_the_context_are_learnt",
    ),
    Estimator(
        name="probe_error",
        heading="error of what the probe decodes",
        unit="half range",
        kinds=(Kind.CONSISTENT,),
        meaning="How far the actions lie from the recorded ones, per step, when the small probe writes each chunk "
        "itself, always taking the likeliest id.",
        caution="Compare only at equal chunk length and data. Where demonstrators choose freely no policy gets near "
        "0; the likeliest id is not the mean action, and likes to repeat the last one.",
        advice="Read it between the tokenizer's own error and that of repeating the last action. Far above the "
        "latter, the ids are too many or too many-sided for this little data.",
        source="replay of 44 tokenizers on 9 simulated tasks and cloning on 2 of them, 2026",
        function="learnability.learnability",
        test="test_learnability.py::test_ids_that_follow_from_the_context_are_learnt",
    ),
)
NLL, ERROR = ESTIMATORS


def learnability(
    subject: Subject,
    states: States | None = None,
    seed: int = 0,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> list[Measure]:
    """Return the probe's held-out NLL per chunk, and the error of the chunks it writes itself.

    Chunks that are not wholly recorded are left out, and of very many some. Both are means over the chunks of an
    episode, then over episodes.

    Args:
        subject: the tokenizer on the episodes, both halves of them.
        states: per episode `(t_i, ds)`; None: the probe sees the last action only.
        seed: of the halves, the first weights and the batches.
        steps: of training, per half.
        progress: called as `progress(stage, done, total)`.

    Returns:
        `probe_nll` and `probe_error`; None with fewer than two episodes of a whole chunk.
    """
    rows = np.flatnonzero(subject.real.all(1))
    rows = rows[_thinned(subject.episode[rows])]
    present = np.unique(subject.episode[rows])
    if len(present) < 2:
        note = f"Not shown: it takes two episodes with a whole chunk, and there is {len(present)}."
        return [row.measure(None, n={"episodes": len(present)}, note=note) for row in ESTIMATORS]
    lesson = _Lesson.of(subject, states, rows, seed)
    order = np.random.default_rng([seed, 0]).permutation(present)
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    results = []
    with _undisturbed():
        for k, half in enumerate(halves):
            if progress is not None:
                progress("probe", k, len(halves))
            probe = _Probe(lesson, halves[1 - k], steps, np.random.default_rng([seed, 1, k]))
            # drawn anew, so that every tokenizer is asked for the same chunks
            results.append(_judge(lesson, probe, half, np.random.default_rng([seed, 2, k])))
    return [_nll(lesson, results), _error(lesson, results)]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Compute the same whatever the caller has set: no_grad, autocast, or how many threads torch may use.

    Sums over threads round differently, and for layers this small one thread is quicker. The limit holds for this
    thread only.
    """
    from threadpoolctl import threadpool_limits

    with (
        threadpool_limits(1, user_api="openmp"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


class _Chunks(NamedTuple):
    """Some chunks, and what the probe is shown of each before its first id."""

    coded: Coded
    ids: Ints  # (n, m)
    lengths: Ints  # (n,)
    episode: Ints  # (n,)
    last: Floats  # (n, d) the action before; 0 where there is none
    starts: Bools  # (n,) whether there is none
    state: Floats  # (n, ds)
    hold: Ints  # (n, h) the ids of a chunk that holds the last action; -1: there is none
    hold_place: Ints  # (n, h) where each of these stands

    @classmethod
    def of(
        cls,
        subject: Subject,
        states: States | None,
        coded: Coded,
        plan: ChunkPlan,
        ids: Ints,
        grammar: "_Grammar",
    ) -> "_Chunks":
        episodes, tokenizer, key = subject.episodes, subject.tokenizer, subject.key
        starts = plan.first == 0
        places = list(zip(plan.position.tolist(), plan.first.tolist(), strict=True))
        last = np.array([episodes.actions[at][max(first - 1, 0)] for at, first in places], np.float64)
        last[starts] = 0
        state = np.empty((len(places), 0)) if states is None else np.array([states[at][first] for at, first in places])
        held = Coded(_held(last, coded), np.zeros_like(coded.is_pad))
        hold = held.encode(tokenizer, key)
        hold[starts] = -1
        lengths = np.asarray(tokenizer.length(ids, **coded.shape))
        return cls(coded, ids, lengths, plan.position, last, starts, state, hold, grammar.places_of(hold))

    def at(self, which: Ints) -> "_Chunks":
        return _Chunks(
            _some(self.coded, which),
            self.ids[which],
            self.lengths[which],
            self.episode[which],
            self.last[which],
            self.starts[which],
            self.state[which],
            self.hold[which],
            self.hold_place[which],
        )


class _Examples(NamedTuple):
    """Single ids to predict, and what the probe looks at beside what it is shown of the chunk."""

    chunk: Ints  # (b,)
    position: Ints  # (b,)
    place: Ints  # (b, 4) step, dim, level and position, each + 1; 0: does not apply
    looks: Ints  # (b, LOOKS) ids; -1: there is none
    target: Ints  # (b,)

    @classmethod
    def of(cls, grammar: "_Grammar", chunks: _Chunks, most: int, rng: np.random.Generator) -> "_Examples":
        """Take at most `most` ids of each chunk: evenly spread from a random start, so that each is as likely."""
        counts = np.minimum(chunks.lengths, most)
        chunk, nth = _spread(counts)
        share = (nth + rng.random(len(counts))[chunk]) / counts[chunk]
        position = np.minimum((share * chunks.lengths[chunk]).astype(np.int64), chunks.lengths[chunk] - 1)
        place = grammar.place(chunks.ids, chunk, position)
        looks = grammar.looks(chunks, chunks.ids, chunk, position, place)
        return cls(chunk, position, place, looks, chunks.ids[chunk, position])

    def at(self, which: Ints) -> "_Examples":
        return _Examples(*(field[which] for field in self))


class _Grammar(ABC):
    """What may stand where in a chunk, and what it is about. Positions are of one kind where the same ids may stand.

    Attributes:
        kinds: `(k, 2)` the first id of each kind, and the id after its last.
        masks: whether the ids before decide which of these may stand there.
    """

    kinds: Ints
    masks: bool

    @abstractmethod
    def kind(self, position: Ints) -> Ints:
        """Return the kind of each position."""

    @abstractmethod
    def place(self, ids: Ints, chunk: Ints, position: Ints) -> Ints:
        """Return what the ids at `position (b,)` of `ids[chunk]` are about, `(b, 4)`, knowing only those before."""

    @abstractmethod
    def looks(self, chunks: _Chunks, ids: Ints, chunk: Ints, position: Ints, place: Ints) -> Ints:
        """Return which ids the probe looks at, `(b, LOOKS)`: of `ids[chunk]` only such as stand before `position`."""

    @abstractmethod
    def places_of(self, hold: Ints) -> Ints:
        """Return where each id of `hold` stands, as one number, `(n, h)`."""

    @abstractmethod
    def allowed(self, ids: Ints, chunk: Ints, position: int) -> Bools:
        """Return which ids may stand at `position` of `ids[chunk]`, `(b, v)`, where the grammar `masks`."""

    @abstractmethod
    def complete(self, ids: Ints) -> Bools:
        """Return which rows of `ids (b, m)`, written under `allowed`, are whole chunks, `(b,)`."""

    def groups(self, position: Ints) -> Iterator[Ints]:
        """Yield the rows of `position (b,)` that are of one kind, a block at a time."""
        for rows in _grouped(self.kind(position)):
            yield from np.split(rows, range(BLOCK, len(rows), BLOCK))


class _Slots(_Grammar):
    """Position p always means the same, and the ids looked at are the latest about the same dim and level.

    Before the chunk's first step these are the ones that would hold the last action.
    """

    masks = False

    def __init__(self, tokenizer: ActionTokenizer, shape: dict[str, Any], ids: Ints) -> None:
        allowed = [np.asarray(tokenizer.allowed(ids[0, :p], **shape)) for p in range(ids.shape[1])]
        spans = np.array([[mask.argmax(), mask.argmax() + mask.sum()] for mask in allowed])
        self.kinds, kind = np.unique(spans, axis=0, return_inverse=True)
        self._kind = kind.reshape(-1)
        about = np.asarray(tokenizer.locate(ids[0], **shape))
        self._place = np.concatenate([about, np.full((len(about), 1), -1)], 1) + 1
        self._before = _recurrences(np.concatenate([about[:, 1:], self._kind[:, None]], 1))

    def kind(self, position: Ints) -> Ints:
        return self._kind[position]

    def place(self, ids: Ints, chunk: Ints, position: Ints) -> Ints:
        return self._place[position]

    def looks(self, chunks: _Chunks, ids: Ints, chunk: Ints, position: Ints, place: Ints) -> Ints:
        held = chunks.hold[chunk, position]
        near = [_back(ids, chunk, before) for before in self._before[position].T]
        if (self._before >= 0).any():
            near = [np.where(found < 0, held, found) for found in near]
        else:
            near = [_back(ids, chunk, position - 3), _back(ids, chunk, position - 4)]
        return np.stack([_back(ids, chunk, position - 1), _back(ids, chunk, position - 2), *near, held], 1)

    def places_of(self, hold: Ints) -> Ints:
        return np.broadcast_to(np.arange(hold.shape[1]), hold.shape)

    def allowed(self, ids: Ints, chunk: Ints, position: int) -> Bools:
        raise NotImplementedError  # a kind says it all

    def complete(self, ids: Ints) -> Bools:
        return np.full(len(ids), ids.shape[1] == len(self._kind))


class _Free(_Grammar):
    """What stands where depends on the ids before, as it does for FAST, and only the tokenizer knows."""

    masks = True

    def __init__(self, tokenizer: ActionTokenizer, shape: dict[str, Any], ids: Ints, lengths: Ints) -> None:
        self._tokenizer, self._shape = tokenizer, shape
        self.kinds = np.array([[0, tokenizer.vocab_size - (tokenizer.pad_id is not None)]])
        # a place is named by what one and the same id would be about there: the id itself would give itself away
        about = np.asarray(tokenizer.locate(ids, **shape))
        said = np.arange(ids.shape[1]) < lengths[:, None]
        single = said & (about[..., 1] >= 0)
        values, counts = np.unique(ids[single if single.any() else said], return_counts=True)
        self._marker = int(values[counts.argmax()])

    def kind(self, position: Ints) -> Ints:
        return np.zeros_like(position)

    def place(self, ids: Ints, chunk: Ints, position: Ints) -> Ints:
        out = np.empty((len(position), 4), np.int64)
        out[:, 3] = position
        for rows in _grouped(position):
            p = int(position[rows[0]])
            marked = np.concatenate([ids[chunk[rows], :p], np.full((len(rows), 1), self._marker)], 1)
            out[rows, :3] = np.asarray(self._tokenizer.locate(marked, **self._shape))[:, p]
        return out + 1

    def looks(self, chunks: _Chunks, ids: Ints, chunk: Ints, position: Ints, place: Ints) -> Ints:
        match = chunks.hold_place[chunk] == _code(place)[:, None]
        held = np.where(match.any(1), chunks.hold[chunk, match.argmax(1)], -1)
        return np.stack([*(_back(ids, chunk, position - i) for i in range(1, LOOKS)), held], 1)

    def allowed(self, ids: Ints, chunk: Ints, position: int) -> Bools:
        return np.asarray(self._tokenizer.allowed(ids[chunk, :position], **self._shape))

    def complete(self, ids: Ints) -> Bools:
        return np.asarray(self._tokenizer.length(ids, **self._shape)) >= 0

    def places_of(self, hold: Ints) -> Ints:
        lengths = np.where(hold[:, 0] < 0, 0, np.asarray(self._tokenizer.length(hold, **self._shape)))
        chunk, nth = _spread(lengths)
        places = np.zeros(hold.shape, np.int64)  # of no id
        places[chunk, nth] = _code(self.place(hold, chunk, nth))
        return places


class _Nats(NamedTuple):
    """Nats of single ids, each `(b,)`."""

    probe: Floats
    unigram: Floats
    even: Floats  # every id that may stand there as likely


class _Lesson(NamedTuple):
    """The windows to train on and the chunks to judge on, of all episodes."""

    subject: Subject
    grammar: _Grammar
    rows: Ints  # of the subject's chunks: those to judge on
    windows: _Chunks
    chunks: _Chunks
    train: _Examples
    judge: _Examples

    @classmethod
    def of(cls, subject: Subject, states: States | None, rows: Ints, seed: int) -> "_Lesson":
        rng = np.random.default_rng([seed, 3])
        tokenizer, coded = subject.tokenizer, subject.coded
        plan, cut = _windows(subject)
        ids = cut.encode(tokenizer, subject.key)
        lengths = np.asarray(tokenizer.length(ids, **cut.shape))
        is_slots = isinstance(tokenizer, SlotTokenizer)
        grammar = _Slots(tokenizer, cut.shape, ids) if is_slots else _Free(tokenizer, cut.shape, ids, lengths)
        windows = _Chunks.of(subject, states, cut, plan, ids, grammar)
        plan = ChunkPlan(subject.episode[rows], subject.first[rows], subject.horizon, ())
        chunks = _Chunks.of(subject, states, _some(coded, rows), plan, subject.ids[rows], grammar)
        return cls(
            subject,
            grammar,
            rows,
            windows,
            chunks,
            _Examples.of(grammar, windows, PLACES, rng),
            _Examples.of(grammar, chunks, PLACES, rng),
        )


class _Words:
    """The ids that the probe tells apart: seen in training, the most frequent ones. The others share one word.

    Words are numbered from 0 in the order of their ids; then comes `other`, and `none` where there is no id.
    """

    def __init__(self, grammar: _Grammar, ids: Ints, kind: Ints, vocab_size: int) -> None:
        kept = [_most_frequent(ids[kind == k]) for k in range(len(grammar.kinds))]
        self.ids = np.unique(np.concatenate(kept))
        self.other, self.none = len(self.ids), len(self.ids) + 1
        self._word = np.full(vocab_size + 1, self.other)
        self._word[self.ids] = np.arange(len(self.ids))
        self._word[-1] = self.none  # id -1
        self.spans = np.searchsorted(self.ids, grammar.kinds)  # (k, 2) words of each kind
        self.others = (np.diff(grammar.kinds) - np.diff(self.spans))[:, 0]  # (k,) ids of each that are no word

    def of(self, ids: Ints) -> Ints:
        return self._word[ids]


class _Unigram:
    """How often each word stands at each position, in log probabilities: the baseline, and where the probe begins."""

    def __init__(self, words: _Words, kind: Ints, fit: _Examples, check: _Examples) -> None:
        """Count the ids of `fit`, smoothed as suits those of `check` best; `kind (m,)` of every position."""
        self._kind = kind
        self._row = np.zeros(len(kind), np.int64)
        counts, spread = [], []
        for k, (low, high) in enumerate(words.spans):
            positions = np.flatnonzero(kind == k)
            self._row[positions] = np.arange(len(positions))
            here = np.flatnonzero(kind[fit.position] == k)
            column = np.minimum(words.of(fit.target[here]), high) - low
            table = np.zeros((len(positions), high - low + 1))
            np.add.at(table, (self._row[fit.position[here]], column), 1)
            counts.append(table)
            even = np.append(np.ones(high - low), words.others[k])
            spread.append(even / even.sum())
        tried = []
        for placed, blind in product(PLACED, BLIND):
            mixed = [_smooth(table, even, placed, blind) for table, even in zip(counts, spread, strict=True)]
            tried.append((self._likelihood(mixed, words, check), mixed))
        best = max(range(len(tried)), key=lambda i: tried[i][0])
        with np.errstate(divide="ignore"):
            self._tables = [torch.from_numpy(np.log(table).astype(np.float32)) for table in tried[best][1]]

    def _likelihood(self, tables: list[Floats], words: _Words, check: _Examples) -> float:
        total = 0.0
        position = np.minimum(check.position, len(self._kind) - 1)
        for k, (low, high) in enumerate(words.spans):
            here = np.flatnonzero(self._kind[position] == k)
            column = np.minimum(words.of(check.target[here]), high) - low
            share = tables[k][self._row[position[here]], column]
            # a word that stands for several ids is worth less; its weight is the same under every smoothing
            total += float(np.log(share).sum())
        return total

    def of(self, kind: int, position: Ints) -> torch.Tensor:
        """Return the log probabilities `(b, w + 1)` of the words of a kind, and of `other`, at `position (b,)`."""
        return self._tables[kind][self._row[np.minimum(position, len(self._row) - 1)]]


class _Net:
    """Embeddings of what is looked at, one hidden layer, and a way to repeat an id that was looked at."""

    def __init__(self, words: int, shown: int, places: Ints, rng: np.random.Generator) -> None:
        def normal(*shape: int, scale: float) -> torch.Tensor:
            return torch.from_numpy((rng.standard_normal(shape) * scale).astype(np.float32)).requires_grad_()

        self.embed = normal(words, WIDTH, scale=WIDTH**-0.5)
        self.enter = normal(LOOKS * WIDTH + shown, HIDDEN, scale=(LOOKS + shown) ** -0.5)
        self.about = [normal(size, HIDDEN, scale=0.3) for size in places.tolist()]
        # zero: what is trained begins as the unigram
        self.leave = normal(HIDDEN, WIDTH, scale=0.0)
        self.repeat = normal(HIDDEN, LOOKS, scale=0.0)
        self.always = normal(LOOKS, scale=0.0)
        self.tilt = normal(words, scale=0.0)

    @property
    def weights(self) -> list[torch.Tensor]:
        return [self.embed, self.enter, *self.about, self.leave, self.repeat, self.always, self.tilt]

    def code(self, shown: torch.Tensor, place: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
        """Return where in the space of embeddings the next id should lie, `(b, WIDTH)`."""
        # `embedding`, not an index: its gradient adds up in the same order whatever the threads do
        seen = embedding(looks, self.embed)
        hidden = torch.cat([seen.flatten(1), shown], 1) @ self.enter
        for table, index in zip(self.about, place.T, strict=True):
            hidden = hidden + embedding(index.clamp(max=len(table) - 1), table)
        hidden = hidden.relu()
        copied = (hidden @ self.repeat + self.always)[:, :, None] * seen
        return hidden @ self.leave + copied.sum(1)

    def scores(self, code: torch.Tensor, low: int, high: int, other: int) -> torch.Tensor:
        """Return what to add to the log probabilities of the words `low..high` and of `other`."""
        embed, tilt = (
            table[low : high + 1] if high == other else torch.cat([table[low:high], table[other : other + 1]])
            for table in (self.embed, self.tilt)
        )
        return torch.addmm(tilt, code, embed.T)


class _Probe:
    """What has been learnt from the windows of some episodes."""

    def __init__(self, lesson: _Lesson, episodes: Ints, steps: int, rng: np.random.Generator) -> None:
        """Train on four fifths of `episodes`, and stop where the last fifth is predicted best."""
        windows, train, grammar = lesson.windows, lesson.train, lesson.grammar
        self._lesson = lesson
        fit, check = _parted(windows.episode, episodes)
        known = fit | check
        action = windows.last[known & ~windows.starts]
        self.mean_action: Floats = (action if len(action) else windows.coded.actions[known, 0]).mean(0)
        self._scale = _Scale.of(windows, known)
        fitted = train.at(np.flatnonzero(fit[train.chunk]))
        checked = train.at(np.flatnonzero(check[train.chunk]))
        kind = grammar.kind(fitted.position)
        self.words = _Words(grammar, fitted.target, kind, lesson.subject.tokenizer.vocab_size)
        self._unigram = _Unigram(self.words, grammar.kind(np.arange(windows.ids.shape[1])), fitted, checked)
        sizes = fitted.place.max(0) + 1
        shown = windows.last.shape[1] + 1 + windows.state.shape[1]
        self._net = _Net(self.words.none + 1, shown, sizes, rng)
        self.steps = 0
        if len(checked.chunk) and steps:
            self._train(fitted, checked, kind, steps, rng)

    def _train(self, fit: _Examples, check: _Examples, kind: Ints, steps: int, rng: np.random.Generator) -> None:
        windows, weights = self._lesson.windows, self._net.weights
        shown = torch.from_numpy(self._scale.shown(windows))
        members = [np.flatnonzero(kind == k) for k in range(len(self.words.spans))]
        shares = np.array([len(rows) for rows in members]) / len(kind)
        check = check.at(rng.permutation(len(check.chunk))[:JUDGED])
        adam = _Adam(weights)
        best, kept = math.inf, [weight.detach().clone() for weight in weights]
        for step in range(steps + 1):
            if step in STOPS or step == steps:
                with torch.no_grad():
                    groups = self._lesson.grammar.groups(check.position)
                    loss = sum(float(self._loss(check.at(rows), shown).sum()) for rows in groups)
                if loss < best:
                    best, kept, self.steps = loss, [weight.detach().clone() for weight in weights], step
            if step < steps:
                drawn, counts = np.unique(rng.choice(len(shares), GROUPS, p=shares), return_counts=True)
                batch = [
                    members[k][rng.integers(0, len(members[k]), BATCH // GROUPS * n)]
                    for k, n in zip(drawn, counts, strict=True)
                ]
                losses = [self._loss(fit.at(rows), shown) for rows in batch]
                adam.step(torch.cat(losses).mean(), RATE * (1 + math.cos(math.pi * step / steps)) / 2)
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)

    def _logits(self, shown: torch.Tensor, examples: _Examples, kind: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unigram's log probabilities and what the net adds, `(b, w + 1)` each; `examples` of one kind."""
        place, looks = torch.from_numpy(examples.place), torch.from_numpy(self.words.of(examples.looks))
        low, high = self.words.spans[kind]
        code = self._net.code(shown[torch.from_numpy(examples.chunk)], place, looks)
        return self._unigram.of(kind, examples.position), self._net.scores(code, low, high, self.words.other)

    def _loss(self, examples: _Examples, shown: torch.Tensor) -> torch.Tensor:
        """Return the nats of `examples` of one kind among all words of it, `(b,)`; `other` counts as one."""
        kind = self._kind(examples)
        unigram, learnt = self._logits(shown, examples, kind)
        return cross_entropy(unigram + learnt, self._column(examples.target, kind), reduction="none")

    def _kind(self, examples: _Examples) -> int:
        return int(self._lesson.grammar.kind(examples.position[:1])[0])

    def _column(self, target: Ints, kind: int) -> torch.Tensor:
        low, high = self.words.spans[kind]
        return torch.from_numpy(np.minimum(self.words.of(target), high) - low)

    @torch.no_grad()
    def nll(self, chunks: _Chunks, examples: _Examples) -> _Nats:
        """Return the nats of `examples` of `chunks`, among the ids that may stand there."""
        grammar, shown = self._lesson.grammar, torch.from_numpy(self._scale.shown(chunks))
        found = np.empty((3, len(examples.chunk)))
        for rows in _grouped(examples.position) if grammar.masks else grammar.groups(examples.position):
            some = examples.at(rows)
            mask = grammar.allowed(chunks.ids, some.chunk, int(some.position[0])) if grammar.masks else None
            found[:, rows] = self._judged(some, shown, self._kind(some), mask)
        return _Nats(*found)

    def _judged(self, examples: _Examples, shown: torch.Tensor, kind: int, mask: Bools | None) -> Floats:
        unigram, learnt = self._logits(shown, examples, kind)
        ruled_out, others = self._mask(mask, kind, len(unigram))
        column = self._column(examples.target, kind)
        is_other = column == unigram.shape[1] - 1
        found = []
        for logits in (unigram + learnt, unigram):
            logits[:, -1] += others.log() - math.log(max(1, self.words.others[kind]))
            nats = cross_entropy(logits.masked_fill(ruled_out, -math.inf), column, reduction="none")
            found.append(nats + torch.where(is_other, others.log(), 0))
        even = ((~ruled_out[:, :-1]).sum(1) + others).log()
        return torch.stack([*found, even]).double().numpy()

    def _mask(self, mask: Bools | None, kind: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which words and whether `other` are ruled out, `(b, w + 1)`, and how many others are not, `(b,)`."""
        low, high = self.words.spans[kind]
        if mask is None:
            kept = np.ones((rows, high - low), np.bool_)
            others = np.full(rows, self.words.others[kind])
        else:
            kept = mask[:, self.words.ids[low:high]]
            others = mask.sum(1) - kept.sum(1)
        ruled_out = ~np.concatenate([kept, others[:, None] > 0], 1)
        return torch.from_numpy(ruled_out), torch.from_numpy(others.astype(np.float32))

    @torch.no_grad()
    def write(self, chunks: _Chunks) -> tuple[Ints, Bools]:
        """Return the ids of chunks written by taking the likeliest allowed id each time, and which are whole.

        No chunk gets more ids than the longest one trained on has.
        """
        grammar, tokenizer = self._lesson.grammar, self._lesson.subject.tokenizer
        shown = torch.from_numpy(self._scale.shown(chunks))
        most = self._lesson.windows.ids.shape[1]
        ids = np.full((len(chunks.ids), most), 0 if tokenizer.pad_id is None else tokenizer.pad_id, np.int64)
        open_ = np.arange(len(ids))
        for p in range(most):
            position = np.full(len(open_), p)
            place = grammar.place(ids, open_, position)
            looks = grammar.looks(chunks, ids, open_, position, place)
            kind = int(grammar.kind(position[:1])[0])
            mask = grammar.allowed(ids, open_, p) if grammar.masks else None
            unigram, learnt = self._logits(shown, _Examples(open_, position, place, looks, position), kind)
            ids[open_, p] = self._likeliest((unigram + learnt)[:, :-1], kind, mask)
            open_ = open_[~grammar.complete(ids[open_, : p + 1])]
            if not len(open_):
                break
        return ids, ~np.isin(np.arange(len(ids)), open_)

    def _likeliest(self, logits: torch.Tensor, kind: int, mask: Bools | None) -> Ints:
        low, high = self.words.spans[kind]
        words = self.words.ids[low:high]
        if low == high:
            words, logits = self._lesson.grammar.kinds[kind, :1], logits.new_zeros(len(logits), 1)
        known = np.ones(logits.shape, np.bool_) if mask is None else mask[:, words]
        best: Ints = words[logits.masked_fill(torch.from_numpy(~known), -math.inf).argmax(1).numpy()]
        if mask is not None:
            best = np.where(known.any(1), best, mask.argmax(1))  # of ids never seen none is likelier
        return best


class _Scale(NamedTuple):
    """What turns the last action and the state into numbers of size 1."""

    middle: Floats  # (c,)
    width: Floats  # (c,)

    @classmethod
    def of(cls, chunks: _Chunks, known: Bools) -> "_Scale":
        action = chunks.last[known & ~chunks.starts]
        columns = [action if len(action) else chunks.last[known], chunks.state[known]]
        middle = np.concatenate([column.mean(0) for column in columns])
        width = np.concatenate([column.std(0) for column in columns])
        return cls(middle, np.where(width > 1e-6 * np.maximum(1, np.abs(middle)), width, 1.0))

    def shown(self, chunks: _Chunks) -> Singles:
        """Return `(n, c + 1)`: zeros where there is no last action, and a flag."""
        scaled = (np.concatenate([chunks.last, chunks.state], 1) - self.middle) / self.width
        scaled[chunks.starts, : chunks.last.shape[1]] = 0
        return np.concatenate([scaled, chunks.starts[:, None]], 1).astype(np.float32)


class _Adam:
    """Adam (Kingma & Ba 2015), because the first of torch.optim's takes longer to import than a probe to train."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self._weights = weights
        self._mean = [torch.zeros_like(weight) for weight in weights]
        self._square = [torch.zeros_like(weight) for weight in weights]
        self._steps = 0

    def step(self, loss: torch.Tensor, rate: float) -> None:
        slopes = torch.autograd.grad(loss, self._weights)
        self._steps += 1
        with torch.no_grad():
            for weight, mean, square, slope in zip(self._weights, self._mean, self._square, slopes, strict=True):
                mean.lerp_(slope, 0.1)
                square.lerp_(slope * slope, 0.01)
                size = (square / (1 - 0.99**self._steps)).sqrt_().add_(1e-8)
                weight.addcdiv_(mean / (1 - 0.9**self._steps), size, value=-rate)


class _Result(NamedTuple):
    """What came of one half."""

    steps: int
    which: Ints  # (b,) rows of the lesson's ids to judge on
    nats: _Nats  # (b,) each
    written: Ints  # (r,) rows of the lesson's chunks
    unfinished: Ints  # (r,) 0 or 1
    errors: Floats  # (r, 4) per step: of the probe, of the tokenizer, of repeating the last action, of the mean one


def _judge(lesson: _Lesson, probe: _Probe, half: Ints, rng: np.random.Generator) -> _Result:
    chunks, judge = lesson.chunks, lesson.judge
    which = np.flatnonzero(np.isin(chunks.episode[judge.chunk], half))
    nats = probe.nll(chunks, judge.at(which))
    written = _few_each(chunks.episode, half, DECODED // 2, rng)
    ids, whole = probe.write(chunks.at(written))
    return _Result(probe.steps, which, nats, written, (~whole).astype(np.int64), _errors(lesson, probe, written, ids))


def _errors(lesson: _Lesson, probe: _Probe, written: Ints, ids: Ints) -> Floats:
    subject, chunks = lesson.subject, lesson.chunks.at(written)
    decoded, _ = subject.tokenizer.try_decode(ids, **chunks.coded.shape, key=subject.key)
    last = np.where(chunks.starts[:, None], probe.mean_action, chunks.last)
    told = (
        np.asarray(decoded),
        subject.decoded[lesson.rows[written]],
        _held(last, chunks.coded),
        _held(np.broadcast_to(probe.mean_action, last.shape), chunks.coded),
    )
    errors = []
    for actions in told:
        difference: Floats = actions.astype(np.float64) - chunks.coded.actions
        if chunks.coded.relative is not None:
            # the error of the absolute actions: differences add up, and angles turn
            difference = chunks.coded.relative.invert(difference, np.zeros(last.shape)).astype(np.float64)
        errors.append(np.linalg.norm(difference / subject.unit, axis=2).mean(1))
    return np.stack(errors, 1)


def _nll(lesson: _Lesson, results: list[_Result]) -> Measure:
    chunks, horizon = lesson.chunks, lesson.subject.horizon
    judge = lesson.judge.at(np.concatenate([result.which for result in results]))
    weight = (chunks.lengths / np.bincount(judge.chunk, minlength=len(chunks.ids)))[judge.chunk]

    def each(nats: list[Floats]) -> Floats:
        """Per episode: an id stands for those of its chunk that were not judged."""
        per_chunk = np.bincount(judge.chunk, weight * np.concatenate(nats), len(chunks.ids))
        return _mean_per_episode(per_chunk, chunks.episode)

    nats = each([result.nats.probe for result in results])
    tokens = float(_mean_per_episode(chunks.lengths, chunks.episode).mean())
    return NLL.measure(
        nats.mean(),
        interval=_interval(nats),
        method="bootstrap-t over episodes",
        n={
            "episodes": len(nats),
            "chunks": len(chunks.ids),
            "windows": len(lesson.windows.ids),
            "ids": len(judge.chunk),
        },
        note=_few(len(nats)),
        parts={
            "tokens_per_chunk": tokens,
            "nats_per_token": float(nats.mean()) / tokens,
            "nats_per_step": float(nats.mean()) / horizon,
            "unigram_nats": float(each([result.nats.unigram for result in results]).mean()),
            "even_nats": float(each([result.nats.even for result in results]).mean()),
            "nats_by_place": _by_place(judge, chunks, np.concatenate([result.nats.probe for result in results])),
            "steps": [result.steps for result in results],
        },
    )


def _error(lesson: _Lesson, results: list[_Result]) -> Measure:
    written = np.concatenate([result.written for result in results])
    errors = np.concatenate([result.errors for result in results])
    unfinished = float(np.concatenate([result.unfinished for result in results]).mean())
    episode = lesson.chunks.episode[written]
    probe, own, last, mean = (_mean_per_episode(column, episode) for column in errors.T)
    cut = f"{unfinished:.0%} of its chunks were cut off unfinished, and repaired." if unfinished else ""
    return ERROR.measure(
        probe.mean(),
        interval=_interval(probe),
        method="bootstrap-t over episodes",
        n={"episodes": len(probe), "chunks": len(written)},
        note=f"{cut} {_few(len(probe))}".strip(),
        parts={
            "tokenizer": float(own.mean()),
            "repeat_last": float(last.mean()),
            "mean_action": float(mean.mean()),
            "unfinished": unfinished,
        },
    )


def _interval(values: Floats) -> tuple[float, float] | None:
    """Return the interval of the mean of per-episode `values (e,)`, none of which is negative."""
    found = bootstrap_t(values)
    return None if found is None else (max(0.0, found[0]), found[1])


def _few(episodes: int) -> str:
    return f"Only {episodes} episodes, and the probe learns from half of them." if episodes < FEW else ""


def _windows(subject: Subject) -> tuple[ChunkPlan, Coded]:
    """Return whole windows, evenly spread over the episodes, as they are coded."""
    episodes, horizon = subject.episodes, subject.horizon
    plan = plan_chunks(episodes, horizon)
    if episodes.action_is_pad is not None:
        padded = [windows(mask, horizon).any(1) for mask in episodes.action_is_pad]
        plan = plan[
            ~np.array([padded[at][first] for at, first in zip(plan.position, plan.first, strict=True)], np.bool_)
        ]
    plan = plan[_thinned(plan.position)]
    return plan, Coded.of(gather(episodes, plan, subject.tokenizer.relative), subject.tokenizer.relative)


def _thinned(episode: Ints) -> Bools:
    """Say which of the chunks of `episode (n,)`, ascending, to keep: about `CHUNKS`, evenly, at least one of each."""
    _, nth = _spread(np.unique(episode, return_counts=True)[1])
    kept: Bools = nth % max(1, -(-len(episode) // CHUNKS)) == 0
    return kept


def _some(coded: Coded, rows: Ints) -> Coded:
    reference = None if coded.reference is None else coded.reference[rows]
    return Coded(coded.actions[rows], coded.is_pad[rows], reference, coded.relative)


def _held(actions: Floats, coded: Coded) -> Singles:
    """Return chunks that hold `actions (n, d)`, as `coded` is coded, `(n, t, d)`."""
    chunks = np.repeat(actions[:, None].astype(np.float32), coded.actions.shape[1], axis=1)
    if coded.relative is None or coded.reference is None:
        return chunks
    return np.asarray(coded.relative.apply(chunks, coded.reference))


def _parted(episode: Ints, episodes: Ints) -> tuple[Bools, Bools]:
    """Say which windows to fit to and which to check on, `(n,)` each: a fifth of the episodes, or of the only one."""
    if len(episodes) > 1:
        count = max(1, len(episodes) // 5)
        return np.isin(episode, episodes[count:]), np.isin(episode, episodes[:count])
    rows = np.flatnonzero(episode == episodes[0])
    fit, check = np.zeros((2, len(episode)), np.bool_)
    border = len(rows) - len(rows) // 5
    fit[rows[:border]] = True
    check[rows[border:]] = True
    return fit, check


def _few_each(episode: Ints, half: Ints, most: int, rng: np.random.Generator) -> Ints:
    """Return random rows, equally many of each episode of `half` where it has so many, ascending."""
    chosen = half[rng.permutation(len(half))[:most]]
    each = most // len(chosen)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(episode == one))[:each] for one in chosen]))


def _recurrences(about: Ints) -> Ints:
    """Return the two latest earlier positions of the same row of `about (m, k)`, `(m, 2)`; -1: none.

    Nothing recurs where each row equals the one before: those positions are looked at anyway.
    """
    found = np.full((len(about), 2), -1)
    seen: dict[tuple[int, ...], int] = {}
    for p, row in enumerate(map(tuple, about.tolist())):
        before = seen.get(row, -1)
        found[p] = before, found[before, 0] if before >= 0 else -1
        seen[row] = p
    return found if len(seen) > 1 else np.full_like(found, -1)


def _back(ids: Ints, chunk: Ints, position: Ints) -> Ints:
    """Return `ids[chunk, position]`, and -1 before the first."""
    return np.where(position >= 0, ids[chunk, np.maximum(position, 0)], -1)


def _code(place: Ints) -> Ints:
    """Return step, dim and level of `place (b, 4)` as one number, `(b,)`; a negative one for a mere position."""
    code = (place[:, 0] << 42) + (place[:, 1] << 21) + place[:, 2]
    return np.where(code > 0, code, -1 - place[:, 3])


def _spread(counts: Ints) -> tuple[Ints, Ints]:
    """Return for `counts[i]` elements of every i: i, and the how manieth of i it is, both `(counts.sum(),)`."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _grouped(values: Ints) -> list[Ints]:
    """Return the indices of equal `values (b,)`, one array per value, ascending."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(values) else []


def _most_frequent(ids: Ints) -> Ints:
    values, counts = np.unique(ids, return_counts=True)
    return values[np.argsort(-counts, kind="stable")[:CHOICES]]


def _smooth(counts: Floats, even: Floats, placed: float, blind: float) -> Floats:
    """Return shares of words per position: of `counts (p, w)` there, of all of them, and spread as `even (w,)`."""
    total = counts.sum()
    everywhere = counts.sum(0) / total if total else even
    rows = counts.sum(1, keepdims=True)
    here = np.where(rows > 0, counts / np.maximum(rows, 1), everywhere)
    shares: Floats = (1 - blind) * (placed * here + (1 - placed) * everywhere) + blind * even
    return shares


def _mean_per_episode(values: Floats | Ints, episode: Ints) -> Floats:
    _, index = np.unique(episode, return_inverse=True)
    means: Floats = np.bincount(index, values) / np.bincount(index)
    return means


def _by_place(judge: _Examples, chunks: _Chunks, nats: Floats) -> list[float]:
    """Return mean nats per id in up to 32 equal parts of the longest chunk's positions."""
    longest = int(chunks.lengths.max())
    parts = min(32, longest)
    part = judge.position * parts // longest
    counts = np.bincount(part, minlength=parts)
    return list((np.bincount(part, nats, parts) / np.maximum(counts, 1)).tolist())
