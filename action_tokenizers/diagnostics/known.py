"""The trap: a tokenizer with tiny error on the demonstrations that sends the robot into a loop (known answers).

Cao & Xie 2026 (arXiv:2603.20538), Theorem 6: dynamics x' = a x + b u that forget, an expert u = arctan x that brings
every state to 0, a loss of |u - arctan x| per step. A quantizer errs by less than epsilon everywhere but in three small
sets of states, two of which the expert passes only on its way:

    I_P, around 0, where the expert rests: an action that is wrong by O(epsilon) and leads into I_T1
    I_T1                                 : an action that is wrong by O(1)       and leads into I_T2
    I_T2                                 : an action that is wrong by O(1)       and leads back into I_T1

Over a long horizon its mean error on the expert's states is O(epsilon), yet the robot that executes it loses a constant
per step for ever. With process noise the loop leads back to I_P instead, and the loss is a constant over |ln epsilon|.
`Trap` is the system, `Trap.tokenizer()` the quantizer, `binning_control` the bins that err as little and deploy well.
"""

import math
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.data.episodes import Episodes
from action_tokenizers.errors import ActionShapeError, ActionValueError
from action_tokenizers.ranges import Range
from action_tokenizers.tokenizers.binning import BinningTokenizer

__all__ = ["Interval", "Rollout", "Trap", "TrapTokenizer", "binning_control"]

Floats = npt.NDArray[np.float64]

# The loop converges to the upper ends of I_T1 and I_T2, so whatever rounds up leaves it. Actions go through a tokenizer
# as float32: eight of its steps at I_T2, where x is about 0.3. With 1e-13, enough for float64, the robot slips out now
# and then and loses 0.55 instead of 0.71 per step (epsilon = 2**-7).
TOLERANCE = 2.0**-22
LEAST_EPSILON = 2.0**-16  # below it the tolerance is no longer small beside the intervals
with torch.device("cpu"):  # also where a policy is being built under another default device
    HALF_TURN = Range([-math.pi / 2], [math.pi / 2])  # the expert's actions


class Interval(NamedTuple):
    """The states from `low` to `high`, and the action `value` that the trap gives to all of them."""

    low: float
    high: float
    value: float


class Rollout(NamedTuple):
    """What the robot did, per step and averaged over all chains.

    Attributes:
        regret: `(h,)` how far the executed action was from the expert's in the same state: the reward lost.
        occupancy: `(h, 3)` share of the chains in I_P, I_T1 and I_T2 before the step.
    """

    regret: Floats
    occupancy: Floats


@dataclass(frozen=True)
class Trap:
    """The dynamics, the expert and the intervals of Theorem 6; states and actions are numbers.

    Args:
        epsilon: what the mean error of the tokenizer is proportional to.
        noisy: with Gaussian process noise of standard deviation epsilon / |ln epsilon|, and other intervals.
        a: of x' = a x + b u; a + b < 1.
        b: likewise.
        k: how wide I_P is. The paper's printed example (.2, .3, 1, .6) breaks its own k/2 > b/(1 - a - b).
        d: where I_T1 begins, d epsilon; the noisy trap has it at 2 k epsilon instead.

    Raises:
        ActionValueError: constants for which the theorem does not hold; says which condition fails.

    Example:
        >>> trap = Trap(2**-5)
        >>> error = trap.in_distribution(trap.tokenizer()).mean()
        >>> regret = trap.rollout(trap.tokenizer()).regret.mean()
        >>> round(float(error), 2), round(float(regret), 2)
        (0.18, 0.6)
    """

    epsilon: float = 2.0**-7
    noisy: bool = False
    a: float = 0.2
    b: float = 0.3
    k: float = 2.0
    d: float = 1.2

    def __post_init__(self) -> None:
        """Refuse constants for which the chain need not stay in the loop."""
        for name in ("epsilon", "a", "b", "k", "d"):
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not 0 < float(value) < math.inf:
                raise ActionValueError(f"expected {name} a finite number > 0, got {value!r}")
        if not isinstance(self.noisy, bool):
            raise ActionValueError(f"expected noisy True or False, got {self.noisy!r}")
        if not LEAST_EPSILON <= self.epsilon < 1:
            raise ActionValueError(f"expected epsilon >= 2**-16 (what float32 can hold) and < 1, got {self.epsilon}")
        failing = [condition for condition, holds in self._conditions().items() if not holds]
        if failing:
            raise ActionValueError(
                f"expected {failing[0]}, as Theorem 6 needs it, got {self}; the defaults suit every epsilon <= 0.06"
            )

    def _conditions(self) -> dict[str, bool]:
        rest = 1 - self.a - self.b
        if rest <= 0:
            return {"a + b < 1": False}
        if self.noisy:
            # how far quantization (errors of epsilon / 2) and noise carry the expert from 0, in epsilon
            carried = self.b / 2 / rest + math.sqrt(2 / math.pi) / (abs(math.log(self.epsilon)) * rest)
            own = {"k above what noise and errors carry": self.k > carried}
        else:
            own = {
                "d > k/2": self.d > self.k / 2,
                "k/2 > b / (1 - a - b)": self.k / 2 > self.b / rest,
                "a k < 1": self.a * self.k < 1,
            }
        p, t1, t2 = self.intervals
        apart = p.high < t1.low and t1.high + 2 * TOLERANCE < t2.low
        reached = max(abs(value) for *_, value in self.intervals) < math.pi / 2
        return {**own, "epsilon so small that the intervals are apart": apart, "actions within pi/2": reached}

    @property
    def intervals(self) -> tuple[Interval, Interval, Interval]:
        """I_P, I_T1 and I_T2 with their actions: one step from anywhere in one of them ends in the next."""
        a, b, k, d, e = (float(value) for value in (self.a, self.b, self.k, self.d, self.epsilon))
        if self.noisy:
            return (
                Interval(-k * e, k * e, (2 + a) * k * e / b),
                Interval(2 * k * e, (2 + 2 * a) * k * e, 1.0),
                Interval(b + 2 * a * k * e, b + a * (2 + 2 * a) * k * e, -(1 + 2 * a * a) * k * e / b - a),
            )
        return (
            Interval(-k * e / 2, k * e / 2, (d + 0.5) * e / b),
            Interval(d * e, (d + 1) * e, 1.0),
            Interval(a * d * e + b, a * (d + 1) * e + b, (d + 1) * (1 - a * a) * e / b - a),
        )

    @property
    def sigma(self) -> float:
        """Standard deviation of the process noise."""
        return self.epsilon / abs(math.log(self.epsilon)) if self.noisy else 0.0

    @property
    def horizon(self) -> int:
        """Steps after which the loop has shown itself; the theorem asks for more than |ln epsilon| (noise: over it)."""
        log = abs(math.log(self.epsilon))
        return min(6000, int(2 * log / self.epsilon + 200)) if self.noisy else math.ceil(64 * log**2)

    def expert(self, x: Floats) -> Floats:
        """Return the expert's actions in states `x (...)`."""
        return np.arctan(x)

    def step(self, x: Floats, u: Floats, noise: Floats | float = 0.0) -> Floats:
        """Return the states after actions `u (n,)` in states `x (n,)`."""
        return self.a * x + self.b * u + noise

    def start(self, n: int) -> Floats:
        """Return `n` first states: the midpoints of equal masses of N(0, 1), so that averages need no seed."""
        from scipy.special import ndtri

        return np.asarray(ndtri((np.arange(n) + 0.5) / n), np.float64)

    def cells(self) -> tuple[Floats, Floats]:
        """Return edges `(v - 1,)` and actions `(v,)` of the quantizer: what lies between two edges gets one action.

        Outside the three intervals the cells are epsilon wide. They give their lower end, so that the error is in
        (-epsilon, 0], on average -epsilon / 2; in the noisy trap their middle, so that it is at most epsilon / 2.
        """
        e, half = float(self.epsilon), math.pi / 2
        borders = np.arctan([(i.low - TOLERANCE, i.high + TOLERANCE) for i in self.intervals])
        count = int(half / e)
        grid = np.arange(-count, count + 1) * e
        outside = ~((grid >= borders[:, :1]) & (grid <= borders[:, 1:])).any(0)
        edges = np.sort(np.concatenate([grid[outside], borders.ravel()]))
        middles = (np.append(-half, edges) + np.append(edges, half)) / 2
        actions = ((np.floor(middles / e) + (0.5 if self.noisy else 0)) * e).clip(-half, half)
        for (low, high), interval in zip(borders, self.intervals, strict=True):
            actions[(middles > low) & (middles < high)] = interval.value
        return edges, actions

    def tokenizer(self, horizon: int | None = None) -> "TrapTokenizer":
        """Return the trap as a fitted tokenizer; a horizon of None leaves it open."""
        # the fit sees no more of the data than their shape
        return TrapTokenizer(horizon=horizon, **asdict(self)).fit([np.zeros((horizon or 1, 1))])

    def demonstrations(self, n_episodes: int, *, seed: int | None = 0, horizon: int | None = None) -> Episodes:
        """Return episodes of the expert with their states, both `(h, 1)`.

        Args:
            n_episodes: how many.
            seed: of the first states, drawn from N(0, 1), and of the noise; None: from `start(n_episodes)`.
            horizon: steps of each; None: `self.horizon`.
        """
        random = np.random.default_rng(seed or 0)
        first = self.start(n_episodes) if seed is None else random.standard_normal(n_episodes)
        states = self._visited(first, horizon, random).T[..., None]
        actions = self.expert(states)
        return Episodes(
            [*actions.astype(np.float32)],
            states=[*states.astype(np.float32)],
            source=f"trap of epsilon {self.epsilon:g}",
        )

    def in_distribution(
        self, tokenizer: ActionTokenizer, n: int = 1024, horizon: int | None = None, *, seed: int = 0
    ) -> Floats:
        """Return the mean of |quantize(u) - u| over the expert's actions, per step `(h,)`: equation 4 of the paper.

        Of the trap it ends at (d + 1/2) / b epsilon, 5.67 epsilon by default. That a chain passes I_T1 and I_T2 on its
        way adds a constant over the horizon to the mean over all steps.

        Args:
            tokenizer: fitted, and codes single steps.
            n: number of chains, from `start(n)`.
            horizon: number of steps; None: `self.horizon`.
            seed: of the noise.
        """
        u = self.expert(self._visited(self.start(n), horizon, np.random.default_rng(seed)))
        error: Floats = np.abs(_quantized(tokenizer, u) - u).mean(1)
        return error

    def rollout(
        self,
        tokenizer: ActionTokenizer,
        n: int = 1024,
        horizon: int | None = None,
        *,
        open_loop: bool = False,
        seed: int = 0,
    ) -> Rollout:
        """Run `n` chains from `start(n)` that execute the expert's actions as a tokenizer quantizes them.

        Args:
            tokenizer: fitted, and codes single steps.
            n: number of chains.
            horizon: number of steps; None: `self.horizon`.
            open_loop: run Algorithm 1 of the paper with an exact model: the robot executes, without being looked at,
                the actions that its model foresees, with noise of its own, from where the robot starts.
            seed: of the noise.
        """
        random = np.random.default_rng(seed)
        x, steps = self.start(n), self._steps(horizon)
        regret, occupancy = np.empty(steps), np.empty((steps, 3))
        if open_loop:
            # the model learned which actions the expert takes where a token is used: it moves as the expert does
            foreseen = self._visited(x, horizon, np.random.default_rng([seed, 1]))
            planned = _quantized(tokenizer, self.expert(foreseen))
        for h in range(steps):
            wanted = self.expert(x)
            u = planned[h] if open_loop else _quantized(tokenizer, wanted)
            regret[h] = np.abs(u - wanted).mean()
            occupancy[h] = [((x >= i.low - TOLERANCE) & (x <= i.high + TOLERANCE)).mean() for i in self.intervals]
            x = self.step(x, u, self._noise(random, n))
        return Rollout(regret, occupancy)

    def _steps(self, horizon: int | None) -> int:
        return self.horizon if horizon is None else horizon

    def _visited(self, x: Floats, horizon: int | None, random: np.random.Generator) -> Floats:
        """Return the states `(h, n)` that the expert visits from `x (n,)`."""
        states = np.empty((self._steps(horizon), len(x)))
        for state in states:
            state[:] = x
            x = self.step(x, self.expert(x), self._noise(random, len(x)))
        return states

    def _noise(self, random: np.random.Generator, n: int) -> Floats | float:
        return random.standard_normal(n) * self.sigma if self.noisy else 0.0


class TrapTokenizer(BinningTokenizer, name="trap"):
    """The quantizer of `Trap` as a tokenizer: one id per step, a cell of actions each, one dim.

    Whatever it is fitted on, its cells are those of the constants; `Trap(...).tokenizer()` returns a fitted one.

    Args:
        horizon: steps per chunk; None: from the data.
        range: a `Range` of one key and dim; what lies beyond is clipped.
        epsilon: see `Trap`, as for all others.
        noisy: the trap for dynamics with noise.
        a: of the dynamics.
        b: of the dynamics.
        k: of I_P.
        d: of I_T1.

    Example:
        >>> tokenizer = TrapTokenizer(epsilon=2**-7, horizon=1).fit(np.zeros((1, 1, 1)))
        >>> [round(tokenizer.quantize([[u]]).item(), 3) for u in (0.0, 0.010, 0.505)]
        [0.044, 1.0, 0.5]
    """

    decode_alone = """
        low, high = tensors["range.low"][0], tensors["range.high"][0]
        actions = low + (tensors["centres"][0, ids][:, None] + 1) / 2 * (high - low)
    """

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = HALF_TURN,
        epsilon: float = 2.0**-7,
        noisy: bool = False,
        a: float = 0.2,
        b: float = 0.3,
        k: float = 2.0,
        d: float = 1.2,
    ) -> None:
        # of BinningTokenizer it takes the cells, not the ways to find them
        ActionTokenizer.__init__(self, horizon=horizon, range=range, epsilon=epsilon, noisy=noisy, a=a, b=b, k=k, d=d)

    @property
    def trap(self) -> Trap:
        """The system that this quantizer is the trap of."""
        return Trap(**{field.name: self._params[field.name] for field in fields(Trap)})

    def _shares_ids(self) -> bool:
        return True

    def _check_params(self) -> None:
        given = self._params["range"]
        if self._action_dim != 1:
            raise ActionShapeError(f"expected action_dim 1, as the trap has it, got {self._action_dim}")
        if not isinstance(given, Range) or given.low.shape != (1, 1) or not bool(given.low < given.high):
            raise ActionValueError(
                f"expected range a Range of one key and dim with low < high, as the cells are in actions, got {given!r}"
            )
        self.trap  # noqa: B018  (its constructor looks at the constants)

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        """Lay the cells of the constants, in units of the range; the data are not looked at."""
        given = self._params["range"]
        low, high = given.low.item(), given.high.item()
        # in float64, not through the float32 of Range.to_unit: an edge is rounded once
        edges, centres = (((v - low) / (high - low) * 2 - 1).clip(-1, 1) for v in self.trap.cells())
        self._sizes = {"bins": [len(centres)]}
        self._allocate()
        self.edges[0] = torch.from_numpy(edges)
        self.centres[0] = torch.from_numpy(centres)
        self.neutral[0] = self.centres[0].abs().argmin()


def binning_control(width: float, horizon: int | None = None) -> BinningTokenizer:
    """Return uniform bins of this width over all of the expert's actions, 0 on an edge: the control of the trap.

    Equally wide everywhere, they err by at most half their width in every state, on the expert's way or off it.

    Raises:
        ActionValueError: not a width.
    """
    if not 0 < width < math.inf:
        raise ActionValueError(f"expected width > 0, in actions, got {width}")
    half = math.ceil(math.pi / 2 / width)
    tokenizer = BinningTokenizer(horizon=horizon, range=Range([-half * width], [half * width]), bins=2 * half)
    # a ramp, because data of a few values would get these values as cells
    return tokenizer.fit([np.linspace(-1, 1, max(8, horizon or 0))[:, None]])


def _quantized(tokenizer: ActionTokenizer, u: Floats) -> Floats:
    """Return actions of any shape as a tokenizer quantizes each of them alone."""
    return np.asarray(tokenizer.quantize(u.reshape(-1, 1, 1)), np.float64).reshape(u.shape)
