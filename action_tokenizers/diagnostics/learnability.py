"""How well a small, fixed probe learns to predict the ids: one model and one budget for every tokenizer.

It is trained on one half of the episodes, on windows from anywhere in them, and judged on the other half; then the
halves change places. `lesson` says what it is shown, `grammar` what it looks at, `small_probe` how it learns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import Progress
from action_tokenizers.diagnostics.lesson import Chunks, Examples, Lesson, coded_at, holding, thinned
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure, bootstrap_t
from action_tokenizers.diagnostics.small_probe import STEPS, Nats, Probe
from action_tokenizers.diagnostics.subject import Subject

__all__ = ["ESTIMATORS", "learnability"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
States = Sequence[npt.NDArray[np.floating]]

DECODED = 128  # most chunks that are decoded
FEW = 10  # episodes, below which a note says so

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
    rows = rows[thinned(subject.episode[rows])]
    present = np.unique(subject.episode[rows])
    if len(present) < 2:
        note = f"Not shown: it takes two episodes with a whole chunk, and there is {len(present)}."
        return [row.measure(None, n={"episodes": len(present)}, note=note) for row in ESTIMATORS]
    lesson = Lesson.of(subject, states, rows, seed)
    order = np.random.default_rng([seed, 0]).permutation(present)
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    results = []
    with _undisturbed():
        for k, parts in enumerate((halves, halves[::-1])):
            if progress is not None:
                progress("probe", k, 2)
            probe = Probe(lesson, parts[1], steps, np.random.default_rng([seed, 1, k]))
            # drawn anew, so that every tokenizer is asked for the same chunks
            results.append(_judge(lesson, probe, parts, np.random.default_rng([seed, 2, k])))
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


class _Result(NamedTuple):
    """What came of one half."""

    steps: int
    which: Ints  # (b,) rows of the lesson's ids to judge on
    nats: Nats  # (b,) each
    written: Ints  # (r,) rows of the lesson's chunks
    whole: Bools  # (r,)
    errors: Floats  # (r, 4) per step: of the probe, of the tokenizer, of repeating the last action, of the mean one


def _judge(lesson: Lesson, probe: Probe, halves: tuple[Ints, Ints], rng: np.random.Generator) -> _Result:
    """Judge a probe of the second half on the first one."""
    half, taught = halves
    chunks, judge = lesson.chunks, lesson.judge
    which = np.flatnonzero(np.isin(chunks.episode[judge.chunk], half))
    nats = probe.nll(chunks, judge.at(which))
    written = _few_each(chunks.episode, half, DECODED // 2, rng)
    ids, whole = probe.write(chunks.at(written))
    return _Result(probe.steps, which, nats, written, whole, _errors(lesson, taught, written, ids))


def _errors(lesson: Lesson, taught: Ints, written: Ints, ids: Ints) -> Floats:
    subject, chunks = lesson.subject, lesson.chunks.at(written)
    coded = coded_at(subject.coded, lesson.rows[written])
    decoded, _ = subject.tokenizer.try_decode(ids, **coded.shape, key=subject.key)
    mean = np.broadcast_to(_mean_action(lesson, taught), chunks.last.shape)
    told = (
        np.asarray(decoded),
        subject.decoded[lesson.rows[written]],
        holding(np.where(chunks.starts[:, None], mean, chunks.last), coded),
        holding(mean, coded),
    )
    errors = []
    for actions in told:
        difference: Floats = actions.astype(np.float64) - coded.actions
        if coded.relative is not None:
            # the error of the absolute actions: differences add up, and angles turn
            difference = coded.relative.invert(difference, np.zeros(mean.shape)).astype(np.float64)
        errors.append(np.linalg.norm(difference / subject.unit, axis=2).mean(1))
    return np.stack(errors, 1)


def _mean_action(lesson: Lesson, taught: Ints) -> Floats:
    """Return the mean action before the windows of the episodes `taught`, `(d,)`, or else of their first steps."""
    windows = lesson.windows
    known = np.isin(windows.episode, taught)
    before = windows.last[known & ~windows.starts]
    if not len(before):
        before = lesson.coded.absolute(lesson.coded.actions)[known, 0]
    mean: Floats = before.mean(0, dtype=np.float64)
    return mean


def _nll(lesson: Lesson, results: list[_Result]) -> Measure:
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


def _error(lesson: Lesson, results: list[_Result]) -> Measure:
    written = np.concatenate([result.written for result in results])
    errors = np.concatenate([result.errors for result in results])
    unfinished = float((~np.concatenate([result.whole for result in results])).mean())
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


def _few_each(episode: Ints, half: Ints, most: int, rng: np.random.Generator) -> Ints:
    """Return random rows, equally many of each episode of `half` where it has so many, ascending."""
    chosen = half[rng.permutation(len(half))[:most]]
    each = most // len(chosen)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(episode == one))[:each] for one in chosen]))


def _mean_per_episode(values: Floats | Ints, episode: Ints) -> Floats:
    _, index = np.unique(episode, return_inverse=True)
    means: Floats = np.bincount(index, values) / np.bincount(index)
    return means


def _by_place(judge: Examples, chunks: Chunks, nats: Floats) -> list[float]:
    """Return mean nats per id in up to 32 equal parts of the longest chunk's positions."""
    longest = int(chunks.lengths.max())
    parts = min(32, longest)
    part = judge.position * parts // longest
    counts = np.bincount(part, minlength=parts)
    return list((np.bincount(part, nats, parts) / np.maximum(counts, 1)).tolist())
