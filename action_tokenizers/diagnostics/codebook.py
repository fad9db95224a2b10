"""What the ids of held-out chunks look like to a policy: how many are used, how predictable, how fragile."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.data.chunks import ChunkPlan, gather
from action_tokenizers.diagnostics.error import counts, episode_means, mean_over_episodes, share_of_episodes
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure
from action_tokenizers.diagnostics.scene import Coded
from action_tokenizers.diagnostics.subject import Subject

__all__ = [
    "ESTIMATORS",
    "bits",
    "entropy",
    "next_token_entropy",
    "shift_overlap",
    "shift_overlap_of",
    "tokens",
    "undecodable",
    "undecodable_rate",
    "usage",
    "usage_of",
]

_Ids = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]

MOST_LISTED, MOST_RANKS = 100, 200

PRACTICE = "what practitioners look at before they train"
ESTIMATORS = (
    Estimator(
        name="tokens",
        heading="tokens per chunk",
        unit="ids per chunk",
        kinds=(Kind.CONSISTENT,),
        meaning="How many ids a policy must get right for one chunk, on average; the end mark does not count.",
        caution="Compare at equal chunk length only; few ids can each be hard to predict.",
        advice="Fewer ids are quicker to say; look at the bits and the probe for how hard they are.",
        source="Pertsch et al. 2025",
        function="codebook.tokens",
        test="test_codebook.py::test_tokens_and_bits_are_those_of_the_chunks",
    ),
    Estimator(
        name="bits",
        heading="bits per chunk",
        unit="bits per chunk",
        kinds=(Kind.CONSISTENT,),
        meaning="What a chunk costs if every id that could stand there were equally likely.",
        caution="It counts the ids that could stand there, not how predictable they are.",
        advice="Compare the error of tokenizers at equal bits: that is the fair exchange.",
        source=PRACTICE,
        function="codebook.bits",
        test="test_codebook.py::test_tokens_and_bits_are_those_of_the_chunks",
    ),
    Estimator(
        name="usage",
        heading="vocabulary use",
        unit="share of ids",
        kinds=(Kind.LOWER,),
        meaning="The share of all ids that occur on held-out chunks; `perplexity` is how many are in use in effect.",
        caution="More episodes would show more ids.",
        advice="Where few are in use, a smaller vocabulary does as well and is easier to learn.",
        source=PRACTICE,
        function="codebook.usage",
        test="test_codebook.py::test_usage_and_perplexity_of_known_ids",
    ),
    Estimator(
        name="entropy",
        heading="next-id entropy",
        unit="bits per id",
        kinds=(Kind.PROXY,),
        meaning="How hard the next id is to guess from the one before it, without seeing the robot.",
        caution="A policy sees more than one id back, and the scene: it should do better than this.",
        advice="Of tokenizers with equal error and equal bits, the more predictable one is easier to learn.",
        source=PRACTICE,
        function="codebook.entropy",
        test="test_codebook.py::test_entropy_of_a_deterministic_chain_vanishes_and_of_noise_is_the_uniform_one",
    ),
    Estimator(
        name="shift_overlap",
        heading="shift overlap",
        unit="share of ids",
        kinds=(Kind.CONSISTENT,),
        meaning="How many ids a chunk shares with the chunk that starts one step later.",
        caution="A high share is no quality by itself: bins have it by construction.",
        advice="Where it is low, ids carry little from one decision to the next, and mistakes look like new plans.",
        source=PRACTICE,
        function="codebook.shift_overlap",
        test="test_codebook.py::test_overlap_is_of_multisets",
    ),
    Estimator(
        name="undecodable",
        heading="undecodable after one wrong id",
        unit="share of chunks",
        kinds=(Kind.UNBIASED,),
        meaning="How often a chunk no longer decodes when one id was replaced by any other.",
        caution="A policy's mistakes are not uniform; constrained generation never makes these.",
        advice="Mask the policy's logits with `allowed`, so that every generation decodes.",
        source="Cao & Xie 2026, Section 4; Pertsch et al. 2025",
        function="codebook.undecodable",
        test="test_codebook.py::test_undecodable_after_one_wrong_id",
    ),
)
_ROW = {row.name: row for row in ESTIMATORS}


def tokens(subject: Subject) -> Measure:
    """Return the mean number of ids per wholly recorded chunk, without pads; `parts` holds `p50` and `p99`."""
    whole = _whole(subject)
    p50, p99 = np.quantile(subject.lengths[whole], (0.5, 0.99)).tolist()
    values = _per_whole(subject, subject.lengths, whole)
    return mean_over_episodes(_ROW["tokens"], values, counts(subject), parts={"p50": p50, "p99": p99})


def bits(subject: Subject) -> Measure:
    """Return the mean bits of a chunk: the sum over its ids of log2(ids that could stand there)."""
    found = np.asarray(subject.tokenizer.bits(subject.ids, **subject.coded.shape))
    return mean_over_episodes(_ROW["bits"], _per_whole(subject, found, _whole(subject)), counts(subject))


def _whole(subject: Subject) -> npt.NDArray[np.bool_]:
    """Say which chunks are recorded to their end, `(n,)`; all, where none is: a tail held still takes fewer ids."""
    whole = np.asarray(subject.real.all(axis=1), np.bool_)
    return whole if whole.any() else np.ones_like(whole)


def _per_whole(subject: Subject, values: npt.NDArray[Any], whole: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    return episode_means(values[:, None], whole[:, None], subject.episode)


def usage(subject: Subject) -> Measure:
    """Return the share of the vocabulary, pad apart, that occurs.

    `parts` holds the `perplexity` (2 to the entropy of single ids), and how many ids are `used` and `dead`; of the dead
    ones the first 100 are listed as `dead_ids`. `ranked` holds how often ids occur, most used first, at up to 200
    ranks.
    """
    last = _last(subject.tokenizer)
    count = np.bincount(subject.ids[_said(subject.ids, subject.lengths)], minlength=last)[:last]
    share = count[count > 0] / count.sum()
    dead = np.flatnonzero(count == 0)
    parts = {
        "perplexity": float(np.exp2(-(share * np.log2(share)).sum())),
        "used": len(share),
        "dead": len(dead),
        "dead_ids": dead[:MOST_LISTED].tolist(),
        "ranked": _ranked(count[count > 0]),
    }
    n = {**counts(subject), "ids": int(count.sum())}
    return _ROW["usage"].measure(len(share) / last, n=n, parts=parts)


def _ranked(count: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """Return ranks, evenly apart on a logarithmic axis, and how often the ids at them occur."""
    rank = np.unique(np.geomspace(1, len(count), MOST_RANKS).round().astype(np.int64))
    return {"rank": rank.tolist(), "count": np.sort(count)[::-1][rank - 1].tolist()}


def entropy(subject: Subject) -> Measure:
    """Return the bits per id of `next_token_entropy`, mean over episodes; `parts` holds them `per_position`."""
    row, n = _ROW["entropy"], counts(subject)
    found = _id_bits(subject.ids, subject.lengths, subject.episode, subject.tokenizer.vocab_size)
    if found is None:
        return row.measure(None, n=n, note="It takes two episodes: one to learn from, one to guess.")
    said = _said(subject.ids, subject.lengths)
    spent = np.where(said, found, 0)
    values = _per_episode(subject, spent.sum(1)) / _per_episode(subject, said.sum(1))
    parts = {"per_position": (spent.sum(0) / said.sum(0)).tolist()}
    note = "The halves of the episodes score each other, so that they are not quite independent."
    return mean_over_episodes(row, values, n, note=note, parts=parts)


def shift_overlap(subject: Subject) -> Measure:
    """Return the share of ids that a chunk has in common with the one a step later, mean over episodes."""
    row, n, tokenizer = _ROW["shift_overlap"], counts(subject), subject.tokenizer
    exists = subject.first + subject.horizon < np.asarray(subject.episodes.lengths)[subject.episode]
    if not exists.any():
        return row.measure(None, n=n, note="No episode is longer than a chunk.")
    plan = ChunkPlan(subject.episode[exists], subject.first[exists] + 1, subject.horizon, ())
    later = Coded.of(gather(subject.episodes, plan, tokenizer.relative), tokenizer.relative)
    shares = _overlaps(subject.ids[exists], later.encode(tokenizer, subject.key), tokenizer.pad_id)
    number = np.bincount(plan.position)
    values = (np.bincount(plan.position, shares)[number > 0]) / number[number > 0]
    return mean_over_episodes(row, values, {**n, "episodes": len(values), "pairs": len(shares)})


def undecodable(subject: Subject, *, seed: int = 0) -> Measure:
    """Return the share of chunks that `decode` refuses after one id was replaced by a uniformly drawn other one.

    `parts` holds the share of episodes with such a chunk (`episodes`, Clopper-Pearson).
    """
    refused = _refused(subject.tokenizer, subject.ids, subject.lengths, subject.coded.shape, subject.key, seed)
    values = _per_episode(subject, refused)
    return mean_over_episodes(
        _ROW["undecodable"], values, counts(subject), parts={"episodes": share_of_episodes(values > 0)}
    )


def usage_of(tokenizer: ActionTokenizer, ids: _Ids, lengths: _Ids) -> float:
    """Return the share of the vocabulary, pad apart, that occurs in `ids (n, m)`."""
    return len(np.unique(ids[_said(ids, lengths)])) / _last(tokenizer)


def next_token_entropy(ids: _Ids, lengths: _Ids, group: _Ids, vocab_size: int) -> float | None:
    """Return the cross-entropy of the next id given the one before it, in bits per id.

    Bigram, unigram and uniform frequencies of one half of the episodes score the other half, and the reverse, mixed
    by the three weights that suit the scored half best (Jelinek and Mercer), so never more than log2(v). A first look
    at how learnable the ids are; a policy sees more than one id back.

    Args:
        ids: `(n, m)`, rows padded.
        lengths: `(n,)` ids before the pads.
        group: `(n,)` the episode of each row.
        vocab_size: number of ids.

    Returns:
        None where there is only one episode.
    """
    found = _id_bits(ids, lengths, group, vocab_size)
    return None if found is None else float(found[_said(ids, lengths)].mean())


def _id_bits(ids: _Ids, lengths: _Ids, group: _Ids, vocab_size: int) -> _Floats | None:
    """Return the bits of every id of `ids (n, m)`, see `next_token_entropy`; what lies behind the length is no id."""
    episodes = np.unique(group)
    if len(episodes) < 2:
        return None
    half = np.isin(group, episodes[::2])
    start = vocab_size  # stands before the first id
    before = np.concatenate([np.full((len(ids), 1), start), ids[:, :-1]], axis=1)
    said = _said(ids, lengths)
    keys = before * (vocab_size + 1) + ids
    found = np.zeros(ids.shape)
    for known in (half, ~half):
        train, test = said & known[:, None], said & ~known[:, None]
        found[test] = _mixed_bits(_frequencies(keys[train], keys[test], vocab_size))
    return found


def _frequencies(train: _Ids, test: _Ids, vocab_size: int) -> _Floats:
    """Return the frequencies of each key `before * (v + 1) + id` of `test` as bigram, unigram, uniform, `(3, n)`."""
    width = vocab_size + 1
    pairs, seen = np.unique(train, return_counts=True)
    at = np.minimum(np.searchsorted(pairs, test), len(pairs) - 1)
    both = np.where(pairs[at] == test, seen[at], 0)
    context = np.bincount(train // width, minlength=width)[test // width]
    unigram = np.bincount(train % width, minlength=width)[test % width] / len(train)
    return np.stack([both / np.maximum(context, 1), unigram, np.full(len(test), 1 / vocab_size)])


def _mixed_bits(frequencies: _Floats, rounds: int = 30) -> _Floats:
    """Return the bits of each id under the mixture of the rows of `frequencies (3, n)` that is best for all, by EM."""
    weights = np.full(len(frequencies), 1 / len(frequencies))
    for _ in range(rounds):
        weights = weights * (frequencies @ (1 / (weights @ frequencies))) / frequencies.shape[1]
    mixed, uniform = -np.log2(weights @ frequencies), -np.log2(frequencies[-1])
    return uniform if uniform.sum() < mixed.sum() else mixed  # EM comes near its weight of 1, not onto it


def shift_overlap_of(ids: _Ids, shifted: _Ids, pad_id: int | None) -> float | None:
    """Return how much of a chunk's ids the chunk that starts one step later has too, as multisets, 0 to 1.

    Args:
        ids: `(n, m)`, rows padded with `pad_id`.
        shifted: `(n, k)`, the encodings one step later.

    Returns:
        Shared ids over the mean number of ids, averaged; None where there is no pair.
    """
    return float(_overlaps(ids, shifted, pad_id).mean()) if len(ids) else None


def _overlaps(ids: _Ids, shifted: _Ids, pad_id: int | None) -> _Floats:
    """Return the overlap of each row, `(n,)`."""
    width = int(max(ids.max(), shifted.max())) + 1
    sides = []
    for side in (ids, shifted):
        keys = np.arange(len(side))[:, None] * width + side
        kept = keys if pad_id is None else keys[side != pad_id]
        sides.append(np.unique(kept, return_counts=True))
    (one, one_count), (two, two_count) = sides
    common, at, of = np.intersect1d(one, two, assume_unique=True, return_indices=True)
    n = len(ids)
    shared = np.bincount(common // width, np.minimum(one_count[at], two_count[of]), n)
    total = np.bincount(one // width, one_count, n) + np.bincount(two // width, two_count, n)
    overlaps: _Floats = 2 * shared / total
    return overlaps


def undecodable_rate(
    tokenizer: ActionTokenizer, ids: _Ids, lengths: _Ids, shape: Mapping[str, int], key: str, seed: int
) -> float:
    """Return the share of chunks that `decode` refuses after one id was replaced by a uniformly drawn other one.

    `shape` tells `horizon` and `action_dim`, for tokenizers that leave them open.
    """
    return float(_refused(tokenizer, ids, lengths, shape, key, seed).mean())


def _refused(
    tokenizer: ActionTokenizer, ids: _Ids, lengths: _Ids, shape: Mapping[str, int], key: str, seed: int
) -> _Bools:
    """Return which chunks `decode` refuses with one wrong id, `(n,)`."""
    rng = np.random.default_rng(seed)
    last = _last(tokenizer)
    damaged = ids.copy()
    place = rng.integers(0, lengths)
    old = damaged[np.arange(len(ids)), place]
    damaged[np.arange(len(ids)), place] = (old + rng.integers(1, max(last, 2), len(ids))) % last
    _, valid = tokenizer.try_decode(damaged, **shape, key=key)
    return ~np.asarray(valid)


def _per_episode(subject: Subject, values: npt.NDArray[Any]) -> _Floats:
    """Return the mean of `values (n,)` per chunk over the chunks of each episode, `(e,)`."""
    _, at, number = np.unique(subject.episode, return_inverse=True, return_counts=True)
    means: _Floats = np.bincount(at, values) / number
    return means


def _last(tokenizer: ActionTokenizer) -> int:
    """Return the number of ids, pad apart; the pad is the last."""
    return tokenizer.vocab_size - (tokenizer.pad_id is not None)


def _said(ids: _Ids, lengths: _Ids) -> _Bools:
    said: _Bools = np.arange(ids.shape[1]) < lengths[:, None]
    return said
