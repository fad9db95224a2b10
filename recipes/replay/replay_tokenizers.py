"""The tokenizers of the replay study: 31 that people use, and probes that pull apart what the measures see.

A probe is no proposal. Each is built so that two measures must disagree about it, and replay says which one is right.
The list was fixed by an earlier experiment, before the library's audit existed. Three more stand beside it, outside the
correlations: two further strategies of bins, and a trap that hardly a demonstration meets.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from action_tokenizers import ActionTokenizer, BinningTokenizer, FASTTokenizer, KMeansTokenizer, ResidualVQTokenizer
from action_tokenizers.codecs.bins import bin_index, bin_value
from action_tokenizers.codecs.nearest import fit_codebook, nearest

STEPS = 8  # of a chunk; FAST is meant for longer ones
FAST_STEPS = 16
PLACES = 256  # among which the planted ones are drawn
FAR_QUANTILE, FAR = 0.999, 1.5
SMOKE = ("bins6", "bins16", "bins64", "quantile16", "kmeans_step64", "rvq2x64", "fast2", "fast10", "feedback8")


class Group(StrEnum):
    """What a tokenizer is in the study for."""

    CONVENTIONAL = "conventional"
    PROBE = "probe"
    EXTRA = "extra"  # outside the correlations


class Entry(NamedTuple):
    """How to make a tokenizer, and what it is there for."""

    make: Callable[[], ActionTokenizer]
    group: Group


class Grid(BinningTokenizer, name="replay_grid"):
    """Nearest of evenly spaced values, the ends of the range among them, where bins have the middles of their cells."""

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Any) -> None:
        super()._fit(chunks, is_pad, progress)
        asked = self._asked_bins()
        for j, k in enumerate(self._sizes["bins"]):
            if k == asked[j]:  # not the few exact levels of a gripper
                self.centres[j, :k] = torch.linspace(-1, 1, k)
                self.edges[j, : k - 1] = (self.centres[j, 1:k] + self.centres[j, : k - 1]) / 2


class ErrorFeedback(Grid, name="replay_error_feedback"):
    """A grid that adds the error of a step to the next one before that is rounded.

    As large an error as without, or larger, but it cancels out within a chunk: what looks at its size and what looks at
    its sum must disagree. On bins a carried error could not be paid back at the ends of the range.
    """

    def _needs_horizon(self) -> bool:
        return True

    def scalar_cells(self) -> None:
        """Say that no value is quantized alone."""
        return None

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        most = 2 / torch.tensor(self._sizes["bins"], dtype=torch.float32)
        carried = torch.zeros_like(chunks[:, 0])
        cells = []
        for step in chunks.unbind(1):
            wanted = (step + carried).clamp(-1, 1)
            cells.append(bin_index(wanted, self.edges))
            missed = step + carried - bin_value(cells[-1], self.centres)
            carried = missed.clamp(-most, most)
        return torch.stack(cells, 1).flatten(1)


class QuantileMiddles(BinningTokenizer, name="replay_quantile_middles"):
    """Quantile bins that decode to the middles of their cells instead of to their data.

    A gripper that is open or shut then comes back half open and half shut: an error that never changes, in one dim.
    """

    def __init__(self, *, horizon: int | None = None, range: Any = "unit", bins: int = 16) -> None:
        super().__init__(horizon=horizon, range=range, bins=bins, strategy="quantile")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: self._params[name] for name in ("horizon", "range", "bins")}

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Any) -> None:
        super()._fit(chunks, is_pad, progress)
        for j, k in enumerate(self._sizes["bins"]):
            ends = torch.cat([torch.tensor([-1.0]), self.edges[j, : k - 1], torch.tensor([1.0])])
            self.centres[j, :k] = (ends[1:] + ends[:-1]) / 2
            self.centres[j, k:] = self.centres[j, k - 1]


class Planted(BinningTokenizer, name="replay_planted"):
    """Bins that send a few places of the action space to an action far away: tiny mean error, rare large jumps.

    Args:
        horizon: steps per chunk.
        range: see `ActionTokenizer`.
        bins: per dim.
        mass: at most this share of the fit's steps lies in places that are sent away; 0: what lies 1.5 times as far
            from all places as 99.9 % of the fit's steps is sent away, so that hardly a demonstration shows it.
        seed: of the draw of these places.
    """

    def __init__(
        self, *, horizon: int | None = None, range: Any = "unit", bins: int = 256, mass: float = 0.004, seed: int = 0
    ) -> None:
        super().__init__(horizon=horizon, range=range, bins=bins)
        self._params |= {"mass": mass, "seed": seed}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: self._params[name] for name in ("horizon", "range", "bins", "mass", "seed")}

    def scalar_cells(self) -> None:
        """Say that no value is quantized alone."""
        return None

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Any) -> None:
        super()._fit(chunks, is_pad, progress)
        steps = chunks.flatten(0, 1) if is_pad is None else chunks[~is_pad]
        self.places = fit_codebook(steps, PLACES, self._params["seed"])
        # where a place is sent: to the one farthest from it
        self.far = self.places[torch.cdist(self.places, self.places).argmax(1)]
        place = nearest(steps, self.places)
        self.is_planted = self._drawn(torch.bincount(place, minlength=len(self.places)) / len(steps))
        distance = torch.linalg.vector_norm(steps - self.places[place], dim=1)
        self.reach = FAR * float(np.quantile(distance.numpy(), FAR_QUANTILE))

    def _drawn(self, mass: torch.Tensor) -> torch.Tensor:
        """Say which places are planted: in a random order, those that still fit."""
        left = self._params["mass"]
        planted = torch.zeros(len(mass), dtype=torch.bool)
        for i in np.random.default_rng(self._params["seed"]).permutation(len(mass)).tolist():
            if 0 < mass[i] <= left:
                planted[i], left = True, left - float(mass[i])
        return planted

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        steps = chunks.flatten(0, 1)
        place = nearest(steps, self.places)
        if self._params["mass"] > 0:
            sent = self.is_planted[place]
        else:
            sent = torch.linalg.vector_norm(steps - self.places[place], dim=1) > self.reach
        steps = torch.where(sent[:, None], self.far[place], steps)
        return super()._encode(steps.reshape(chunks.shape))


def tokenizers(range: str, smoke: bool = False) -> dict[str, Entry]:
    """Return all of them by name, or one of each kind.

    Args:
        range: of all but FAST, which keeps that of the published one: it clips 2 % of the values.
        smoke: a few of them.
    """

    def usual(kind: type[ActionTokenizer], group: Group = Group.CONVENTIONAL, **params: Any) -> Entry:
        return Entry(lambda: kind(horizon=STEPS, range=range, **params), group)

    entries: dict[str, Entry] = {}
    for bins in (6, 8, 12, 16, 32, 64, 256):
        entries[f"bins{bins}"] = usual(BinningTokenizer, bins=bins)
    for bins in (6, 8, 16, 32):
        entries[f"grid{bins}"] = usual(Grid, bins=bins)
    for bins in (16, 64, 256):
        entries[f"quantile{bins}"] = usual(BinningTokenizer, bins=bins, strategy="quantile")
    for size in (16, 64, 256, 1024):
        entries[f"kmeans_step{size}"] = usual(KMeansTokenizer, codebook_size=size)
    for size in (256, 1024):
        entries[f"kmeans_chunk{size}"] = usual(KMeansTokenizer, codebook_size=size, scope="chunk")
    for levels, size in ((2, 64), (4, 64), (4, 256), (8, 256)):
        entries[f"rvq{levels}x{size}"] = usual(ResidualVQTokenizer, levels=levels, codebook_size=size)
    for scale in (1, 2, 3, 4, 10, 20, 50):
        entries[f"fast{scale}"] = Entry(partial(FASTTokenizer, horizon=FAST_STEPS, scale=scale), Group.CONVENTIONAL)
    for bins in (6, 8, 16):
        entries[f"feedback{bins}"] = usual(ErrorFeedback, Group.PROBE, bins=bins)
    for mass in (0.004, 0.001):
        entries[f"trap{mass:.1%}"] = usual(Planted, Group.PROBE, mass=mass)
    entries["quantile_middles16"] = usual(QuantileMiddles, Group.PROBE, bins=16)
    entries["gaussian32"] = usual(BinningTokenizer, Group.EXTRA, bins=32, strategy="gaussian")
    entries["mulaw32"] = usual(BinningTokenizer, Group.EXTRA, bins=32, strategy="mu_law")
    entries["trap_off"] = usual(Planted, Group.EXTRA, mass=0.0)
    return {name: entries[name] for name in SMOKE} if smoke else entries
