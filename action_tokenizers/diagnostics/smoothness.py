"""How far decoded actions jump when recorded ones move a little: the jump alarm, and how often ids change.

All numbers are in units of half the range of each dim (of relative actions: half the span of these, see
`Subject.in_own_units`), so that the range of an action is 2; norms are Euclidean over the dims of a step, and of a
chunk the largest over its steps. A tokenizer that codes every step alone is judged step by
step, any other chunk by chunk. The excess jump of a pair is how much farther its decoded actions lie apart than the
actions themselves; here one of the two is recorded and the other near it (see `jumps` for all actions). None of this
forecasts what execution does: it is a worst case.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.data.chunks import ChunkPlan, gather
from action_tokenizers.diagnostics.error import episode_means, far, mean_over_episodes
from action_tokenizers.diagnostics.jumps import COARSE, excess_jump, nearest
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure, clopper_pearson
from action_tokenizers.diagnostics.scene import Coded
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import ActionValueError

__all__ = [
    "COARSE",
    "ESTIMATORS",
    "FAMILIES",
    "FINE",
    "LEAST_EPISODES",
    "RARE",
    "episode_jump",
    "flips",
    "jump_alarm",
    "silent_failure",
    "worst_jumps",
]

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FINE = 0.04  # 2 %: alone, so small a scale alarms at fine quantile bins
FAMILIES = ("noise", "smooth", "amplitude", "neighbour", "time")
ETAS = (0.01, 0.02, FINE, COARSE, 0.25)
RARE = 0.01  # share of episodes that must surely be exceeded for an alarm
LEAST_EPISODES = 10  # without which there is none: one hit in one or two episodes is no evidence
FACTORS = (3, 5, 10)  # of the mean error, beyond which a jump counts as far

VALUES = 1 << 20  # numbers in one block of perturbed chunks: bounds the memory
REFERENCES = 512  # chunks among which neighbours are looked for: keeps the cost linear in the data
KNOT = 16  # steps between the knots of smooth noise: slower than 1/16 cycle per step

_JUMP: Mapping[str, Any] = {
    "unit": "share of episodes",
    "kinds": (Kind.UNBIASED,),
    "caution": "A possible worst case, not a forecast: in replays and cloned policies it did not predict failure.",
    "advice": "If this is above zero, look at the episodes that jump, and confirm by replaying decoded actions.",
    "source": "Cao & Xie 2026, Def 4 and Thm 6",
    "function": "smoothness.episode_jump",
    "test": "test_smoothness.py::test_episode_jumps_of_the_trap_and_its_controls",
}
EPISODE_JUMP = Estimator(
    name="episode_jump",
    heading="episodes with a far jump (5 %)",
    meaning="Share of episodes in which noise of at most 5 % of the range moves a decoded action much farther than the "
    "noise itself: by five times the noise or ten times the mean error, whichever is larger.",
    **_JUMP,
)
EPISODE_JUMP_FINE = Estimator(
    name="episode_jump_fine",
    heading="episodes with a far jump (2 %)",
    meaning="The same with noise of at most 2 % of the range.",
    **_JUMP,
)
FLIPS = Estimator(
    name="flips",
    heading="changed ids under noise",
    unit="share",
    kinds=(Kind.UNBIASED,),
    meaning="How often noise of at most 2 % of the range changes an id of a step (of a chunk, where chunks are coded "
    "as a whole).",
    caution="Not a quality: finer codes flip more and execute better. What counts is how far the flips jump.",
    advice="Look at the jump after a flip. Only if it is far above the mean error do flips matter.",
    source="Cao & Xie 2026, Def 4, with threshold 0",
    function="smoothness.flips",
    test="test_smoothness.py::test_flips_of_uniform_bins_are_known",
)
ESTIMATORS: tuple[Estimator, ...] = (EPISODE_JUMP, EPISODE_JUMP_FINE, FLIPS)


def worst_jumps(subject: Subject, eta: float, family: str = "noise", draws: int = 4, seed: int = 0) -> Doubles:
    """Return E_i, per episode the largest excess jump of any step (chunk) under `draws` perturbations of it, `(e,)`.

    Args:
        subject: what to look at.
        eta: the most that a coordinate moves.
        family: one of `FAMILIES`. `noise`: uniform, every coordinate alone. `smooth`: the same at every 16th step, and
            straight lines between. `amplitude`: motion around the middle of the data larger or smaller, by a factor
            for all of a chunk. `neighbour`: towards the nearest chunk of another episode. `time`: the chunks that
            begin one step later and earlier, whatever `eta` and `draws`.
        draws: perturbations of every chunk.
        seed: of the perturbations; equal draws, scaled, at every eta.
    """
    return _Moves(subject).worst(eta, family, draws, seed)


def episode_jump(
    subject: Subject,
    eta: float = COARSE,
    *,
    draws: int = 4,
    seed: int = 0,
    families: Sequence[str] = FAMILIES,
    etas: Sequence[float] = ETAS,
) -> Measure:
    """Return the share of episodes with an excess jump above 5 max(eta, 2 mean error), under noise of size eta.

    Args:
        subject: what to look at.
        eta: the most that a coordinate moves.
        draws: perturbations of every step (chunk); the share is of this many.
        seed: of the perturbations.
        families: perturbations to report beside the noise, see `worst_jumps`.
        etas: sizes of noise for the curve.

    Returns:
        In parts `per_episode`, the worst excess jump of each of `episodes` under noise; `families`, for each the
        `share` with its `interval`, and `median` and `largest` of the worst excess jumps; `curve`: `median` and
        `largest` against `eta`; `threshold`; `of_relative`, of relative actions: their `unit`, and the `mean_error` and
        the largest `excess_jump` (J_q) in it.
    """
    return _episode_jump(_Moves(subject), eta, draws, seed, families, etas)


def silent_failure(subject: Subject, *, draws: int = 4, seed: int = 0) -> tuple[Measure, Measure]:
    """Return `episode_jump` at 5 % and at 2 % of the range, what `jump_alarm` decides on."""
    moves = _Moves(subject)  # both share what they have in common
    coarse, fine = (_episode_jump(moves, eta, draws, seed, FAMILIES, ETAS) for eta in (COARSE, FINE))
    return coarse, fine


def jump_alarm(coarse: Measure, fine: Measure) -> bool | None:
    """Say whether far jumps are certain at both scales; None for too few episodes.

    The smoothness half of the silent-failure flag: the other half is that the expert acts nearly without chance at
    that scale, which no tokenizer can tell.

    Args:
        coarse: `episode_jump` at 5 % of the range.
        fine: at 2 %.
    """
    if min(measure.n["episodes"] for measure in (coarse, fine)) < LEAST_EPISODES:
        return None
    return all(measure.interval is not None and measure.interval[0] > RARE for measure in (coarse, fine))


def flips(subject: Subject, eta: float = FINE, *, seed: int = 0) -> Measure:
    """Return how often uniform noise in `[-eta, eta]` per coordinate changes any id, and what comes of it.

    Returns:
        Per step where steps are coded alone, else per chunk. In parts `by_position` the share for each id of a chunk
        (pads compared like ids), `jump_given_flip`, the mean move of the decoded action where an id changed, None
        where none did, and `far`, the share of moves beyond 3, 5 and 10 mean errors.
    """
    subject, rng = subject.in_own_units(), np.random.default_rng(seed)
    t, d = subject.coded.actions.shape[1:]
    rows = subject.sample(max(64, VALUES // (t * d)), rng)
    noise = rng.uniform(-eta, eta, (len(rows), t, d)) * subject.unit * subject.moving
    moved = Coded((subject.coded.actions[rows] + noise).astype(np.float32), ~subject.real[rows])
    ids = moved.encode(subject.tokenizer, subject.key)
    decoded = np.asarray(subject.tokenizer.decode(ids, **subject.coded.shape, key=subject.key))
    jump = np.linalg.norm((decoded.astype(np.float64) - subject.decoded[rows]) / subject.unit, axis=-1)
    changed, said = _changed(subject, subject.ids[rows], ids)
    counts = subject.real[rows]
    if subject.steps_alone:  # every step then has equally many ids, one step after another
        flipped = np.asarray(changed[:, : changed.shape[1] // t * t].reshape(len(rows), t, -1).any(2))
    else:
        jump = np.where(counts, jump, 0.0).max(1, keepdims=True)
        flipped, counts = np.asarray(changed.any(1, keepdims=True)), np.ones((len(rows), 1), np.bool_)
    return mean_over_episodes(
        FLIPS,
        episode_means(flipped, counts, subject.episode[rows]),
        {"episodes": len(np.unique(subject.episode[rows])), "chunks": len(rows)},
        note=f"{'Per step.' if subject.steps_alone else 'Per chunk.'} {_unit_note(subject)}".strip(),
        parts={
            "eta": eta,
            "by_position": _share(changed, said),
            "jump_given_flip": _mean_or_none(jump[flipped & counts]),
            "far": {str(k): float((jump[counts] > k * subject.mean_error).mean()) for k in FACTORS},
            **subject.told_in_own_units(),
        },
    )


def _episode_jump(
    moves: "_Moves", eta: float, draws: int, seed: int, families: Sequence[str], etas: Sequence[float]
) -> Measure:
    subject = moves.subject
    threshold = far(subject.mean_error, eta)
    n = len(subject.present)
    others = [family for family in families if family != "noise" and (family != "neighbour" or n > 1)]
    # fewer draws of the others: they are reported beside the noise, nothing is decided on them
    worst = {family: moves.worst(eta, family, min(draws, 2), seed) for family in others}
    worst = {"noise": moves.worst(eta, "noise", draws, seed), **worst}
    curve = [moves.worst(e, "noise", draws, seed) for e in etas]
    told = {family: _exceeding(values, threshold) for family, values in worst.items()}
    row = EPISODE_JUMP_FINE if eta == FINE else EPISODE_JUMP
    few = f"Fewer than {LEAST_EPISODES} episodes: too few for the alarm." if n < LEAST_EPISODES else ""
    return row.measure(
        told["noise"]["share"],
        interval=told["noise"]["interval"],
        method="Clopper-Pearson",
        n={"episodes": n, "chunks": len(subject), "draws": draws},
        note=f"{few} {_unit_note(subject)}".strip(),
        parts={
            "eta": eta,
            "threshold": threshold,
            "episodes": subject.present.tolist(),
            "per_episode": worst["noise"].tolist(),
            "families": told,
            "curve": {
                "eta": list(etas),
                "median": [float(np.median(values)) for values in curve],
                "largest": [float(values.max()) for values in curve],
            },
            **moves.told_in_own_units(seed),
        },
    )


def _unit_note(subject: Subject) -> str:
    if not subject.is_relative:
        return ""
    return "Noise and jumps in half spans of the relative actions that are coded, not of the absolute ones."


class _Moves:
    """The ways to move recorded chunks, all but `time` by at most eta per coordinate, and how far they jump then."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject.in_own_units()
        self._known: dict[tuple[float, str, int, int], Doubles] = {}
        self._told: dict[str, Any] = {}

    def told_in_own_units(self, seed: int) -> dict[str, Any]:
        """Return the `of_relative` part: units, mean error and J_q in them, which other measures tell in absolute ones.

        Computed once: J_q may take a search.
        """
        if self.subject.is_relative and not self._told:
            self._told = self.subject.told_in_own_units(excess_jump=excess_jump(self.subject, seed=seed).value)
        return self._told

    def worst(self, eta: float, family: str, draws: int, seed: int) -> Doubles:
        """Return E_i, see `worst_jumps`, `(e,)`; computed once."""
        if family not in FAMILIES:
            raise ActionValueError(f"expected a family of perturbations among {list(FAMILIES)}, got {family!r}")
        if family == "time":
            eta, draws = 0.0, 2
        asked = (eta, family, draws, seed)
        if asked not in self._known:
            self._known[asked] = self.subject.largest(self._per_chunk(*asked))
        return self._known[asked]

    def _per_chunk(self, eta: float, family: str, draws: int, seed: int) -> Doubles:
        subject = self.subject
        move: Callable[..., Doubles] = getattr(self, family)
        worst = np.full(len(subject), -np.inf)
        for draw in range(draws):
            rng = np.random.default_rng([seed, draw])
            for rows in _blocks(subject):
                shift = move(rows, eta, draw, rng)
                excess = _excess(subject.moved(shift, rows), shift, subject.real[rows], subject.steps_alone)
                worst[rows] = np.maximum(worst[rows], excess)
        return worst

    def noise(self, rows: slice, eta: float, draw: int, rng: np.random.Generator) -> Doubles:
        drawn: Doubles = rng.uniform(-eta, eta, self.subject.actions[rows].shape)
        return drawn * self.subject.moving

    def smooth(self, rows: slice, eta: float, draw: int, rng: np.random.Generator) -> Doubles:
        n, t, d = self.subject.actions[rows].shape
        knots = 1 + -(-(t - 1) // KNOT)
        heights = rng.uniform(-eta, eta, (n, knots, d)) * self.subject.moving
        at = np.linspace(0, knots - 1, t)
        below = np.minimum(at.astype(np.int64), max(knots - 2, 0))
        share = (at - below)[:, None]
        smooth: Doubles = heights[:, below] * (1 - share) + heights[:, np.minimum(below + 1, knots - 1)] * share
        return smooth

    def amplitude(self, rows: slice, eta: float, draw: int, rng: np.random.Generator) -> Doubles:
        chunks = self.subject.actions[rows]
        share: Doubles = rng.uniform(-eta, eta, (len(chunks), 1, 1))
        return share * (chunks - self.middle)

    def neighbour(self, rows: slice, eta: float, draw: int, rng: np.random.Generator) -> Doubles:
        chunks = self.subject.actions[rows]
        share = rng.uniform(0, 1, (len(chunks), 1, 1))
        if self.neighbours is None:
            return np.zeros_like(chunks)
        way: Doubles = self.subject.actions[self.neighbours[rows]] - chunks
        longest = np.abs(way).max((1, 2), keepdims=True)
        part: Doubles = share * np.minimum(1, eta / np.maximum(longest, 1e-12))
        return way * part

    def time(self, rows: slice, eta: float, draw: int, rng: np.random.Generator) -> Doubles:
        subject = self.subject
        episode = subject.episode[rows]
        last = np.asarray(subject.episodes.lengths)[episode] - 1
        # before the first step, after the last and in nothing but padding there is none: such a chunk stays
        first = np.clip(subject.first[rows] + (1 if draw % 2 == 0 else -1), 0, last)
        plan = ChunkPlan(episode, first, subject.horizon, ())
        relative = subject.tokenizer.relative
        later = Coded.of(gather(subject.episodes, plan, relative), relative).held()
        shift = later.actions.astype(np.float64) / subject.unit - subject.actions[rows]
        shift[np.all(later.is_pad, axis=1)] = 0
        return shift

    @cached_property
    def middle(self) -> Doubles:
        recorded = self.subject.actions[self.subject.real]
        middle: Doubles = (recorded.min(0) + recorded.max(0)) / 2
        return middle

    @cached_property
    def neighbours(self) -> Ints | None:
        """For each chunk the nearest of another episode, among a few spread over all episodes, `(n,)`."""
        subject = self.subject
        if len(subject.present) < 2:
            return None
        few = np.unique(np.linspace(0, len(subject) - 1, min(len(subject), REFERENCES)).round().astype(np.int64))
        flat = subject.actions.reshape(len(subject), -1)
        return few[nearest(flat, subject.episode, flat[few], subject.episode[few])]


def _excess(jump: Doubles, shift: Doubles, real: Bools, steps_alone: bool) -> Doubles:
    """Return per chunk how much farther it jumped than it was moved, both `(n, t, d)`; `(n,)`."""
    far, near = (np.linalg.norm(values, axis=-1) for values in (jump, shift))
    if steps_alone:
        return np.asarray(np.where(real, far - near, -np.inf).max(1))
    return np.asarray(np.where(real, far, 0.0).max(1) - np.where(real, near, 0.0).max(1))


def _blocks(subject: Subject) -> Iterator[slice]:
    block = max(1, VALUES // (subject.horizon * subject.unit.size))
    for start in range(0, len(subject), block):
        yield slice(start, start + block)


def _exceeding(worst: Doubles, threshold: float) -> dict[str, Any]:
    hits, n = int((worst > threshold).sum()), len(worst)
    return {
        "share": hits / n,
        "interval": clopper_pearson(hits, n),
        "median": float(np.median(worst)),
        "largest": float(worst.max()),
    }


def _changed(subject: Subject, before: Ints, after: Ints) -> tuple[Bools, Bools]:
    """Return where two lots of ids differ and where either says something, `(n, m)`; pads fill up to one width."""
    pad = subject.tokenizer.pad_id
    fill = -1 if pad is None else pad
    width = max(before.shape[1], after.shape[1])
    old, new = (np.pad(v, ((0, 0), (0, width - v.shape[1])), constant_values=fill) for v in (before, after))
    return old != new, (old != fill) | (new != fill)


def _share(hits: Bools, of: Bools) -> list[float | None]:
    """Return per column the share of `hits` among `of`, both `(n, m)`; None where there is none."""
    return [float(h / n) if n else None for h, n in zip((hits & of).sum(0), of.sum(0), strict=True)]


def _mean_or_none(values: Doubles) -> float | None:
    return float(values.mean()) if len(values) else None
