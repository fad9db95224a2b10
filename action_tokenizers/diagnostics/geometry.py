"""The cells of a tokenizer: how wide they are, how far apart neighbours decode, how near to a border the data lie."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.diagnostics.domains import (
    Cells,
    Domain,
    Frame,
    Span,
    atoms,
    cells_of,
    climb,
    discrete_dims,
    discrete_note,
    size,
)
from action_tokenizers.diagnostics.error import counts, mean_over_episodes
from action_tokenizers.diagnostics.measure import Estimator, Kind, Measure, share_interval
from action_tokenizers.diagnostics.subject import Subject

__all__ = ["ESTIMATORS", "ListsCodewords", "cell_border_jump", "cell_width", "covering_radius", "margin"]

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

NEAR = 0.04  # half ranges: 2 % of the action range
MOST_POINTS = 8192  # steps or chunks whose distances to all codewords are computed
BLOCK = 1 << 21  # distances at once
SWEEPS = 3

UNLISTED = "Its cells have no borders that can be listed."
SOURCE = "Cao & Xie 2026, Eq 3 and Def 4"
ESTIMATORS = (
    Estimator(
        name="cell_width",
        heading="cell width",
        unit="half range",
        kinds=(Kind.EXACT, Kind.LOWER),
        meaning="How far apart two actions can be that get the same ids.",
        caution="A gripper that is only ever open or shut has cells as wide as half its way, and no data in them.",
        advice="Finer cells make it smaller, at the price of more ids.",
        source=SOURCE,
        function="geometry.cell_width",
        test="test_geometry.py::test_uniform_bins_are_as_wide_as_they_are_far_apart",
    ),
    Estimator(
        name="cell_border_jump",
        heading="jump across a border",
        unit="half range",
        kinds=(Kind.EXACT, Kind.LOWER),
        meaning="How far apart the decoded actions of two neighbouring cells are, at the worst border.",
        caution="It is about neighbouring cells; the excess jump also sees tokenizers whose cells cannot be listed.",
        advice="Where it is many times the typical jump (`median`), one border tears actions apart: look at its codes.",
        source=SOURCE,
        function="geometry.cell_border_jump",
        test="test_geometry.py::test_the_trap_tears_actions_apart_at_one_border",
    ),
    Estimator(
        name="margin",
        heading="distance to the next border",
        unit="half range",
        kinds=(Kind.CONSISTENT,),
        meaning="How far the median step, or chunk, of an episode is from actions that would get other ids.",
        caution="Fine cells have near borders, and small jumps across them: a small margin is no fault.",
        advice="Read it beside the jump across a border; `near` says how often 2 % of the range change the ids.",
        source=SOURCE,
        function="geometry.margin",
        test="test_geometry.py::test_margins_are_distances_to_the_nearest_border",
    ),
    Estimator(
        name="covering_radius",
        heading="covering radius",
        unit="half range",
        kinds=(Kind.LOWER, Kind.EXACT),
        meaning="How far the farthest action inside the range is from its codeword.",
        caution="It is about the whole range; the robot may never go where it is large.",
        advice="Many times the mean distance (`ratio`) means that rare motions have no codeword of their own.",
        source=SOURCE,
        function="geometry.covering_radius",
        test="test_geometry.py::test_covering_radius_of_two_words_in_a_square",
    ),
)
_ROW = {row.name: row for row in ESTIMATORS}


@runtime_checkable
class ListsCodewords(Protocol):
    """A tokenizer that replaces each step, or each chunk, by the nearest of codewords that it can list."""

    def codewords(self) -> list[tuple[list[int], torch.Tensor]]:
        """Return dims and codewords per group of dims, `(k, p, len(dims))` in range units, p = 1 or the horizon."""


def cell_width(subject: Subject) -> Measure:
    """Return the diameter of the widest cell: of scalar cells exactly, else the widest that the data fill.

    Returns:
        `parts` holds, of scalar cells, the `widest` and the `median` width per dim; else the number of `cells` that
        hold two or more of the data, the `median` of their diameters, and the share of the data that is `alone`.
    """
    row, n, frame = _ROW["cell_width"], counts(subject), Frame.of(subject)
    cells = cells_of(subject, frame)
    if cells is not None:
        widths = [(c.upper - c.lower) * half for c, half in zip(cells, frame.half, strict=True)]
        parts: dict[str, Any] = {
            name: [float(f(w)) for w in widths] for name, f in (("widest", np.max), ("median", np.median))
        }
        return row.measure(float(np.linalg.norm(parts["widest"])), n=n, parts=parts)
    data, ids = _coded_alike(subject)
    _, cell, number = np.unique(ids, axis=0, return_inverse=True, return_counts=True)
    shared = number[cell] > 1
    parts = {"cells": int((number > 1).sum()), "alone": float((~shared).mean())}
    if not shared.any():
        return row.measure(None, kind=Kind.LOWER, n=n, note="No two of the data get the same ids.", parts=parts)
    found = _diameters(data[shared], np.unique(cell[shared], return_inverse=True)[1])
    parts["median"] = float(np.median(found))
    return row.measure(float(found.max()), kind=Kind.LOWER, n=n, note="As far as the data fill cells.", parts=parts)


def cell_border_jump(subject: Subject) -> Measure:
    """Return the largest distance between what neighbouring cells decode to.

    Of scalar cells exactly. Of listed codewords over those that are nearest and second nearest to one of the data:
    such two have a common border. `parts` holds the `median`, and the largest `per_dim` or the number of `pairs`.
    """
    row, n, frame = _ROW["cell_border_jump"], counts(subject), Frame.of(subject)
    cells = cells_of(subject, frame)
    if cells is None:
        kind, note = Kind.LOWER, "Among the cells that the data reach."
        jumps = [_neighbour_jumps(group, _thinned(group.points)) for group in _groups(subject, frame)]
    else:
        kind, note = Kind.EXACT, ""
        jumps = [np.abs(np.diff(c.centres)) * half for c, half in zip(cells, frame.half, strict=True)]
    joined = np.concatenate([*jumps, np.empty(0)])
    if not len(joined):
        return row.measure(None, kind=kind, n=n, note=UNLISTED)
    per_dim = [float(j.max(initial=0)) for j in jumps]
    parts = {"median": float(np.median(joined)), **({"pairs": len(joined)} if cells is None else {"per_dim": per_dim})}
    return row.measure(float(joined.max()), kind=kind, n=n, note=note, parts=parts)


def margin(subject: Subject, near: float = NEAR) -> Measure:
    """Return how far the median step, or chunk, of an episode is from the nearest border, mean over episodes.

    The distance of each is exact: to the nearest edge in any dim, or to the nearest of the planes between its codeword
    and the others (Euclidean over the chunk where chunks are coded whole).

    Returns:
        `parts` holds the share within `near` of a border: `share`, mean over episodes, its `interval`, and `near`.
    """
    row, n, frame = _ROW["margin"], counts(subject), Frame.of(subject)
    cells = cells_of(subject, frame)
    data = atoms(subject)
    chosen = _thinned(np.arange(len(data)))
    if cells is None:
        margins = [_plane_margins(group, group.points[chosen]) for group in _groups(subject, frame)]
    else:
        placed = frame.to_cells(data[chosen, 0])
        moves = [j for j in range(len(cells)) if frame.half[j] > 0]
        margins = [_edge_margins(cells[j], placed[:, j]) * frame.half[j] for j in moves]
    margins = [m for m in margins if np.isfinite(m).all()]  # a single cell has no border
    if not margins:
        return row.measure(None, n=n, note=UNLISTED)
    least = np.min(margins, axis=0)
    of = np.repeat(subject.episode, subject.real.sum(1)) if subject.steps_alone else subject.episode
    held = [least[of[chosen] == i] for i in np.unique(of[chosen])]
    share = np.array([(values <= near).mean() for values in held])
    interval, _ = share_interval(share)
    parts = {"share": float(share.mean()), "interval": None if interval is None else list(interval), "near": near}
    medians = np.array([np.median(values) for values in held])
    return mean_over_episodes(row, medians, {**n, "episodes": len(held), "points": len(chosen)}, parts=parts)


def covering_radius(subject: Subject, *, budget: int = 4096, seed: int = 0) -> Measure:
    """Return the largest distance found of an action inside the range from its codeword.

    Euclidean over what is coded as one, a step or a whole chunk. Exact where each group holds a single number. Dims
    that are switches (see `domains.discrete_dims`) count at their recorded values, not between them.

    Args:
        subject: what to measure.
        budget: points to look at per group.
        seed: of the search.

    Returns:
        `parts` holds the `ratio` to the mean distance of the data.
    """
    row, n, frame = _ROW["covering_radius"], counts(subject), Frame.of(subject)
    groups = _groups(subject, frame)
    if not groups:
        return row.measure(None, n=n, note="It has no codewords that can be listed; see the worst-case error.")
    value = float(np.linalg.norm([_radius(group, budget, seed) for group in groups]))
    dims = np.flatnonzero(discrete_dims(subject) & (frame.half > 0)).tolist()
    error = subject.error - frame.clip_error(subject)
    mean = np.linalg.norm(error[subject.real] if subject.steps_alone else error.reshape(len(error), -1), axis=1).mean()
    kind = Kind.EXACT if all(group.words.shape[1] == 1 for group in groups) else Kind.LOWER
    parts = {"ratio": value / float(mean) if mean > 0 else None}
    return row.measure(value, kind=kind, n=n, note=discrete_note(dims), parts=parts)


class _Group(NamedTuple):
    """A codebook of some dims.

    Attributes:
        points: `(m, l)` the data, clipped, in range units.
        words: `(k, l)` codewords in range units.
        half: `(l,)` units of the subject per range unit.
        steps: p; l is p times the number of dims.
        levels: of each coordinate the only values that the data take in its dim, in range units; None: any.
    """

    points: _Floats
    words: _Floats
    half: _Floats
    steps: int
    levels: list[_Floats | None]


def _groups(subject: Subject, frame: Frame) -> list[_Group]:
    """Return the codebooks of a tokenizer that lists them, else none."""
    if not isinstance(subject.tokenizer, ListsCodewords):
        return []
    placed, discrete = frame.to_cells(atoms(subject)), discrete_dims(subject)
    found = []
    for dims, words in subject.tokenizer.codewords():
        k, steps, _ = words.shape
        points = placed[:, :, dims].reshape(len(placed), -1)
        flat = words.double().cpu().numpy().reshape(k, -1)
        levels = [np.unique(placed[:, :, j]) if discrete[j] else None for j in dims] * steps
        found.append(_Group(points, flat, np.tile(frame.half[dims], steps), steps, levels))
    return found


def _coded_alike(subject: Subject) -> tuple[_Floats, _Ints]:
    """Return the data in units, `(m, p, d)`, and the ids of each, `(m, i)`."""
    per_step, rest = divmod(subject.ids.shape[1], subject.horizon)
    if subject.steps_alone and not rest:
        ids = subject.ids.reshape(len(subject), subject.horizon, per_step)
        return subject.actions[subject.real][:, None], ids[subject.real]
    return subject.actions, subject.ids


def _diameters(data: _Floats, cell: _Ints) -> _Floats:
    """Return a diameter of the data `(m, p, d)` in each cell, from one far point to the farthest, `(k,)`.

    Linear in the data, and at least half of the true diameter.
    """
    number = np.bincount(cell)
    order = np.argsort(cell, kind="stable")
    starts = np.cumsum(number) - number
    reference = np.add.reduceat(data[order], starts) / number[:, None, None]
    found = np.zeros(len(number))
    for sweep in range(SWEEPS):
        distance = size(data - reference[cell])
        farthest = np.lexsort((distance, cell))[starts + number - 1]
        if sweep:
            found = np.maximum(found, distance[farthest])
        reference = data[farthest]
    return found


def _blocks(points: _Floats, words: _Floats) -> Iterator[_Floats]:
    """Yield the squared distances of points `(m, l)` to words `(k, l)`, some rows at a time."""
    rows = max(1, BLOCK // len(words))
    for start in range(0, len(points), rows):
        block = points[start : start + rows]
        # about a word, so that short distances keep their digits
        near, far = block - words[0], words - words[0]
        yield (near**2).sum(1)[:, None] - 2 * near @ far.T + (far**2).sum(1)


def _neighbour_jumps(group: _Group, points: _Floats) -> _Floats:
    """Return how far apart two codewords decode, of all pairs that are nearest to a point; none of a single word."""
    if len(group.words) < 2:
        return np.empty(0)
    pairs = [np.argpartition(squares, 1, axis=1)[:, :2] for squares in _blocks(points, group.words)]
    one, two = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0).T
    apart = (group.words[one] - group.words[two]) * group.half
    return size(apart.reshape(len(apart), group.steps, -1))


def _plane_margins(group: _Group, points: _Floats) -> _Floats:
    """Return the distance of each point to the nearest plane half way between its codeword and another, in units.

    (d_j^2 - d_1^2) / 2|c_j - c_1|, where the planes lie in range units and the distance is measured in the subject's.
    """
    inverse = np.divide(1, group.half, out=np.zeros_like(group.half), where=group.half > 0)
    words = group.words * inverse
    squares = (words**2).sum(1)
    margins = []
    for distances in _blocks(points, group.words):
        own = distances.argmin(1)
        # from the words of these points only: of all pairs of words there may be very many
        taken, at = np.unique(own, return_inverse=True)
        apart = np.sqrt(np.maximum(squares[taken, None] - 2 * words[taken] @ words.T + squares, 0))
        apart[apart == 0] = np.nan  # words too near to tell apart
        planes = (distances - distances.min(1)[:, None]) / (2 * apart[at])
        planes[np.arange(len(own)), own] = np.inf
        margins.append(np.fmin.reduce(planes, axis=1))
    return np.concatenate(margins)


def _edge_margins(cells: Cells, values: _Floats) -> _Floats:
    """Return the distance of values of one dim to the nearest edge inside the range, in the units of the cells."""
    edges = np.concatenate([[-np.inf], cells.lower[1:], [np.inf]])
    above = np.searchsorted(edges, values, side="right")
    margins: _Floats = np.minimum(values - edges[above - 1], edges[above] - values)
    return margins


def _radius(group: _Group, budget: int, seed: int) -> float:
    """Return the largest distance of a point of the range from its codeword, in units; on a line, exactly."""
    (levels, *_), length = group.levels, group.words.shape[1]
    if length == 1 and levels is not None:
        return float(np.abs(levels[:, None] - group.words[:, 0]).min(1).max() * group.half[0])
    if length == 1:
        words = np.sort(group.words[:, 0])
        return float(max(words[0] + 1, 1 - words[-1], np.diff(words).max(initial=0) / 2) * group.half[0])

    def value(points: _Floats) -> _Floats:
        own = np.concatenate([squares.argmin(1) for squares in _blocks(points[:, 0], group.words)])
        away: _Floats = np.linalg.norm((points[:, 0] - group.words[own]) * group.half, axis=1)
        return away

    span = Span(-np.ones(length), np.ones(length), group.levels)
    domain = Domain(
        "range", length, lambda _, place: span.at(place)[:, None], lambda rows: span.place_of(group.points[rows])
    )
    return climb(value, domain, np.arange(0), len(group.points), budget, seed)


def _thinned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return at most `MOST_POINTS` of the rows, evenly spread."""
    most = min(len(values), MOST_POINTS)
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]
