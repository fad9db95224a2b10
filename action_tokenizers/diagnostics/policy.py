"""What a policy over a tokenizer's ids must be able to say to be measured, and the guard that looks at its answers.

Any policy that can draw ids and say their probability can be measured (`variation`). Its answers come from outside, so
each is held to what it must be: integers of the tokenizer, log-probabilities, and these of one normalised law.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.diagnostics.measure import clopper_pearson
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = [
    "CheckedPolicy",
    "LogitPolicy",
    "TokenPolicy",
    "array_of",
    "check_normalised",
    "checked",
    "derived",
    "drawn",
    "leveled",
    "named_state",
]

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROWS = 4096  # the most rows a policy sees at once
ENUMERABLE = 512  # the most ids whose probabilities are asked one by one
SURE = 1e-6  # how often a normalised policy may be taken for one that is not
ROUNDING = 1e-3  # nats that a log-probability may exceed 0 by
MASS_ROUNDING = 1e-2  # what bfloat16 does to a sum of probabilities
LOGIT_ROUNDING = 0.1  # nats that it does to the log-probability of an id; of several they add up like their root
LOOKS = 4  # rows per state whose ids are looked at one by one
TELLING = 2.0  # nats between the least and the largest probability that draws do not refute, to be called a check


@runtime_checkable
class TokenPolicy(Protocol):
    """A policy over the ids of a tokenizer. Arrays may come back as numpy or torch."""

    def sample(self, states: States, *, seed: int) -> Any:
        """Return ids `(b, n)` drawn for `states (b, ds)`, each row alone, padded as `encode` pads.

        The same seed must give the same ids. States that differ a little should meet the same random numbers.
        """

    def log_prob(self, states: States, ids: Ints) -> Any:
        """Return the log-probability in nats of each whole row of `ids (b, n)`, `(b,)`."""


@runtime_checkable
class LogitPolicy(TokenPolicy, Protocol):
    """A policy that also shows its logits, which `log_prob` must be the sum of, by log_softmax, over a row."""

    def logits(self, states: States, prefix: Ints) -> Any:
        """Return the logits `(b, v)` of the id that follows `prefix (b, m)`, m >= 0; -inf: impossible."""


@dataclass(frozen=True)
class CheckedPolicy:
    """A policy whose answers are looked at; what comes out is numpy, float64 and int64.

    Attributes:
        policy: whose.
        tokenizer: whose ids; None: unknown, then only their shape and sign are checked.
        horizon: for tokenizers that leave it open.
        action_dim: likewise.
        key: of the range to decode with.
    """

    policy: TokenPolicy
    tokenizer: ActionTokenizer | None = None
    horizon: int | None = None
    action_dim: int | None = None
    key: str | None = None

    @property
    def shows_logits(self) -> bool:
        """Whether `logits` can be asked."""
        return isinstance(self.policy, LogitPolicy)

    @property
    def enumerable(self) -> bool:
        """Whether a chunk is one id of so few that every probability can be asked."""
        return self.tokenizer is not None and self.tokenizer.vocab_size <= ENUMERABLE and self.most_ids == 1

    @property
    def most_ids(self) -> int:
        """How many ids the longest chunk has."""
        return self._known_tokenizer().max_tokens_for(self.horizon, self.action_dim)

    @property
    def pad(self) -> int:
        """What fills up rows of ids; -1 where there is no pad id."""
        pad = None if self.tokenizer is None else self.tokenizer.pad_id
        return -1 if pad is None else pad

    def sample(self, states: States, *, seed: int) -> Ints:
        """Return ids `(b, n)`, padded.

        Raises:
            ActionShapeError: not one row of ids per state.
            ActionValueError: the policy raised, or the ids are not integers of the tokenizer.
        """
        parts = []
        for i, rows in enumerate(_blocks(len(states))):
            ids = array_of(self._ask("sample", states[rows], seed=derived(seed, i)), "policy.sample", "iu")
            parts.append(self._check_ids(ids, states[rows]))
        return np.concatenate(leveled(parts, self.pad))

    def log_prob(self, states: States, ids: Ints) -> Floats:
        """Return log-probabilities `(b,)`, at most 0; -inf: impossible.

        Raises:
            ActionShapeError: not one number per row.
            ActionValueError: the policy raised, or numbers that are no log-probabilities.
        """
        out = np.empty(len(states))
        for rows in _blocks(len(states)):
            given = self._ask("log_prob", states[rows], ids[rows].copy())
            out[rows] = _log_probabilities(array_of(given, "policy.log_prob", "iuf"), states[rows])
        return out

    def log_prob_of_own(self, states: States, ids: Ints) -> Floats:
        """Return the log-probabilities of ids that `sample` drew for these states, which cannot be impossible."""
        found = self.log_prob(states, ids)
        bad = np.flatnonzero(np.isneginf(found))
        if len(bad):
            raise ActionValueError(
                f"expected possible ids from policy.sample, got ids of log-probability -inf for "
                f"{named_state(states, bad)}; sample and log_prob must be of one law, masks included"
            )
        return found

    def logits(self, states: States, prefix: Ints) -> Floats:
        """Return logits `(b, v)`; those of impossible ids are -inf.

        Raises:
            ActionShapeError: not one number per id.
            ActionValueError: the policy raised, or NaN, +inf, or nothing possible.
        """
        parts = []
        for rows in _blocks(len(states)):
            given = array_of(self._ask("logits", states[rows], prefix[rows].copy()), "policy.logits", "iuf")
            parts.append(self._check_logits(given, states[rows]))
        return np.concatenate(parts)

    def table(self, states: States) -> Floats:
        """Return the probabilities `(b, v)` of every id of a chunk that is one id.

        Raises:
            ActionValueError: they do not add up to 1.
        """
        v = self._known_tokenizer().vocab_size
        every = np.tile(np.arange(v, dtype=np.int64), len(states))[:, None]
        p: Floats = np.exp(self.log_prob(np.repeat(states, v, axis=0), every)).reshape(-1, v)
        total = p.sum(1)
        bad = np.flatnonzero(np.abs(total - 1) > MASS_ROUNDING)
        if len(bad):
            raise ActionValueError(
                f"expected probabilities that add up to 1 over all {v} ids, got {total[bad[0]]:.4g} for "
                f"{named_state(states, bad)}; return log_softmax values from log_prob, not logits"
            )
        normalised: Floats = p / total[:, None]
        return normalised

    def decode(self, ids: Ints) -> tuple[Floats, Bools]:
        """Return raw actions `(b, t, d)` and which rows decode, `(b,)`; those that do not are NaN."""
        tokenizer = self._known_tokenizer()
        shape = {"horizon": self.horizon, "action_dim": self.action_dim}
        parts = [tokenizer.try_decode(ids[rows], **shape, key=self.key) for rows in _blocks(len(ids))]
        actions = np.concatenate([np.asarray(part[0], np.float64) for part in parts])
        valid = np.concatenate([np.asarray(part[1]) for part in parts])
        actions[~valid] = np.nan
        return actions, valid

    def _known_tokenizer(self) -> ActionTokenizer:
        if self.tokenizer is None:
            raise ActionValueError("expected a policy checked with its tokenizer, got none; use checked(policy, it)")
        return self.tokenizer

    def _ask(self, method: str, states: States, *given: Any, **named: Any) -> Any:
        try:
            # a copy: what a policy does to its input is its own affair
            return getattr(self.policy, method)(states.copy(), *given, **named)
        except Exception as error:
            raise ActionValueError(
                f"expected policy.{method} to answer for states {states.shape} float32, it raised "
                f"{type(error).__name__}: {error}; try it on one state first"
            ) from error

    def _check_ids(self, ids: npt.NDArray[Any], states: States) -> Ints:
        count = len(states)
        if ids.ndim != 2 or len(ids) != count or not ids.shape[1]:
            raise ActionShapeError(f"expected policy.sample to return ids ({count}, n), got {ids.shape}")
        most = np.inf if self.tokenizer is None else self.tokenizer.vocab_size
        bad = np.flatnonzero(((ids < 0) | (ids >= most)).any(1))
        if len(bad):
            raise ActionValueError(
                f"expected ids in 0..{most - 1} from policy.sample, got {ids[bad[0]].tolist()} for "
                f"{named_state(states, bad)}; return the tokenizer's ids, not those of a language model's vocabulary"
            )
        # without a pad every chunk has the same number of ids, so that a short row is no chunk
        if self.tokenizer is not None and self.tokenizer.pad_id is None and ids.shape[1] != self.most_ids:
            raise ActionShapeError(f"expected {self.most_ids} ids per chunk from policy.sample, got {ids.shape[1]}")
        return ids.astype(np.int64)

    def _check_logits(self, z: npt.NDArray[Any], states: States) -> Floats:
        shape = (len(states), self._known_tokenizer().vocab_size)
        if z.shape != shape:
            raise ActionShapeError(f"expected policy.logits to return {shape}, one per id, got {z.shape}")
        bad = np.flatnonzero(np.isnan(z).any(1) | np.isposinf(z).any(1) | np.isneginf(z).all(1))
        if len(bad):
            raise ActionValueError(
                f"expected logits that are finite, or -inf for impossible ids, got NaN, inf or nothing possible for "
                f"{named_state(states, bad)}"
            )
        return z.astype(np.float64)


def checked(
    policy: TokenPolicy,
    tokenizer: ActionTokenizer | None = None,
    *,
    horizon: int | None = None,
    action_dim: int | None = None,
    key: str | None = None,
) -> CheckedPolicy:
    """Return `policy` with its answers checked, see `CheckedPolicy`.

    Raises:
        ActionValueError: it cannot draw ids or say their probability.
    """
    if isinstance(policy, CheckedPolicy):
        return policy if tokenizer is None else CheckedPolicy(policy.policy, tokenizer, horizon, action_dim, key)
    if not isinstance(policy, TokenPolicy):
        raise ActionValueError(
            f"expected a policy with sample(states, *, seed) and log_prob(states, ids), got {type(policy).__name__}"
        )
    return CheckedPolicy(policy, tokenizer, horizon, action_dim, key)


def check_normalised(policy: CheckedPolicy, states: States, seed: int = 0, draws: int = 256) -> bool:
    """Refuse a policy whose log-probabilities are not those of what it draws, as far as that shows.

    Chunks of one id are summed over all ids. Else the ids that one set of draws brought up are a set whose
    probability is claimed by `log_prob`: more than 1 is impossible, and a second set of draws must hit it as often as
    claimed. Where a policy shows its logits, `log_prob` must be the sum of their log_softmax. Without them, and where
    no ids ever come twice, a constant that is missing in every state goes unseen; `sequence_tv` notices one that
    differs between states.

    Args:
        policy: which.
        states: `(b, ds)`; a few will do.
        seed: of the draws.
        draws: of each set, per state.

    Returns:
        Whether a missing constant would have been seen.

    Raises:
        ActionValueError: they are not; names the state row.
    """
    if policy.enumerable:
        policy.table(states)
        is_seen = True
    else:
        is_seen = _check_draws(policy, states, seed, draws)
    if policy.shows_logits and policy.tokenizer is not None:
        _check_chain(policy, states, derived(seed, len(states)))
        is_seen = True
    return is_seen


def _check_draws(policy: CheckedPolicy, states: States, seed: int, draws: int) -> bool:
    """Hold the claimed probability of the ids of some draws against how often others hit them; was that telling?"""
    is_telling = False
    for row, state in enumerate(states):
        repeated = np.repeat(state[None], 2 * draws, axis=0)
        ids = policy.sample(repeated, seed=derived(seed, row))
        known, again = np.unique(ids[:draws], axis=0), ids[draws:]
        claimed = float(np.exp(policy.log_prob_of_own(repeated[: len(known)], known)).sum())
        hits = int((again[:, None] == known).all(-1).any(-1).sum())
        low, high = clopper_pearson(hits, draws, 1 - SURE)
        if not low - MASS_ROUNDING <= claimed <= min(high, 1.0) + MASS_ROUNDING:
            raise ActionValueError(
                f"expected log_prob to be that of what sample draws, got ids of claimed probability {claimed:.3g} "
                f"drawn {hits} of {draws} times for {named_state(states, [row])}; sum log_softmax over all ids of a "
                "row, with the temperature and masks that sample uses"
            )
        least, most = low - MASS_ROUNDING, min(high, 1.0) + MASS_ROUNDING
        is_telling |= least > 0 and most <= math.exp(TELLING) * least
    return is_telling


def drawn(policy: CheckedPolicy, states: States, ids: Ints) -> tuple[Ints, Bools]:
    """Say which of the `ids (b, n)` that a policy drew for `states (b, ds)` were drawn, the end of a chunk among them.

    Returns:
        The ids, with one more column of pads where that is where the longest chunks end, and which of them have a share
        in the log-probability of their row, both `(b, n)`.
    """
    found = _explained(policy, states, ids)
    return found.ids, found.counted


def _check_chain(policy: CheckedPolicy, states: States, seed: int) -> None:
    """Refuse log-probabilities of drawn rows that are not the sum of log_softmax(logits) over their ids."""
    repeated = np.repeat(states, LOOKS, axis=0)
    ids = policy.sample(repeated, seed=seed)
    found = _explained(policy, repeated, ids)
    bad = np.flatnonzero(found.gap > _slack(policy, ids))
    if len(bad):
        raise ActionValueError(
            f"expected log_prob to be the sum of log_softmax(logits) over the ids of a row, got "
            f"{found.claimed[bad[0]]:.4g} and a sum of {found.summed[bad[0]]:.4g} for "
            f"{named_state(states, np.unique(bad // LOOKS))}; let both have the temperature and masks that sample uses"
        )


class _Explained(NamedTuple):
    """Rows of `ids (b, n)`, which of them are `counted (b, n)`, and two log-probabilities `(b,)` of each row."""

    ids: Ints
    counted: Bools
    claimed: Floats
    summed: Floats

    @property
    def gap(self) -> Floats:
        return np.abs(self.claimed - self.summed)


def _explained(policy: CheckedPolicy, states: States, ids: Ints) -> _Explained:
    """Return drawn rows with the ids counted whose logits explain their log-probabilities.

    Where several countings explain them the most ids count: an end that is all but certain at these states adds nothing
    to any log-probability, and at other states may be anything but certain.
    """
    claimed, slack = policy.log_prob_of_own(states, ids), _slack(policy, ids)
    best: _Explained | None = None
    for rows, counted in _countings(policy, ids):
        try:
            found = _Explained(rows, counted, claimed, _chained(policy, states, rows, counted))
        except ActionValueError:
            if best is None:
                raise
            continue  # of what follows a whole chunk nobody need say anything
        # each counts more ids than the one before
        if best is None or (found.gap <= slack).all() or found.gap.max() < best.gap.max():
            best = found
    return cast(_Explained, best)


def _slack(policy: CheckedPolicy, ids: Ints) -> Floats:
    """Return how far the log-probability of each of the rows `ids (b, n)` may be from the sum of its logits, `(b,)`."""
    slack: Floats = LOGIT_ROUNDING * np.sqrt((ids != policy.pad).sum(1) + 1)
    return slack


def _countings(policy: CheckedPolicy, ids: Ints) -> Iterator[tuple[Ints, Bools]]:
    """Yield `ids (b, n)` with which of them have a share in the log-probability of their row.

    Where ids tell on their own that a chunk is over, its pads have none. Else its end is drawn like an id, as the first
    pad, which the longest rows of a batch may lack.
    """
    yield ids, ids != policy.pad
    if policy.pad < 0:
        return
    yield ids, np.cumsum(ids == policy.pad, axis=1) <= 1
    if ids.shape[1] < policy.most_ids:
        longer = np.pad(ids, ((0, 0), (0, 1)), constant_values=policy.pad)
        yield longer, np.cumsum(longer == policy.pad, axis=1) <= 1


def _chained(policy: CheckedPolicy, states: States, ids: Ints, counted: Bools) -> Floats:
    """Return the sum over the `counted (b, n)` ids of their log_softmax, given the ids before them, `(b,)`."""
    total = np.zeros(len(ids))
    for j in range(ids.shape[1]):
        rows = np.flatnonzero(counted[:, j])
        if not len(rows):
            break
        z = policy.logits(states[rows], ids[rows, :j])
        z = z - z.max(1, keepdims=True)
        total[rows] += z[np.arange(len(rows)), ids[rows, j]] - np.log(np.exp(z).sum(1))
    return total


def derived(seed: int, *stream: int) -> int:
    """Return a seed of its own for each stream of draws."""
    return int(np.random.default_rng([seed, *stream]).integers(1 << 31))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, min(start + ROWS, count))


def named_state(states: States, bad: Sequence[int] | Ints) -> str:
    """Return which state an error is about: a batch is of our making, so its row alone would say little."""
    state = states[bad[0]]
    values = ", ".join(f"{value:.6g}" for value in state[:6].tolist())
    more = ", ..." if len(state) > 6 else ""
    return f"state row {bad[0]}, [{values}{more}] ({len(bad)} of {len(states)} rows)"


def array_of(value: Any, what: str, kinds: str) -> npt.NDArray[Any]:
    """Return what a user gave, numpy or torch, as numpy of one of these kinds of dtype."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ActionShapeError(f"expected one array from {what}, got rows of different shapes; pad them") from error
    if array.dtype.kind not in kinds:
        wanted = "integers" if kinds == "iu" else "real numbers"
        raise ActionValueError(f"expected {wanted} from {what}, got {type(value).__name__} of {array.dtype}")
    return array


def _log_probabilities(given: npt.NDArray[Any], states: States) -> Floats:
    if given.shape != (len(states),):
        raise ActionShapeError(
            f"expected policy.log_prob to return one number per row of ids, ({len(states)},), got {given.shape}; "
            "sum over the ids of a row"
        )
    bad = np.flatnonzero(np.isnan(given) | (given > ROUNDING))
    if len(bad):
        raise ActionValueError(
            f"expected log-probabilities, at most 0, from policy.log_prob, got {given[bad[0]]:.4g} for "
            f"{named_state(states, bad)}; sum log_softmax values over the ids of a row"
        )
    return np.minimum(given.astype(np.float64), 0.0)


def leveled(parts: Sequence[Ints], pad: int) -> list[Ints]:
    """Return copies of rows of several widths, all as wide as the widest."""
    width = max(part.shape[1] for part in parts)
    return [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=pad) for part in parts]
