"""What ids mean, written a second time: slow, in plain Python, from the documented layouts alone.

And the acceptance runs of every family over it: damaged ids, recorded ids cut short, ids generated under `allowed`.
"""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

import action_tokenizers
from action_tokenizers import ActionTokenizer, Episodes, FASTTokenizer, TokenError
from action_tokenizers.data.chunks import chunks
from action_tokenizers.testing import damaged, sample_allowed

DEMO = Path(action_tokenizers.__file__).parent / "data" / "demo"

Layout = Callable[[ActionTokenizer, int], "SlotLayout | FASTLayout"]


class SlotLayout:
    """Position p holds one of `count[p]` ids from `first[p]` on; after the last position only pads."""

    def __init__(self, slots: list[tuple[int, int]], pad: int | None) -> None:
        self.slots, self.pad = slots, pad

    def length(self, row: list[int]) -> int:
        """Ids that complete the chunk; -1: none do."""
        if len(row) < len(self.slots):
            return -1
        for token, (first, count) in zip(row, self.slots, strict=False):
            if not first <= token < first + count:
                return -1
        return len(self.slots)

    def valid(self, row: list[int]) -> bool:
        length = self.length(row)
        return length >= 0 and all(token == self.pad for token in row[length:])

    def most(self) -> int:
        return len(self.slots)


def binning_layout(tokenizer: ActionTokenizer, horizon: int) -> SlotLayout:
    """Step by step, within a step dim by dim; ids shared by all dims, or each dim's after those of the one before."""
    bins = [len(centres) for centres in tokenizer.scalar_cells().centres]
    shared = tokenizer.get_params()["shared_ids"]
    step = [(0 if shared else sum(bins[:j]), k) for j, k in enumerate(bins)]
    return SlotLayout(step * horizon, tokenizer.pad_id)


def kmeans_layout(tokenizer: ActionTokenizer, horizon: int) -> SlotLayout:
    """Step by step, or once per chunk; within it group by group, each with ids of its own."""
    names = sorted(name for name in tokenizer.state_dict() if name.startswith("codebook_"))
    sizes = [len(tokenizer.state_dict()[name]) for name in names]
    step = [(sum(sizes[:g]), k) for g, k in enumerate(sizes)]
    return SlotLayout(step * (horizon if tokenizer.get_params()["scope"] == "step" else 1), tokenizer.pad_id)


def residual_vq_layout(tokenizer: ActionTokenizer, horizon: int) -> SlotLayout:
    """Level by level, each with ids of its own."""
    sizes = tokenizer._facts()["sizes"]["codewords"]  # as config.json tells them
    return SlotLayout([(sum(sizes[:level]), k) for level, k in enumerate(sizes)], None)


class FASTLayout:
    """Base symbols (ascending coefficients), high digits, low digits, merges, pad; they span t * d coefficients."""

    def __init__(self, tokenizer: FASTTokenizer, horizon: int) -> None:
        state = tokenizer.state_dict()
        self.size = horizon * tokenizer.action_dim
        self.bound = round(tokenizer.get_params()["scale"] * horizon**0.5)
        self.radix = tokenizer._facts()["sizes"]["radix"]
        alphabet = state["alphabet"].tolist()
        highs = -(-(2 * self.bound + 1) // self.radix) if self.radix else 0
        self.high, self.low = len(alphabet), len(alphabet) + highs
        self.values: list[tuple[int, ...]] = [(value,) for value in alphabet] + [()] * (highs + self.radix)
        for left, right in state["merges"].tolist():
            self.values.append(self.values[left] + self.values[right])
        self.first_merge = self.low + self.radix
        self.pad = len(self.values)

    def read(self, row: list[int]) -> tuple[int, list[int]]:
        """Return how many leading ids can begin a chunk, and the coefficients that they say."""
        out: list[int] = []
        high = None
        for p, token in enumerate(row):
            if len(out) == self.size:
                return p, out
            is_low = self.low <= token < self.first_merge
            if not 0 <= token < self.pad or is_low != (high is not None):
                return p, out
            if is_low:
                shifted = high * self.radix + token - self.low
                if shifted > 2 * self.bound:
                    return p, out
                out.append(shifted - self.bound)
                high = None
            elif self.high <= token < self.low:
                high = token - self.high
            elif len(out) + len(self.values[token]) > self.size:
                return p, out
            else:
                out += self.values[token]
        return len(row), out

    def length(self, row: list[int]) -> int:
        kept, out = self.read(row)
        return kept if len(out) == self.size else -1

    def valid(self, row: list[int]) -> bool:
        length = self.length(row)
        return length >= 0 and all(token == self.pad for token in row[length:])

    def most(self) -> int:
        return self.size * (2 if self.radix else 1)


def recorded(horizon: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of the embedded demonstrations: to fit on, and of other episodes to try."""
    train, held_out = Episodes.load(DEMO).split(0.2, seed=0)
    return chunks(train, horizon, stride).actions, chunks(held_out, horizon, stride).actions


def _by_length(rows: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    groups: dict[int, list[np.ndarray]] = {}
    for row in rows:
        groups.setdefault(len(row), []).append(row)
    return (np.stack(group) for group in groups.values())


def accept_damage(tokenizer: ActionTokenizer, actions: np.ndarray, layout: Layout, n: int) -> dict[str, int]:
    """`strict` decodes or raises TokenError; a repair is finite, in range and flagged as the layout says."""
    random = np.random.default_rng(0)
    horizon = actions.shape[1]
    ids = tokenizer.encode(actions)
    layout_here = layout(tokenizer, horizon)
    low, high = tokenizer.range.low[0].numpy(), tokenizer.range.high[0].numpy()
    count = {"rows": 0, "valid": 0}
    rows = list(damaged(ids, tokenizer.length(ids, horizon=horizon), tokenizer.vocab_size, n, random))
    for group in _by_length(rows):
        repaired, valid = tokenizer.try_decode(group, horizon=horizon)
        assert np.isfinite(repaired).all()
        assert ((repaired >= low) & (repaired <= high)).all()
        listed = group.tolist()
        np.testing.assert_array_equal(valid, [layout_here.valid(row) for row in listed])
        np.testing.assert_array_equal(tokenizer.length(group, horizon=horizon), [layout_here.length(r) for r in listed])
        for row, action, fine in zip(group, repaired, valid, strict=True):
            if fine:
                np.testing.assert_array_equal(tokenizer.decode(row, horizon=horizon), action)
            else:
                with pytest.raises(TokenError):
                    tokenizer.decode(row, horizon=horizon)
        count["rows"] += len(group)
        count["valid"] += int(valid.sum())
    if tokenizer.pad_id is not None:  # all at once, filled up with pads
        _, valid = tokenizer.try_decode([row.tolist() for row in rows], horizon=horizon)
        longest = max(map(len, rows))
        expected = [layout_here.valid(row.tolist() + [tokenizer.pad_id] * (longest - len(row))) for row in rows]
        np.testing.assert_array_equal(valid, expected)
    assert 0 < count["valid"] < count["rows"] == n
    return count


def repair_errors(tokenizer: ActionTokenizer, train: np.ndarray, held_out: np.ndarray) -> tuple[list[float], float]:
    """Mean squared errors, in range units, of ids cut to 0, 1/4, 1/2, 3/4 and all; and of the mean action."""
    low, high = tokenizer.range.low[0].numpy(), tokenizer.range.high[0].numpy()
    span = np.where(high > low, (high - low) / 2, 1)
    ids = tokenizer.encode(held_out)
    lengths = tokenizer.length(ids)
    errors = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        total = 0.0
        kept = np.ceil(lengths * share).astype(int)
        for m in np.unique(kept):
            rows = kept == m
            repaired, valid = tokenizer.try_decode(ids[rows, :m])
            assert (valid == (lengths[rows] == m)).all()
            total += float((((repaired - held_out[rows]) / span) ** 2).sum())
        errors.append(total / held_out.size)
    return errors, float((((train.mean((0, 1)) - held_out) / span) ** 2).mean())


def accept_repair(tokenizer: ActionTokenizer, train: np.ndarray, held_out: np.ndarray) -> tuple[list[float], float]:
    """The repair error falls with the length kept, and beats the mean action."""
    errors, mean_action = repair_errors(tokenizer, train, held_out)
    assert all(b < a for a, b in itertools.pairwise(errors)), errors
    assert errors[0] <= 1.05 * mean_action, (errors, mean_action)  # no ids at all: about the mean action
    assert errors[1] < 0.95 * mean_action, (errors, mean_action)
    return errors, mean_action


def accept_allowed(tokenizer: ActionTokenizer, actions: np.ndarray, samples: int) -> None:
    """Every recorded id is allowed after its prefix; every sequence drawn under `allowed` decodes strictly."""
    ids = tokenizer.encode(actions)
    lengths = tokenizer.length(ids)
    for start in range(0, len(ids), 2000):  # a mask is (b, v)
        part, m = ids[start : start + 2000], lengths[start : start + 2000]
        for p in range(m.max()):
            going = m > p
            assert tokenizer.allowed(part[going, :p])[np.arange(going.sum()), part[going, p]].all()
    for start in range(0, samples, 2000):
        drawn = sample_allowed(tokenizer, min(2000, samples - start), np.random.default_rng(start))
        tokenizer.decode(drawn)


def accept_brute_force(tokenizer: ActionTokenizer, layout: Layout, horizon: int) -> int:
    """On a tiny vocabulary `allowed` and `bits` equal what enumerating every sequence finds."""
    here = layout(tokenizer, horizon)
    tokens = range(tokenizer.vocab_size - (tokenizer.pad_id is not None))
    most = tokenizer.max_tokens_for(horizon)
    assert most == here.most()
    assert len(tokens) ** most <= 300_000
    complete, following = set(), {}
    for n in range(1, most + 1):
        for row in itertools.product(tokens, repeat=n):
            if here.length(list(row)) == n:
                complete.add(row)
    for row in complete:
        for p in range(len(row)):
            following.setdefault(row[:p], set()).add(row[p])
    for n in range(most + 1):
        rows = list(itertools.product(tokens, repeat=n))
        mask = tokenizer.allowed(np.array(rows, np.int64).reshape(len(rows), n), horizon=horizon)
        expected = np.zeros_like(mask)
        for i, row in enumerate(rows):
            expected[i, list(following.get(row, ()))] = True
            if row in complete and tokenizer.pad_id is not None:
                expected[i, tokenizer.pad_id] = True
        np.testing.assert_array_equal(mask, expected)
    for group in _by_length(np.array(row, np.int64) for row in sorted(complete)[:: max(1, len(complete) // 500)]):
        bits = [sum(np.log2(len(following[tuple(row[:p])])) for p in range(len(row))) for row in group.tolist()]
        np.testing.assert_allclose(tokenizer.bits(group, horizon=horizon), bits, atol=1e-9)
    return len(complete)
