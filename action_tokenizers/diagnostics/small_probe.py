"""A small, fixed model that learns to predict ids: it stands for a policy that is trained on them.

It predicts the ids of a chunk one after another, each from what it is shown of the chunk, from the ids that the
grammar says to look at, and from the id's place. Its first guess is how often each id stands there at all (the unigram
baseline), and what it learns is added to that. It is trained until a fifth of its episodes is predicted no better.
"""

import math
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy, embedding

from action_tokenizers.diagnostics.grammar import LOOKS, Grammar
from action_tokenizers.diagnostics.lesson import Chunks, Examples, Lesson

__all__ = ["STEPS", "Nats", "Probe"]

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STEPS = 200  # of the optimiser,
BATCH = 512  # ids each: the budget, the same for every tokenizer
RATE = 1e-2
HIDDEN, WIDTH = 128, 32  # units of the hidden layer, dims of an id's embedding
CHOICES = 1024  # most ids per place that are told apart; the rarer ones share what is left
GROUPS = 8  # most kinds of place in one batch
JUDGED = 2000  # most ids that decide when training stops
STOPS = (0, 4, 8, 16, 32, 64, 100, 150)  # steps, beside the last one, after which training may stop

# how much of the unigram is the place's own, and how much of it is spread evenly: the best of these
PLACED, BLIND = (0.0, 0.5, 0.9), (0.3, 0.1, 0.03, 0.01)


class Nats(NamedTuple):
    """Nats of single ids, each `(b,)`."""

    probe: Floats
    unigram: Floats
    even: Floats  # every id that may stand there as likely


class Probe:
    """What has been learnt from the windows of some episodes.

    Attributes:
        steps: after how many the training was best.
    """

    def __init__(self, lesson: Lesson, episodes: Ints, steps: int, rng: np.random.Generator) -> None:
        """Train on four fifths of `episodes`, and stop where the last fifth is predicted best."""
        windows, train, grammar = lesson.windows, lesson.train, lesson.grammar
        self._lesson = lesson
        fit, check = _parted(windows.episode, episodes)
        self._scale = _Scale.of(windows, fit | check)
        fitted = train.at(np.flatnonzero(fit[train.chunk]))
        checked = train.at(np.flatnonzero(check[train.chunk]))
        self._words = _Words(grammar, fitted, lesson.subject.tokenizer.vocab_size)
        self._unigram = _Unigram(self._words, grammar.kind(np.arange(windows.ids.shape[1])), fitted, checked)
        shown = windows.last.shape[1] + 1 + windows.state.shape[1]
        self._net = _Net(self._words.none + 1, shown, fitted.place.max(0) + 1, rng)
        self.steps = self._train(fitted, checked, steps, rng) if len(checked.chunk) and steps else 0

    def _train(self, fit: Examples, check: Examples, steps: int, rng: np.random.Generator) -> int:
        """Return after how many of the `steps` the examples to `check` were predicted best: those weights stay."""
        weights, shown = self._net.weights, torch.from_numpy(self._scale.shown(self._lesson.windows))
        kind = self._lesson.grammar.kind(fit.position)
        members = [np.flatnonzero(kind == k) for k in range(len(self._words.spans))]
        shares = np.array([len(rows) for rows in members]) / len(kind)
        check = check.at(rng.permutation(len(check.chunk))[:JUDGED])
        adam = _Adam(weights)
        best, kept, stop = math.inf, weights, 0
        for step in range(steps + 1):
            if step in STOPS or step == steps:
                loss = self._total(check, shown)
                if loss < best:
                    best, kept, stop = loss, [weight.detach().clone() for weight in weights], step
            if step < steps:
                drawn, counts = np.unique(rng.choice(len(shares), GROUPS, p=shares), return_counts=True)
                losses = []
                for k, n in zip(drawn.tolist(), counts, strict=True):
                    rows = members[k][rng.integers(0, len(members[k]), BATCH // GROUPS * n)]
                    losses.append(self._loss(fit.at(rows), shown, k))
                adam.step(torch.cat(losses).mean(), RATE * (1 + math.cos(math.pi * step / steps)) / 2)
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
        return stop

    @torch.no_grad()
    def _total(self, examples: Examples, shown: torch.Tensor) -> float:
        kind = self._lesson.grammar.kind(examples.position)
        return sum(
            float(self._loss(examples.at(np.flatnonzero(kind == k)), shown, k).sum()) for k in np.unique(kind).tolist()
        )

    def _logits(self, examples: Examples, shown: torch.Tensor, kind: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unigram's log probabilities and what the net adds, `(b, w + 1)` each; `examples` of one kind."""
        place, looks = torch.from_numpy(examples.place), torch.from_numpy(self._words.of(examples.looks))
        low, high = self._words.spans[kind]
        code = self._net.code(shown[torch.from_numpy(examples.chunk)], place, looks)
        return self._unigram.of(kind, examples.position), self._net.scores(code, low, high, self._words.other)

    def _loss(self, examples: Examples, shown: torch.Tensor, kind: int) -> torch.Tensor:
        """Return the nats of `examples` of one kind among all words of it, `(b,)`; `other` counts as one."""
        unigram, learnt = self._logits(examples, shown, kind)
        column = torch.from_numpy(self._words.column(examples.target, kind))
        return cross_entropy(unigram + learnt, column, reduction="none")

    @torch.no_grad()
    def nll(self, chunks: Chunks, examples: Examples) -> Nats:
        """Return the nats of `examples` of `chunks`, among the ids that may stand there."""
        grammar, shown = self._lesson.grammar, torch.from_numpy(self._scale.shown(chunks))
        found = np.empty((3, len(examples.chunk)))
        for kind, rows in grammar.groups(examples.position):
            some = examples.at(rows)
            allowed = grammar.allowed(chunks.ids, some.chunk, int(some.position[0]))
            found[:, rows] = self._judged(some, shown, kind, allowed)
        return Nats(*found)

    def _judged(self, examples: Examples, shown: torch.Tensor, kind: int, allowed: Bools | None) -> Floats:
        """Return the nats of `examples` of one kind, `(3, b)`; `allowed (b, v)`, None: all ids of that kind."""
        unigram, learnt = self._logits(examples, shown, kind)
        known, others = self._words.among(allowed, kind, len(unigram))
        column = torch.from_numpy(self._words.column(examples.target, kind))
        is_other = column == known.shape[1]
        ruled_out = torch.cat([~known, others[:, None] == 0], 1)
        # `other` is worth as much less as fewer of its ids may stand here, which then share it evenly
        share = others.log() - math.log(max(1, self._words.others[kind]))
        found = []
        for logits in (unigram + learnt, unigram):
            logits[:, -1] += share
            nats = cross_entropy(logits.masked_fill(ruled_out, -math.inf), column, reduction="none")
            found.append(nats + torch.where(is_other, others.log(), 0))
        even = (known.sum(1) + others).log()
        return torch.stack([*found, even]).double().numpy()

    @torch.no_grad()
    def write(self, chunks: Chunks) -> tuple[Ints, Bools]:
        """Return the ids of chunks written by taking the likeliest allowed id each time, and which are whole.

        No chunk gets more ids than the longest one trained on has.
        """
        grammar, pad_id = self._lesson.grammar, self._lesson.subject.tokenizer.pad_id
        shown = torch.from_numpy(self._scale.shown(chunks))
        most = self._lesson.windows.ids.shape[1]
        ids = np.full((len(chunks.ids), most), 0 if pad_id is None else pad_id, np.int64)
        open_ = np.arange(len(ids))
        for p in range(most):
            position = np.full(len(open_), p)
            place, looks = grammar.context(ids, open_, position, chunks.held)
            kind = int(grammar.kind(position)[0])
            # no target is known yet
            unigram, learnt = self._logits(Examples(open_, position, place, looks, position), shown, kind)
            ids[open_, p] = self._likeliest((unigram + learnt)[:, :-1], kind, grammar.allowed(ids, open_, p))
            open_ = open_[~grammar.complete(ids[open_, : p + 1])]
            if not len(open_):
                break
        return ids, ~np.isin(np.arange(len(ids)), open_)

    def _likeliest(self, logits: torch.Tensor, kind: int, allowed: Bools | None) -> Ints:
        words = self._words.ids[slice(*self._words.spans[kind])]
        if not len(words):
            return np.full(len(logits), self._lesson.grammar.kinds[kind, 0])  # of ids never seen none is likelier
        known, _ = self._words.among(allowed, kind, len(logits))
        best: Ints = words[logits.masked_fill(~known, -math.inf).argmax(1).numpy()]
        return best if allowed is None else np.where(known.any(1).numpy(), best, allowed.argmax(1))


class _Words:
    """The ids that the probe tells apart: seen in training, the most frequent ones. The others share one word.

    Words are numbered from 0 in the order of their ids; then comes `other`, and `none` where there is no id.
    """

    def __init__(self, grammar: Grammar, fit: Examples, vocab_size: int) -> None:
        kind = grammar.kind(fit.position)
        kept = [_most_frequent(fit.target[kind == k]) for k in range(len(grammar.kinds))]
        self.ids = np.unique(np.concatenate(kept))
        self.other, self.none = len(self.ids), len(self.ids) + 1
        self._word: Ints = np.full(vocab_size + 1, self.other)
        self._word[self.ids] = np.arange(len(self.ids))
        self._word[-1] = self.none  # id -1
        self.spans: Ints = np.searchsorted(self.ids, grammar.kinds)  # (k, 2) words of each kind
        self.others = (np.diff(grammar.kinds) - np.diff(self.spans))[:, 0]  # (k,) ids of each that are no word

    def of(self, ids: Ints) -> Ints:
        return self._word[ids]

    def column(self, ids: Ints, kind: int) -> Ints:
        """Return the words of `ids`, all of one kind, numbered from 0 within it; `other` comes last."""
        low, high = self.spans[kind]
        column: Ints = np.minimum(self._word[ids], high) - low
        return column

    def among(self, allowed: Bools | None, kind: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which words of a kind are `allowed (b, v)`, `(b, w)`, and how many other ids, `(b,)`; None: all."""
        if allowed is None:
            known = np.ones((rows, int(np.diff(self.spans[kind])[0])), np.bool_)
            others = np.full(rows, self.others[kind])
        else:
            known = allowed[:, self.ids[slice(*self.spans[kind])]]
            others = allowed.sum(1) - known.sum(1)
        return torch.from_numpy(known), torch.from_numpy(others.astype(np.float32))


class _Unigram:
    """How often each word stands at each position, in log probabilities: the baseline, and where the probe begins."""

    def __init__(self, words: _Words, kind: Ints, fit: Examples, check: Examples) -> None:
        """Count the ids of `fit`, smoothed as suits those of `check` best; `kind (m,)` of every position."""
        self._kind = kind
        self._row = np.zeros(len(kind), np.int64)  # of each position, in the table of its kind
        counts, evens = [], []
        for k, (low, high) in enumerate(words.spans):
            positions = np.flatnonzero(kind == k)
            self._row[positions] = np.arange(len(positions))
            counts.append(np.zeros((len(positions), high - low + 1)))
            evens.append(np.append(np.ones(high - low), words.others[k]))
        for table, cells in zip(counts, self._cells(words, fit), strict=True):
            np.add.at(table, cells, 1)
        checked = self._cells(words, check)
        tried = []
        for placed, blind in product(PLACED, BLIND):
            tables = [
                _smooth(table, even / even.sum(), placed, blind) for table, even in zip(counts, evens, strict=True)
            ]
            # a word that stands for several ids is worth less; its weight is the same under every smoothing
            shares = (table[cells] for table, cells in zip(tables, checked, strict=True))
            tried.append((sum(float(np.log(share).sum()) for share in shares), tables))
        with np.errstate(divide="ignore"):  # `other` of a kind whose ids are all words
            best = [np.log(table).astype(np.float32) for table in max(tried, key=lambda each: each[0])[1]]
        self._tables = [torch.from_numpy(table) for table in best]

    def _cells(self, words: _Words, examples: Examples) -> list[tuple[Ints, Ints]]:
        """Return per kind the rows and columns of its table that `examples` are counted in."""
        kind = self._kind[examples.position]
        some = [examples.at(np.flatnonzero(kind == k)) for k in range(len(words.spans))]
        return [(self._row[these.position], words.column(these.target, k)) for k, these in enumerate(some)]

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


class _Scale(NamedTuple):
    """What turns the last action and the state into numbers of size 1."""

    middle: Floats  # (c,)
    width: Floats  # (c,)

    @classmethod
    def of(cls, chunks: Chunks, known: Bools) -> "_Scale":
        action = chunks.last[known & ~chunks.starts]
        columns = [action if len(action) else chunks.last[known], chunks.state[known]]
        middle = np.concatenate([column.mean(0) for column in columns])
        width = np.concatenate([column.std(0) for column in columns])
        return cls(middle, np.where(width > 1e-6 * np.maximum(1, np.abs(middle)), width, 1.0))

    def shown(self, chunks: Chunks) -> Singles:
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
