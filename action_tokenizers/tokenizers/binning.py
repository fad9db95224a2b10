"""One id per step and dim: every value falls into a cell of its dim (RT-1, OpenVLA, Octo, Gato)."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import Progress, ScalarCells
from action_tokenizers.codecs.bin_rows import CellTables, build_cells, decode_bins, encode_bins
from action_tokenizers.codecs.bins import (
    Cells,
    bin_index,
    bin_value,
    gaussian_cells,
    level_cells,
    mu_law_cells,
    quantile_cells,
    uniform_cells,
)
from action_tokenizers.doors import refuse_odd
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from action_tokenizers.slots import SlotTokenizer

__all__ = ["BinningTokenizer"]

# an edge no value reaches, in whatever units
BEYOND = torch.finfo(torch.float32).max


class BinningTokenizer(SlotTokenizer, name="binning"):
    """Quantize every value alone; ids run step by step, within a step dim by dim.

    Args:
        horizon: steps per chunk; None: from the data.
        range: see `ActionTokenizer`.
        bins: cells per dim, one number or one per dim.
        strategy: `uniform` (equal widths, decoded to the middle), `quantile` (equal mass, decoded to the mean of the
            data in the cell), `gaussian` (equal mass under a normal law fitted per dim), `mu_law` (narrow near 0).
        shared_ids: whether id i means cell i in every dim (RT-1, OpenVLA, Octo, torchrl), or each dim has ids of
            its own.
        mu: the constant of `mu_law` (Gato: 100).

    A dim that holds one or two values in the data of each key (a constant, a gripper) gets exactly these as its
    levels under every strategy, and so fewer bins than asked.

    Example:
        >>> import numpy as np
        >>> actions = np.linspace(-1, 1, 120, dtype=np.float32).reshape(20, 3, 2)
        >>> tokenizer = BinningTokenizer(bins=16, range="minmax").fit(actions)
        >>> ids = tokenizer.encode(actions[:2])
        >>> ids.shape, float(abs(tokenizer.decode(ids) - actions[:2]).max()) <= 1 / 16
        ((2, 6), True)
    """

    STRATEGIES: ClassVar[tuple[str, ...]] = ("uniform", "quantile", "gaussian", "mu_law")

    size_names = frozenset({"bins"})
    own_steps: ClassVar[Mapping[str, frozenset[str]]] = {
        "_encode_actions": frozenset({"_first_ids"}),
        "_decode_whole": frozenset({"_first_ids", "_slots"}),
    }
    decode_alone = """
        bins = config["fitted"]["sizes"]["bins"]
        first = 0 if config["params"]["shared_ids"] else np.cumsum([0, *bins[:-1]])
        z = tensors["centres"][np.arange(len(bins)), ids.reshape(-1, len(bins)) - first]
        low, high = tensors["range.low"][0], tensors["range.high"][0]
        actions = low + (np.clip(z, -1, 1) + 1) / 2 * (high - low)
    """

    edges: torch.Tensor  # (d, k - 1) range units, filled up with BEYOND
    centres: torch.Tensor  # (d, k)
    neutral: torch.Tensor  # (d,) the cell nearest the mean of the data

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = "quantile",
        bins: Any = 256,
        strategy: str = "uniform",
        shared_ids: bool = True,
        mu: float = 100.0,
    ) -> None:
        super().__init__(horizon=horizon, range=range, bins=bins, strategy=strategy, shared_ids=shared_ids, mu=mu)

    @property
    def vocab_size(self) -> int:
        """Cells of the dim with the most (`shared_ids`) or of all dims, and a pad where the horizon is open."""
        self._fitted_range()
        bins = self._sizes["bins"]
        cells = max(bins) if self._shares_ids() else sum(bins)
        return int(cells) + (not self._fixed_length())

    def scalar_cells(self) -> ScalarCells:
        """Return edges and centres per dim, in range units."""
        self._fitted_range()
        bins = self._sizes["bins"]
        edges = tuple(row[: k - 1].clone() for row, k in zip(self.edges, bins, strict=True))
        return ScalarCells(edges, tuple(row[:k].clone() for row, k in zip(self.centres, bins, strict=True)))

    def _needs_horizon(self) -> bool:
        return False

    def _shares_ids(self) -> bool:
        return bool(self._params["shared_ids"])

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        steps = chunks.flatten(0, 1) if is_pad is None else chunks[~is_pad]
        values = steps.numpy()
        bins = self._asked_bins()
        cells = [self._cells(values[:, j], k) for j, k in enumerate(bins)]
        self._sizes = {"bins": [len(centres) for _, centres in cells]}
        self._allocate()
        for j, (edges, centres) in enumerate(cells):
            self.edges[j, : len(edges)] = torch.from_numpy(edges)
            self.centres[j] = centres[-1]
            self.centres[j, : len(centres)] = torch.from_numpy(centres)
        mean = steps.double().mean(0)
        self.neutral.copy_((self.centres.double() - mean[:, None]).abs().argmin(1))

    def _asked_bins(self) -> list[int]:
        asked, d = self._params["bins"], self._action_dim or 0
        return [int(k) for k in asked] if isinstance(asked, Iterable) else [int(asked)] * d

    def _check_params(self) -> None:
        asked = self._params["bins"]
        bins = list(asked) if isinstance(asked, Iterable) else [asked]
        if any(isinstance(k, bool) or not isinstance(k, Integral) or k < 2 for k in bins):
            raise ActionValueError(f"expected bins an integer >= 2, or one per dim, got {asked!r}")
        if isinstance(asked, Iterable) and len(bins) != self._action_dim:
            raise ActionShapeError(f"expected bins= one number or {self._action_dim} (one per dim), got {len(bins)}")
        if self._params["strategy"] not in self.STRATEGIES:
            raise ActionValueError(f"expected strategy among {list(self.STRATEGIES)}, got {self._params['strategy']!r}")
        self._positive("mu")

    def _cells(self, values: npt.NDArray[np.float32], k: int) -> Cells:
        levels = _few_levels(values)
        if levels is not None and len(levels) > k:
            raise ActionValueError(
                f"expected bins >= {len(levels)} in a dim that holds {len(levels)} values over all keys, got {k}"
            )
        if levels is not None:
            return level_cells(levels)
        match self._params["strategy"]:
            case "quantile":
                return quantile_cells(values, k)
            case "gaussian":
                return gaussian_cells(k, float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)))
            case "mu_law":
                return mu_law_cells(k, float(self._params["mu"]))
            case _:
                return uniform_cells(k)

    def _allocate(self) -> None:
        d, k = len(self._sizes["bins"]), max(self._sizes["bins"])
        self.register_buffer("edges", torch.full((d, k - 1), BEYOND, dtype=torch.float32))
        self.register_buffer("centres", torch.zeros(d, k, dtype=torch.float32))
        self.register_buffer("neutral", torch.zeros(d, dtype=torch.int64))

    def _check_tensors(self) -> None:
        bins = torch.tensor(self._sizes["bins"], device=self.edges.device)
        used = torch.arange(self.edges.shape[1], device=self.edges.device) < bins[:, None] - 1
        ascending = bool((self.edges[:, 1:] >= self.edges[:, :-1]).all()) if self.edges.shape[1] else True
        if not (ascending and torch.equal(self.edges <= 1, used) and self.centres.abs().max() <= 1):
            raise FormatError("expected ascending edges and centres within [-1, 1], got others; the file is damaged")
        if not bool(((self.neutral >= 0) & (self.neutral < bins)).all()):
            raise FormatError("expected neutral cells that exist, got others; the file is damaged")

    def _max_tokens(self, horizon: int, action_dim: int) -> int:
        return horizon * action_dim

    def _first_ids(self) -> torch.Tensor:
        bins = torch.tensor(self._sizes["bins"], device=self.centres.device)
        return torch.zeros_like(bins) if self._shares_ids() else bins.cumsum(0) - bins

    def _slots(self, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        bins = torch.tensor(self._sizes["bins"], device=self.centres.device)
        return self._first_ids().repeat(horizon), bins.repeat(horizon)

    def _slot_meaning(self, horizon: int, action_dim: int) -> torch.Tensor:
        steps, dims = torch.arange(horizon), torch.arange(action_dim)
        return torch.cartesian_prod(steps, dims, torch.zeros(1, dtype=torch.int64))

    def _tables(self) -> CellTables:
        """Return the kernels' arrays."""
        return self._tables_of(self._build_tables)

    def _build_tables(self) -> CellTables:
        edges, centres = self.edges.cpu().numpy(), self.centres.cpu().numpy()
        return build_cells(edges, centres, np.array(self._sizes["bins"]), self._shares_ids())

    def _encode_actions(self, chunks: torch.Tensor, key: str | None) -> torch.Tensor:
        if chunks.device.type != "cpu":
            return super()._encode_actions(chunks, key)
        b, t, d = chunks.shape
        ids = np.empty((b, t * d), np.int64)  # numpy asks for huge pages, torch does not
        source, target = chunks.contiguous().numpy().reshape(b * t, d), ids.reshape(b * t, d)
        if not encode_bins(self._tables(), source, *self._fitted_range().bounds(key), target):
            refuse_odd(chunks)
        return torch.from_numpy(ids)

    def _decode_whole(self, ids: torch.Tensor, horizon: int, action_dim: int, key: str | None) -> torch.Tensor | None:
        if ids.device.type != "cpu" or ids.shape[1] != horizon * action_dim:
            return None
        actions = np.empty((len(ids), horizon, action_dim), np.float32)
        source, target = ids.contiguous().numpy().reshape(-1, action_dim), actions.reshape(-1, action_dim)
        return (
            torch.from_numpy(actions)
            if decode_bins(self._tables(), source, *self._fitted_range().bounds(key), target)
            else None
        )

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        b, t, d = chunks.shape
        cells = bin_index(chunks.reshape(b * t, d), self.edges)
        if not self._shares_ids():
            cells += self._first_ids()
        return cells.reshape(b, t * d)

    def _decode(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        n = horizon * action_dim
        cells = self.neutral.repeat(len(ids), horizon)
        m = min(n, ids.shape[1])
        said = torch.arange(m, device=ids.device) < kept[:, None]
        cells[:, :m] = torch.where(said, ids[:, :m] - self._first_ids().repeat(horizon)[:m], cells[:, :m])
        return bin_value(cells.reshape(-1, action_dim), self.centres).reshape(-1, horizon, action_dim)


def _few_levels(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
    """Return the distinct values, ascending, if there are at most three.

    Three, because a gripper that one robot moves between two values and another never moves is -1, 0 and 1.
    """
    ends = np.array([values.min(), values.max()])
    others = values[(values != ends[0]) & (values != ends[1])]
    if len(others) and (others != others[0]).any():
        return None
    return np.unique(np.concatenate([ends, others[:1]])).astype(np.float64)
