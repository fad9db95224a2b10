"""Where actions can lie: the range of a tokenizer, and the domains that a search for a worst case looks through."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from action_tokenizers.diagnostics.subject import Subject
from action_tokenizers.errors import NotFittedError
from action_tokenizers.ranges import OpenRange

__all__ = ["Cells", "Domain", "Frame", "atoms", "cells_of", "climb", "domains", "quantized", "size"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SPREADS = (0.5, 1.0, 2.0)  # standard deviations around a chunk of the data
CLIMBERS = 16


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


def domains(data: Floats) -> list[Domain]:
    """Return the domains around the atoms `(m, p, d)` of a subject; each holds the data.

    `hull`: between two of them. `noise_0.5`, `noise_1`, `noise_2`: around one of them, every value within so many
    standard deviations of its dim. `box`: every value between the smallest and the largest of its dim.
    """
    _, p, d = data.shape
    steps = data.reshape(-1, d)
    low, high, spread = steps.min(0), steps.max(0), steps.std(0)
    span = np.where(high > low, high - low, 1)

    def hull(base: Ints, place: Floats) -> Floats:
        between: Floats = data[base[:, 0]] * (1 - place[:, :, None]) + data[base[:, 1]] * place[:, :, None]
        return between

    def around(scale: float) -> Callable[[Ints, Floats], Floats]:
        def points(base: Ints, place: Floats) -> Floats:
            moved: Floats = data[base[:, 0]] + (2 * place - 1).reshape(-1, p, d) * (scale * spread)
            return moved

        return points

    def box(base: Ints, place: Floats) -> Floats:
        return np.asarray(low + place.reshape(-1, p, d) * (high - low))

    def middle(rows: Ints) -> Floats:
        return np.full((len(rows), p * d), 0.5)

    return [
        Domain("hull", 1, hull, lambda rows: np.zeros((len(rows), 1))),
        *(Domain(f"noise_{scale:g}", p * d, around(scale), middle) for scale in SPREADS),
        Domain("box", p * d, box, lambda rows: ((data[rows] - low) / span).reshape(len(rows), p * d)),
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
