"""Where actions can lie: the range of a tokenizer, and the domains that a search for a worst case looks through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import NotFittedError
from action_tokenizers.ranges import OpenRange

__all__ = [
    "Cells",
    "Domain",
    "Frame",
    "Span",
    "atoms",
    "cells_of",
    "climb",
    "discrete_dims",
    "discrete_note",
    "domains",
    "quantized",
    "size",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SPREADS = (0.5, 1.0, 2.0)  # standard deviations around a chunk of the data
CLIMBERS = 16
FEW_LEVELS = 3  # a dim that takes at most so many values is a switch, such as a gripper
PEEK = 4096  # steps that tell most dims from a switch
LISTED = 8  # dims named in a sentence


@dataclass(frozen=True)
class Frame:
    """The range of a tokenizer beside the units of a subject, each `(d,)`.

    Attributes:
        low: the smallest action inside the range, raw.
        high: the largest.
        first: `low` in the units of the tokenizer's cells: -1, or raw where it takes actions as they are.
        last: `high` in them.
        half: units of the subject per unit of the cells.
        clips: whether what lies outside is clipped before it is coded; else the range is what to expect.
    """

    low: Floats
    high: Floats
    first: Floats
    last: Floats
    half: Floats
    clips: bool

    @classmethod
    def of(cls, subject: Subject) -> "Frame":
        """Return the frame of a subject's tokenizer and key."""
        fitted = subject.tokenizer.range
        if fitted is None:
            raise NotFittedError("expected a fitted tokenizer, got one that is not; call fit(data) first")
        row, shape = fitted.index(subject.key), subject.unit.shape
        low, high = (np.broadcast_to(b[row].double().cpu().numpy(), shape) for b in (fitted.low, fitted.high))
        if isinstance(fitted, OpenRange):
            return cls(low, high, low, high, 1 / subject.unit, False)
        return cls(low, high, -np.ones(shape), np.ones(shape), (high - low) / 2 / subject.unit, True)

    def clip(self, actions: npt.NDArray[np.floating]) -> Floats:
        """Return raw `actions (..., d)` as an infinitely fine tokenizer of the same range would decode them."""
        return np.clip(actions.astype(np.float64), self.low, self.high)

    def clip_error(self, subject: Subject) -> Floats:
        """Return clip(u) - u of the subject's chunks in units, `(n, t, d)`; 0 at padded steps."""
        error: Floats = (self.clip(subject.coded.actions) - subject.coded.actions) / subject.unit
        return error * subject.real[..., None]

    def to_cells(self, actions: npt.NDArray[np.floating]) -> Floats:
        """Return raw `actions (..., d)` in the units of the cells, clipped; 0 in constant dims."""
        span = self.high - self.low
        share = (self.clip(actions) - self.low) / np.where(span > 0, span, 1)
        placed: Floats = np.where(span > 0, self.first + share * (self.last - self.first), (self.first + self.last) / 2)
        return placed


class Cells(NamedTuple):
    """The cells of one dim that values inside the range can fall into, in the units of the cells, each `(k,)`.

    Attributes:
        lower: where a cell begins, within the range.
        upper: where it ends.
        centres: what it decodes to.
    """

    lower: Floats
    upper: Floats
    centres: Floats


def cells_of(subject: Subject, frame: Frame) -> list[Cells] | None:
    """Return the cells of each dim where every value is quantized alone, else None."""
    cells = subject.tokenizer.scalar_cells()
    if cells is None:
        return None
    found = []
    for edges, centres, first, last in zip(cells.edges, cells.centres, frame.first, frame.last, strict=True):
        borders = np.concatenate([[-np.inf], edges.double().cpu().numpy(), [np.inf]])
        lower, upper = borders[:-1], borders[1:]
        inside = (lower < upper) & (lower <= last) & (upper > first)  # a value on an edge belongs to the cell above it
        lower, upper = (np.clip(end[inside], first, last) for end in (lower, upper))
        found.append(Cells(lower, upper, centres.double().cpu().numpy()[inside]))
    return found


def discrete_dims(subject: Subject) -> Bools:
    """Return which dims are switches, such as a gripper that is only ever open or shut, `(d,)`.

    They take at most three values in the data, and have at most three cells where cells are known. No action lies
    between the values, so that the worst case there is nobody's.
    """
    steps = subject.actions[subject.real]
    cells = subject.tokenizer.scalar_cells()
    found = [all(len(np.unique(part)) <= FEW_LEVELS for part in (v[:PEEK], v)) for v in steps.T]
    if cells is not None:
        found = [few and len(centres) <= FEW_LEVELS for few, centres in zip(found, cells.centres, strict=True)]
    return np.array(found, np.bool_)


def discrete_note(dims: Sequence[int]) -> str:
    """Say which dims count at their recorded values only; nothing where none does."""
    if not dims:
        return ""
    one = len(dims) == 1
    listed = ", ".join(map(str, dims[:LISTED])) + (", ..." if len(dims) > LISTED else "")
    return (
        f"Dim{'' if one else 's'} {listed} (counted from 0) only ever take{'s' if one else ''} two or three values in "
        f"the data, and {'is' if one else 'are'} judged at those, not between them."
    )


class Span:
    """What each dim of data `(..., d)` can be: anything between its ends, or one of its values.

    Args:
        low: `(d,)` the smallest values.
        high: the largest.
        levels: per dim the only values there are, ascending; None: all between the ends.
    """

    def __init__(self, low: Floats, high: Floats, levels: Sequence[Floats | None]) -> None:
        self._low, self._high, self._levels = low, high, levels
        self._width = np.where(high > low, high - low, 1)

    @classmethod
    def of(cls, data: Floats, discrete: Bools) -> "Span":
        """Return the span of `data (..., d)`, of whose dims the `discrete (d,)` ones have levels."""
        steps = data.reshape(-1, data.shape[-1])
        levels = [np.unique(steps[:, j]) if switch else None for j, switch in enumerate(discrete)]
        return cls(steps.min(0), steps.max(0), levels)

    def at(self, place: Floats) -> Floats:
        """Return the values at `place (..., d)` in 0..1, where every level has an equal share of the way."""
        values: Floats = self._low + place * (self._high - self._low)
        for j, levels in enumerate(self._levels):
            if levels is not None:
                values[..., j] = levels[np.minimum((place[..., j] * len(levels)).astype(np.int64), len(levels) - 1)]
        return values

    def place_of(self, values: Floats) -> Floats:
        """Return where `values (..., d)` lie, such that `at` leads back to them."""
        place: Floats = (values - self._low) / self._width
        for j, levels in enumerate(self._levels):
            if levels is not None:
                place[..., j] = (np.searchsorted(levels, values[..., j]) + 0.5) / len(levels)
        return place


@dataclass(frozen=True)
class Domain:
    """A set of actions, in raw units, that a search can walk through.

    Attributes:
        name: unique among the domains of a subject.
        size: coordinates of a point, each in 0..1.
        points: two rows of the data per point `(m, 2)` and its coordinates `(m, size)` to actions `(m, p, d)`.
        home: rows of the data `(m,)` to the coordinates `(m, size)` at which they lie themselves.
    """

    name: str
    size: int
    points: Callable[[Ints, Floats], Floats]
    home: Callable[[Ints], Floats]


def atoms(subject: Subject) -> Floats:
    """Return what is coded as one, `(m, p, d)` raw: the recorded steps (p = 1) where coded alone, else the chunks."""
    coded = subject.coded.actions.astype(np.float64)
    return coded[subject.real][:, None] if subject.steps_alone else coded


def quantized(subject: Subject, actions: Floats) -> Floats:
    """Return decode(encode(.)) of raw atoms `(m, p, d)`, in units."""
    if not subject.steps_alone:
        return subject.quantize(actions)
    # single steps go through the codec by chunks, as its horizon may be fixed
    m, t = len(actions), subject.horizon
    chunks = actions[np.minimum(np.arange(-(-m // t) * t), m - 1), 0].reshape(-1, t, actions.shape[-1])
    return subject.quantize(chunks).reshape(-1, 1, actions.shape[-1])[:m]


def size(values: Floats) -> Floats:
    """Return the size of `values (..., p, d)`: Euclidean over the dims of a step, the largest over steps, `(...)`."""
    largest: Floats = np.linalg.norm(values, axis=-1).max(-1)
    return largest


def domains(data: Floats, discrete: Bools) -> list[Domain]:
    """Return the domains around the atoms `(m, p, d)` of a subject; each holds the data.

    `hull`: between two of them. `noise_0.5`, `noise_1`, `noise_2`: around one of them, every value within so many
    standard deviations of its dim. `box`: every value between the smallest and the largest of its dim. In `discrete`
    dims `(d,)` only recorded values: those of the first of the two, those of the one, and any.
    """
    _, p, d = data.shape
    span = Span.of(data, discrete)
    spread = np.where(discrete, 0.0, data.reshape(-1, d).std(0))

    def hull(base: Ints, place: Floats) -> Floats:
        one, other = data[base[:, 0]], data[base[:, 1]]
        between: Floats = np.where(discrete, one, one * (1 - place[:, :, None]) + other * place[:, :, None])
        return between

    def around(scale: float) -> Callable[[Ints, Floats], Floats]:
        def points(base: Ints, place: Floats) -> Floats:
            moved: Floats = data[base[:, 0]] + (2 * place - 1).reshape(-1, p, d) * (scale * spread)
            return moved

        return points

    def box(base: Ints, place: Floats) -> Floats:
        return span.at(place.reshape(-1, p, d))

    def middle(rows: Ints) -> Floats:
        return np.full((len(rows), p * d), 0.5)

    return [
        Domain("hull", 1, hull, lambda rows: np.zeros((len(rows), 1))),
        *(Domain(f"noise_{scale:g}", p * d, around(scale), middle) for scale in SPREADS),
        Domain("box", p * d, box, lambda rows: span.place_of(data[rows]).reshape(len(rows), p * d)),
    ]


def climb(value: Callable[[Floats], Floats], domain: Domain, worst: Ints, rows: int, budget: int, seed: int) -> float:
    """Return the largest `value` found in a domain: at random points, and on a climb from the best of them.

    Args:
        value: of actions `(m, p, d)`, `(m,)`.
        domain: where to look.
        worst: rows of the data from which to look too, the most promising first.
        rows: number of atoms of the data.
        budget: points to look at; half of them at random.
        seed: of the search.
    """
    rng = np.random.default_rng(seed)
    first = max(2 * CLIMBERS, budget // 2)
    base, place = rng.integers(rows, size=(first, 2)), rng.random((first, domain.size))
    worst = worst[:CLIMBERS]
    base[: len(worst), 0], place[: len(worst)] = worst, domain.home(worst)
    found = value(domain.points(base, place))
    best = np.argsort(found)[-CLIMBERS:]
    base, place, found = base[best], place[best], found[best]
    for _ in range((budget - first) // CLIMBERS):
        # one coordinate, or many: their share is log-uniform, and so is how far they move
        chosen = rng.random(place.shape) < domain.size ** -rng.random((CLIMBERS, 1))
        chosen[np.arange(CLIMBERS), rng.integers(domain.size, size=CLIMBERS)] = True
        step = rng.uniform(-1, 1, place.shape) * 100 ** -rng.random((CLIMBERS, 1))
        moved = np.where(chosen, np.clip(place + step, 0, 1), place)
        reached = value(domain.points(base, moved))
        better = reached > found
        place[better], found[better] = moved[better], reached[better]
    return float(found.max())
