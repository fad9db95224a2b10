"""How far decoded actions jump when actions move a little, or when one id is wrong.

All numbers are in units of half the range of each dim, so that the range of an action is 2; norms are Euclidean over
the dims of a step, and of a chunk the largest over its steps. A tokenizer that codes every step alone is judged step by
step, any other chunk by chunk. The excess jump of a pair is how much farther its decoded actions lie apart than the
actions themselves; its supremum J_q decides how smooth a deterministic expert's tokenized policy is (Cao & Xie 2026,
arXiv:2603.20538, Prop 5, with J_q for 2 ε_q). None of this forecasts what execution does: it is a worst case.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from action_tokenizers.data.chunks import ChunkPlan, gather
from action_tokenizers.diagnostics.domains import Frame, quantized, size
from action_tokenizers.diagnostics.error import mean_over_episodes
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure, clopper_pearson
from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import ActionShapeError, ActionValueError

__all__ = [
    "COARSE",
    "ESTIMATORS",
    "FAMILIES",
    "FINE",
    "LEAST_EPISODES",
    "RARE",
    "episode_jump",
    "excess_jump",
    "flips",
    "jump_alarm",
    "modulus",
    "scalar_excess_jump",
    "silent_failure",
    "worst_jumps",
    "wrong_token",
]

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

COARSE = 0.1  # 5 % of the range
FINE = 0.04  # 2 %: alone, so small a scale alarms at fine quantile bins
FAMILIES = ("noise", "smooth", "amplitude", "neighbour", "time")
ETAS = (0.01, 0.02, FINE, COARSE, 0.25)
MODULUS_ETAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RARE = 0.01  # share of episodes that must surely be exceeded for an alarm
LEAST_EPISODES = 10  # without which there is none: one hit in one or two episodes is no evidence
FACTORS = (3, 5, 10)  # of the mean error, beyond which a jump counts as far

VALUES = 1 << 20  # numbers in one block of perturbed chunks, and in one sample of points: bounds the memory
REFERENCES = 512  # chunks among which neighbours are looked for: keeps the cost linear in the data
DRAWS = 2  # directions per point and length
KNOT = 16  # steps between the knots of smooth noise: slower than 1/16 cycle per step

EXCESS_JUMP = Estimator(
    name="excess_jump",
    heading="largest excess jump",
    unit="half range",
    kinds=(Kind.EXACT, Kind.LOWER, Kind.UPPER),
    meaning="The most by which two decoded actions can lie farther apart than the actions they stand for.",
    caution="A worst case over all actions, likely or not; it ranks no tokenizers by how they execute.",
    advice="Far above twice the mean error, some small change of an action is answered by a large one: see which "
    "perturbation finds it. Uniform bins and FAST jump by about one cell.",
    source="Cao & Xie 2026, Prop 5 and Eq 3",
    function="smoothness.excess_jump",
    test="test_smoothness.py::test_excess_jump_of_bins_is_a_cell_in_every_dim",
)
MODULUS = Estimator(
    name="modulus",
    heading="jump after a small move",
    unit="half range",
    kinds=(Kind.CONSISTENT,),
    meaning="How far the decoded action moves, 99 % of the time at most, when an action moves by 5 % of the range in "
    "a random direction.",
    caution="Random directions leave the way that recorded motion goes; the largest of each curve is a lower bound.",
    advice="As the move shrinks, the jump should shrink to about one cell; where it stays far above twice the mean "
    "error, use more codewords or another family.",
    source="Cao & Xie 2026, Prop 5",
    function="smoothness.modulus",
    test="test_smoothness.py::test_modulus_of_fine_bins_is_the_move_and_of_coarse_ones_a_cell",
)
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
WRONG_TOKEN = Estimator(
    name="wrong_token",
    heading="damage of one wrong id",
    unit="half range",
    kinds=(Kind.CONSISTENT,),
    meaning="How far the decoded chunk moves, on average, when the policy says one other id that may stand there.",
    caution="Of ids drawn evenly; a trained policy errs towards likely ids. Chunks that no longer decode are left "
    "out. Only of bins does a neighbouring id mean a neighbouring action.",
    advice="If the damage is large, the policy must be sure of its ids: prefer ids that each say little.",
    source="Cao & Xie 2026, section 2; substitution as in compare's undecodable",
    function="smoothness.wrong_token",
    test="test_smoothness.py::test_one_wrong_id_of_bins_moves_one_step_by_known_cells",
)
WRONG_TOKEN_UNDECODABLE = Estimator(
    name="wrong_token_undecodable",
    heading="undecodable after one wrong id",
    unit="share of chunks",
    kinds=(Kind.UNBIASED,),
    meaning="Share of chunks that cannot be decoded after one id was replaced by any other of the vocabulary.",
    caution="A policy whose logits are masked by `allowed` says fewer such ids, see the part `allowed`.",
    advice="If it is above zero, mask the logits by `allowed`, and decide what the robot does when decoding fails.",
    source="Cao & Xie 2026, section 5 (limits)",
    function="smoothness.wrong_token",
    test="test_smoothness.py::test_ids_of_the_wrong_slot_do_not_decode",
)
ESTIMATORS: tuple[Estimator, ...] = (
    EXCESS_JUMP,
    MODULUS,
    EPISODE_JUMP,
    EPISODE_JUMP_FINE,
    FLIPS,
    WRONG_TOKEN,
    WRONG_TOKEN_UNDECODABLE,
)


def scalar_excess_jump(edges: Floats, centres: Floats, low: float = -1.0, high: float = 1.0) -> float:
    """Return the exact excess jump of a step function on `low..high`.

    Between two points x <= y the excess |q(y) - q(x)| - (y - x) is largest where x is the right end of what comes
    before and y the left end of what comes after, so that one-sided limits at the edges decide: it is the largest rise
    of q - id, or fall of q + id, along the line.

    Args:
        edges: `(k - 1,)` ascending.
        centres: `(k,)` what each cell decodes to, in any order.
        low: where the domain begins.
        high: where it ends.

    Example:
        >>> scalar_excess_jump(np.array([-0.5, 0.0, 0.5]), np.array([-0.75, -0.25, 0.25, 0.75]))
        0.5
    """
    inside = (edges > low) & (edges <= high)  # a value on an edge belongs to the cell above
    first = int(np.searchsorted(edges, low, side="right"))
    borders = np.asarray(edges[inside], np.float64)
    values = np.asarray(centres[first : first + len(borders) + 1], np.float64)
    # every cell from both of its ends
    x = np.concatenate([[low], np.repeat(borders, 2), [high]])
    q = np.repeat(values, 2)
    rise, fall = q - x, q + x
    up = (rise - np.minimum.accumulate(rise)).max()
    down = (np.maximum.accumulate(fall) - fall).max()
    return float(max(up, down))


def excess_jump(subject: Subject, *, sup: float | None = None, seed: int = 0) -> Measure:
    """Return J_q: exact where every value is quantized alone, else the largest that a search found.

    Args:
        subject: what to look at.
        sup: a claimed or known largest error of single actions (Eq 3); J_q above twice that disproves it.
        seed: of the search.

    Returns:
        EXACT with `per_dim`; UPPER where several dims jump most between actions that lie apart, so that they may not do
        it together (`attained` is what they surely do). Or LOWER with `pairs`: the largest excess between recorded
        actions and moved ones (`noise` of several sizes; the same for all steps of a chunk: `offset`), the nearest
        actions of other episodes (`neighbour`), points on lines between recorded actions (`hull`), and after
        `bisection` of the largest of these. `least_sup`, J_q / 2, is the smallest largest error that goes with it;
        `over_twice_mean` and `over_twice_sup` are ratios; `disproves_sup` says whether the claim is refuted.
    """
    cells = _exact_per_dim(subject)
    if cells is not None:
        per_dim, borders = cells
        # sqrt(sum J_d^2) bounds them all; at borders, where no distance is spent, every dim can jump at once
        value, attained = float(np.linalg.norm(per_dim)), float(np.linalg.norm(borders))
        exact = (per_dim > 0).sum() == 1 or value <= attained * (1 + 1e-3)
        return EXCESS_JUMP.measure(
            value,
            kind=Kind.EXACT if exact else Kind.UPPER,
            note="" if Frame.of(subject).clips else "Inside the range that it expects: it clips nothing.",
            parts={
                "per_dim": per_dim.tolist(),
                "attained": value if exact else attained,
                **_against(value if exact else attained, subject, sup),
            },
        )
    points = _Points.of(subject, np.random.default_rng(seed))
    found, n = _search(points, np.random.default_rng([seed, 1]))
    value = max(found.values())
    return EXCESS_JUMP.measure(
        value,
        kind=Kind.LOWER,
        n={"episodes": len(np.unique(points.episode)), "pairs": n},
        note="Found by a search: the truth may be larger.",
        parts={"pairs": found, **_against(value, subject, sup)},
    )


def modulus(subject: Subject, *, seed: int = 0) -> Measure:
    """Return how far decoded actions move when actions move by a given length in random directions.

    Returns:
        The 99 % quantile at a move of 0.1; in parts the curves over moves of .001 to 1 (`eta`): `median`, `q99` and
        `largest` with directions drawn for every step, under `offset` the same with one direction for all steps of a
        chunk (only where chunks are coded as a whole), and `std`, the spread of each dim of the recorded actions, to
        read the moves by.
    """
    rng = np.random.default_rng(seed)
    points = _Points.of(subject, rng)
    steps = points.values.shape[1]
    parts: dict[str, Any] = {"eta": list(MODULUS_ETAS), **_curve(points, steps, rng)}
    if steps > 1:
        parts["offset"] = _curve(points, 1, rng)
    parts["std"] = subject.actions[subject.real].std(0).tolist()
    return MODULUS.measure(
        parts["q99"][MODULUS_ETAS.index(COARSE)],
        n={"episodes": len(np.unique(points.episode)), "draws": len(points.values) * DRAWS},
        parts=parts,
    )


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
        `largest` against `eta`; `threshold`.
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
    rng = np.random.default_rng(seed)
    t, d = subject.coded.actions.shape[1:]
    rows = _full_rows(subject, max(64, VALUES // (t * d)), rng)
    shift = _held(subject, rng.uniform(-eta, eta, (len(rows), t, d)), rows)
    chunks = (subject.coded.actions[rows] + shift * subject.unit).astype(np.float32)
    ids = np.asarray(subject.tokenizer.encode(chunks, key=subject.key))
    decoded = np.asarray(subject.tokenizer.decode(ids, **subject.coded.shape, key=subject.key))
    jump = np.linalg.norm((decoded.astype(np.float64) - subject.decoded[rows]) / subject.unit, axis=-1)
    changed, said = _changed(subject, subject.ids[rows], ids)
    counts = subject.real[rows]
    if subject.steps_alone:  # every step then has equally many ids, one step after another
        flipped = np.asarray(changed[:, : changed.shape[1] // t * t].reshape(len(rows), t, -1).any(2))
    else:
        jump = np.where(counts, jump, 0.0).max(1, keepdims=True)
        flipped, counts = np.asarray(changed.any(1, keepdims=True)), np.ones((len(rows), 1), np.bool_)
    error = _mean_error(subject)
    return mean_over_episodes(
        FLIPS,
        _episode_means(flipped, counts, subject.episode[rows]),
        {"episodes": len(np.unique(subject.episode[rows])), "chunks": len(rows)},
        note="Per step." if subject.steps_alone else "Per chunk.",
        parts={
            "eta": eta,
            "by_position": _share(changed, said),
            "jump_given_flip": _mean_or_none(jump[flipped & counts]),
            "far": {str(k): float((jump[counts] > k * error).mean()) for k in FACTORS},
        },
    )


def wrong_token(
    subject: Subject, *, runner_up: Ints | None = None, seed: int = 0, most_positions: int = 64
) -> tuple[Measure, Measure]:
    """Return what one wrong id does to a chunk: how far it moves it, and how often it makes it undecodable.

    Args:
        subject: what to look at.
        runner_up: like `subject.ids`: what a policy would say second at each place; -1 where unknown.
        seed: of the substitutions.
        most_positions: ids of a chunk to try, evenly spread.

    Returns:
        The mean damage of another id that may stand there, and the share undecodable after any other id. In parts,
        for `allowed` (another id that may stand there), `any` (another of the vocabulary), `neighbour` (id + 1 or
        id - 1, where allowed) and `runner_up`: `mean`, `q95` and `largest` damage of the decodable ones, the shares
        `undecodable` and `other_length` (the chunk would end elsewhere), and `mean_at`, `q95_at`, `largest_at` per
        position of `positions`. None where no id can be replaced or no chunk decodes.
    """
    if runner_up is not None and np.shape(runner_up) != subject.ids.shape:
        raise ActionShapeError(
            f"expected runner_up like the ids, {subject.ids.shape}, got {np.shape(runner_up)}; give -1 where unknown"
        )
    rng = np.random.default_rng(seed)
    longest = int(subject.lengths.max())
    positions = np.unique(np.linspace(0, longest - 1, min(longest, most_positions)).round().astype(np.int64))
    rows = _full_rows(subject, max(64, 8192 // len(positions)), rng)
    found = _substitutes(subject, rows, positions, rng)
    if runner_up is not None:
        said = positions < subject.lengths[rows][:, None]
        given = np.asarray(runner_up, np.int64)[rows][:, positions]
        found["runner_up"] = np.where(said & (given != subject.ids[rows][:, positions]), given, -1)
    damage = {law: _damage(subject, rows, positions, new) for law, new in found.items()}
    parts = {"positions": positions.tolist()} | {law: d.told() for law, d in damage.items()}
    allowed, drawn = damage["allowed"], damage["any"]
    moved = _episode_means(allowed.jump, allowed.decodable, subject.episode[rows])
    broken = _episode_means(~drawn.decodable, drawn.tried, subject.episode[rows])
    shares = ("undecodable", "other_length")
    told = {law: {name: d.told()[name] for name in shares} for law, d in damage.items()}
    return (
        _over_episodes(WRONG_TOKEN, moved, len(rows), "No other id decodes anywhere.", parts),
        _over_episodes(WRONG_TOKEN_UNDECODABLE, broken, len(rows), "There is no other id.", told),
    )


def _over_episodes(row: Estimator, values: Doubles, chunks: int, nothing: str, parts: dict[str, Any]) -> Measure:
    n = {"episodes": len(values), "chunks": chunks}
    if not len(values):
        return row.measure(None, n=n, note=nothing, parts=parts)
    return mean_over_episodes(row, values, n, parts=parts)


def _episode_jump(
    moves: "_Moves", eta: float, draws: int, seed: int, families: Sequence[str], etas: Sequence[float]
) -> Measure:
    subject = moves.subject
    threshold = 5 * max(eta, 2 * _mean_error(subject))
    n = len(subject.present)
    others = [family for family in families if family != "noise" and (family != "neighbour" or n > 1)]
    # fewer draws of the others: they are reported beside the noise, nothing is decided on them
    worst = {family: moves.worst(eta, family, min(draws, 2), seed) for family in others}
    worst = {"noise": moves.worst(eta, "noise", draws, seed), **worst}
    curve = [moves.worst(e, "noise", draws, seed) for e in etas]
    told = {family: _exceeding(values, threshold) for family, values in worst.items()}
    row = EPISODE_JUMP_FINE if eta == FINE else EPISODE_JUMP
    return row.measure(
        told["noise"]["share"],
        interval=told["noise"]["interval"],
        method="Clopper-Pearson",
        n={"episodes": n, "chunks": len(subject), "draws": draws},
        note=f"Fewer than {LEAST_EPISODES} episodes: too few for the alarm." if n < LEAST_EPISODES else "",
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
        },
    )


class _Moves:
    """The ways to move recorded chunks, all but `time` by at most eta per coordinate, and how far they jump then."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._known: dict[tuple[float, str, int, int], Doubles] = {}

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
                shift = _held(subject, move(rows, eta, draw, rng), rows)
                excess = _excess(subject.moved(shift, rows), shift, subject.real[rows], subject.steps_alone)
                worst[rows] = np.maximum(worst[rows], excess)
        return worst

    def noise(self, rows: slice, eta: float, draw: int, rng: np.random.Generator) -> Doubles:
        return rng.uniform(-eta, eta, self.subject.actions[rows].shape)

    def smooth(self, rows: slice, eta: float, draw: int, rng: np.random.Generator) -> Doubles:
        n, t, d = self.subject.actions[rows].shape
        knots = 1 + -(-(t - 1) // KNOT)
        heights = rng.uniform(-eta, eta, (n, knots, d))
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
        # before the first step and after the last there is none: such a chunk is left where it is
        first = np.clip(subject.first[rows] + (1 if draw % 2 == 0 else -1), 0, last)
        plan = ChunkPlan(episode, first, subject.horizon, ())
        later: Doubles = gather(subject.episodes, plan, subject.tokenizer.relative).actions.astype(np.float64)
        return later / subject.unit - subject.actions[rows]

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
        return few[_nearest(flat, subject.episode, flat[few], subject.episode[few])]


def _nearest(points: Doubles, episode: Ints, others: Doubles, of: Ints) -> Ints:
    """Return for `points (n, k)` the nearest of `others (m, k)` from another episode, `(n,)`."""
    near = np.empty(len(points), np.int64)
    rows = max(1, VALUES // len(others))
    references = others.astype(np.float32)
    squares = (references**2).sum(1)
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        # up to a constant per point; float32 will do to choose
        distance = squares - 2 * (points[block].astype(np.float32) @ references.T)
        distance[episode[block, None] == of] = np.inf
        near[block] = distance.argmin(1)
    return near


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


def _held(subject: Subject, shift: Doubles, rows: slice | Ints) -> Doubles:
    """Return `shift (n, t, d)`, with padded steps moved onto the last real one: encoding puts them there too."""
    real, actions = subject.real[rows], subject.actions[rows]
    if real.all():
        return shift
    source = np.maximum.accumulate(np.where(real, np.arange(real.shape[1]), -1), axis=1)
    source = np.where(source < 0, real.argmax(1, keepdims=True), source)[..., None]
    return np.asarray(np.take_along_axis(actions + shift, source, 1) - actions)


def _mean_error(subject: Subject) -> float:
    """Return the mean length of the error of a step, the mean over episodes (Eq 4)."""
    return float(subject.average(np.linalg.norm(subject.error, axis=-1)).mean())


def _exceeding(worst: Doubles, threshold: float) -> dict[str, Any]:
    hits, n = int((worst > threshold).sum()), len(worst)
    return {
        "share": hits / n,
        "interval": clopper_pearson(hits, n),
        "median": float(np.median(worst)),
        "largest": float(worst.max()),
    }


@dataclass(frozen=True)
class _Points:
    """Recorded actions to search from: steps `(m, 1, d)` where steps are coded alone, else chunks `(m, t, d)`."""

    subject: Subject
    values: Doubles
    episode: Ints

    @classmethod
    def of(cls, subject: Subject, rng: np.random.Generator) -> "_Points":
        t, d = subject.actions.shape[1:]
        if subject.steps_alone:
            chunk, step = np.nonzero(subject.real)
            at = rng.choice(len(chunk), min(len(chunk), 4096, max(64, VALUES // d)), replace=False)
            return cls(subject, subject.actions[chunk[at], step[at]][:, None], subject.episode[chunk[at]])
        rows = _full_rows(subject, min(1024, max(64, VALUES // (t * d))), rng)
        return cls(subject, subject.actions[rows], subject.episode[rows])

    def quantize(self, values: Doubles) -> Doubles:
        """Return decoded `values (k, p, d)`."""
        return quantized(self.subject, values * self.subject.unit)


def _curve(points: _Points, steps: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """Return quantiles of the jump against the length of the move; `steps` 1: all steps move alike."""
    m, _, d = points.values.shape
    base = points.quantize(points.values)
    way = rng.standard_normal((DRAWS, m, steps, d))
    way /= np.linalg.norm(way, axis=-1, keepdims=True)
    curve: dict[str, list[float]] = {"median": [], "q99": [], "largest": []}
    for eta in MODULUS_ETAS:
        jump = np.stack([size(points.quantize(points.values + eta * w) - base) for w in way])
        median, q99 = np.quantile(jump, [0.5, 0.99])
        for name, value in zip(curve, (median, q99, jump.max()), strict=True):
            curve[name].append(float(value))
    return curve


SIZES = (0.004, 0.02, 0.1, 0.5)  # of noise to search with
STOPS, LAGS = 17, (1, 2, 4, 8, 16)  # points on a line, and how many apart they are compared
KEPT, HALVINGS = 64, 12  # pairs of each kind to bisect, and how often


def _search(points: _Points, rng: np.random.Generator) -> tuple[dict[str, float], int]:
    """Return the largest excess jump found among pairs of each kind, and the number of pairs."""
    found: dict[str, float] = {}
    best: list[tuple[Doubles, Doubles]] = []
    n = 0
    for kind, a, b, qa, qb in _pairs(points, rng):
        excess = size(qb - qa) - size(b - a)
        found[kind] = max(found.get(kind, 0.0), float(excess.max()))
        top = np.argsort(excess)[-KEPT:]
        best.append((a[top], b[top]))
        n += len(excess)
    found["bisection"] = _bisect(points, *(np.concatenate(side) for side in zip(*best, strict=True)))
    return found, n


def _pairs(points: _Points, rng: np.random.Generator) -> Iterator[tuple[str, Doubles, Doubles, Doubles, Doubles]]:
    """Yield pairs of actions `(k, p, d)` of one kind with their decoded actions."""
    x, episode = points.values, points.episode
    m, p, d = x.shape
    q = points.quantize(x)
    for eta in SIZES:
        for kind, steps in (("noise", p), ("offset", 1))[: 1 + (p > 1)]:
            moved = x + rng.uniform(-eta, eta, (m, steps, d))
            yield kind, x, moved, q, points.quantize(moved)
    if len(np.unique(episode)) > 1:
        few = rng.choice(m, min(m, 2048), replace=False)
        flat = x.reshape(m, -1)
        near = few[_nearest(flat, episode, flat[few], episode[few])]
        yield "neighbour", x, x[near], q, q[near]
    ends = rng.integers(0, m, (2, max(4, m // STOPS)))
    share = np.linspace(0, 1, STOPS)[:, None, None]
    lines = x[ends[0], None] * (1 - share) + x[ends[1], None] * share
    decoded = points.quantize(lines.reshape(-1, p, d)).reshape(lines.shape)
    for lag in LAGS:
        a, b, qa, qb = (v.reshape(-1, p, d) for side in (lines, decoded) for v in (side[:, :-lag], side[:, lag:]))
        yield "hull", a, b, qa, qb


def _bisect(points: _Points, a: Doubles, b: Doubles) -> float:
    """Return the largest excess jump met while halving the way from `a` to `b (k, p, d)` towards the larger jump.

    The excess of a whole is at most that of its halves together, and a border is a jump that needs no way at all.
    """
    qa, qb = points.quantize(a), points.quantize(b)
    largest = 0.0
    for _ in range(HALVINGS):
        c = (a + b) / 2
        qc = points.quantize(c)
        left, right = size(qc - qa) - size(c - a), size(qb - qc) - size(b - c)
        largest = max(largest, float(left.max()), float(right.max()))
        first = (left >= right)[:, None, None]
        a, b, qa, qb = np.where(first, a, c), np.where(first, c, b), np.where(first, qa, qc), np.where(first, qc, qb)
    return largest


def _exact_per_dim(subject: Subject) -> tuple[Doubles, Doubles] | None:
    """Return per dim the excess jump and the largest jump at a border, both `(d,)`; None without scalar cells.

    Inside the range: beyond it actions are clipped, and clipping takes nothing closer together than it was.
    """
    cells, frame = subject.tokenizer.scalar_cells(), Frame.of(subject)
    if cells is None:
        return None
    jumps = np.zeros((2, len(frame.half)))
    for j, (edges, centres) in enumerate(zip(cells.edges, cells.centres, strict=True)):
        e, c = (values.double().cpu().numpy() for values in (edges, centres))
        inside = (e > frame.first[j]) & (e <= frame.last[j])
        jumps[:, j] = (
            scalar_excess_jump(e, c, frame.first[j], frame.last[j]),
            np.abs(np.diff(c)[inside]).max(initial=0.0),
        )
    return jumps[0] * frame.half, jumps[1] * frame.half


def _against(value: float, subject: Subject, sup: float | None) -> dict[str, Any]:
    mean = _mean_error(subject)
    return {
        "least_sup": value / 2,
        "over_twice_mean": value / (2 * mean) if mean > 0 else None,
        "over_twice_sup": value / (2 * sup) if sup else None,
        # a thousandth for float32
        "disproves_sup": None if sup is None else value > 2 * sup * (1 + 1e-3),
    }


def _full_rows(subject: Subject, most: int, rng: np.random.Generator) -> Ints:
    """Return at most `most` chunks without padding, ascending; of all chunks where there is none without."""
    full = np.flatnonzero(subject.real.all(1))
    rows = full if len(full) else np.arange(len(subject))
    return np.sort(rng.choice(rows, min(len(rows), most), replace=False))


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


def _episode_means(values: npt.NDArray[Any], counts: Bools, episode: Ints) -> Doubles:
    """Return the means of `values (n, k)` where `counts`, per episode that has any; `episode (n,)` ascends."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1])
    total = np.add.reduceat(np.where(counts, values, 0).sum(1, dtype=np.float64), starts)
    number = np.add.reduceat(counts.sum(1), starts)
    return np.asarray(total[number > 0] / number[number > 0])


def _substitutes(subject: Subject, rows: Ints, positions: Ints, rng: np.random.Generator) -> dict[str, Ints]:
    """Return ids to put in place of those at `positions (k,)` of `rows (r,)`, by law, `(r, k)`; -1: none."""
    tokenizer, ids, lengths = subject.tokenizer, subject.ids[rows], subject.lengths[rows]
    last = tokenizer.vocab_size - (tokenizer.pad_id is not None)
    found = {law: np.full((len(rows), len(positions)), -1) for law in ("allowed", "any", "neighbour")}
    for k, p in enumerate(positions.tolist()):
        live = np.flatnonzero(lengths > p)
        own = ids[live, p]
        allowed = np.asarray(tokenizer.allowed(ids[live, :p], **subject.coded.shape))[:, :last].copy()
        beside = np.stack([own - 1, own + 1], 1)
        may = (beside >= 0) & (beside < last) & np.take_along_axis(allowed, beside.clip(0, last - 1), 1)
        allowed[np.arange(len(live)), own] = False
        found["allowed"][live, k] = _draw(allowed, rng)
        side = _draw(may, rng)
        found["neighbour"][live, k] = np.where(side < 0, -1, own + 2 * side - 1)
        if last > 1:
            found["any"][live, k] = (own + rng.integers(1, last, len(live))) % last
    return found


def _draw(mask: Bools, rng: np.random.Generator) -> Ints:
    """Return one of the True columns of each row of `mask (n, v)`, drawn evenly, `(n,)`; -1 where there is none."""
    counts = mask.sum(1)
    columns = np.append(np.nonzero(mask)[1], -1)
    drawn = np.minimum((rng.random(len(mask)) * counts).astype(np.int64), np.maximum(counts - 1, 0))
    at = np.cumsum(counts) - counts + drawn
    return np.where(counts > 0, columns[np.minimum(at, len(columns) - 1)], -1)


@dataclass(frozen=True)
class _Damage:
    """What each substitution did, all `(r, k)`."""

    tried: Bools
    decodable: Bools
    other_length: Bools
    jump: Doubles  # 0 where it did not decode

    def told(self) -> dict[str, Any]:
        tried = int(self.tried.sum())
        columns = [self.jump[self.decodable[:, k], k] for k in range(self.jump.shape[1])]
        return {
            **_summary(self.jump[self.decodable]),
            "undecodable": float((self.tried & ~self.decodable).sum() / tried) if tried else None,
            "other_length": float(self.other_length.sum() / tried) if tried else None,
            **{f"{name}_at": [_summary(column)[name] for column in columns] for name in ("mean", "q95", "largest")},
        }


def _summary(jump: Doubles) -> dict[str, float | None]:
    if not len(jump):
        return {"mean": None, "q95": None, "largest": None}
    return {"mean": float(jump.mean()), "q95": float(np.quantile(jump, 0.95)), "largest": float(jump.max())}


def _damage(subject: Subject, rows: Ints, positions: Ints, new: Ints) -> _Damage:
    """Decode the ids of `rows (r,)` with `new (r, k)` in place of those at `positions (k,)`, one at a time."""
    tokenizer, shape = subject.tokenizer, subject.coded.shape
    tried = new >= 0
    decodable, other = np.zeros(new.shape, np.bool_), np.zeros(new.shape, np.bool_)
    jump = np.zeros(new.shape)
    where = np.stack(np.nonzero(tried), 1)
    block = max(1, VALUES // (subject.horizon * subject.unit.size))
    for start in range(0, len(where), block):
        r, k = where[start : start + block].T
        ids = subject.ids[rows[r]]
        ids[np.arange(len(r)), positions[k]] = new[r, k]
        decoded, valid = tokenizer.try_decode(ids, **shape, key=subject.key)
        length = np.asarray(tokenizer.length(ids, **shape))
        decodable[r, k] = valid
        other[r, k] = (length >= 0) & (length != subject.lengths[rows[r]])
        moved = (decoded.astype(np.float64) - subject.decoded[rows[r]]) / subject.unit
        jump[r, k] = np.where(valid, size(moved), 0.0)
    return _Damage(tried, decodable, other, jump)
