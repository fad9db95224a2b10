"""Recorded episodes: named arrays that every later step may trust to be whole, float32 and finite."""

import os
import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from action_tokenizers.data.door import FloatArray, checked_fps, episode_matrices
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from action_tokenizers.warn import warn

__all__ = ["Episodes", "angle_jumps", "default_horizon", "locate"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ("meta/**", "data/**")  # never videos/**: actions are a thousandth of a data set's bytes


@dataclass(frozen=True, eq=False, repr=False)
class Episodes:
    """Episodes of one robot (one `key`): actions `(t_i, d)` float32, optional states `(t_i, ds)`.

    Building one is the door of the library: NaN, inf, unequal widths and empty data are refused here,
    naming episode, frame and dim, so that nothing behind it needs to look again.

    Attributes:
        actions: One `(t_i, d)` float32 array per episode.
        states: One `(t_i, ds)` float32 array per episode, or None.
        fps: Frames per second, None where the recording does not say.
        key: The name of the range these actions are normalised with: one per robot or data set.
        names: The episode indices as recorded; 0..n-1 where none are given.
        action_names: One name per action dim, or None.
        source: Data set id or folder name, never a machine's path: artifacts are equal on every machine.
        independent: False when these are parts of one recording, split in time.
        action_is_pad: Per episode a `(t_i,)` mask of steps that were not recorded, or None.
        offsets: Per episode the recorded frame its first row stands for (not 0 after a split in time).

    Example:
        >>> episodes = Episodes.from_arrays([np.zeros((30, 2)), np.ones((50, 2))], fps=10)
        >>> len(episodes), episodes.action_dim, episodes.frames
        (2, 2, 80)
    """

    actions: Sequence[FloatArray]
    _: KW_ONLY
    states: Sequence[FloatArray] | None = None
    fps: float | None = None
    key: str = "default"
    names: tuple[int, ...] = ()
    action_names: tuple[str, ...] | None = None
    source: str = ""
    independent: bool = True
    action_is_pad: Sequence[NDArray[np.bool_]] | None = None
    offsets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Convert what came, and refuse what is unusable."""
        if len(self.actions) == 0:
            raise ActionValueError("expected at least one episode, got none: there is nothing to fit on")
        count = len(self.actions)
        names = tuple(int(name) for name in self.names) or tuple(range(count))
        settled: dict[str, Any] = {
            "names": names,
            "offsets": tuple(int(offset) for offset in self.offsets) or (0,) * count,
            "actions": episode_matrices(self.actions, names, "action"),
        }
        if len(names) != count or len(set(names)) != count:
            raise ActionValueError(f"expected {count} different episode names, got {list(names)}")
        if self.states is not None:
            settled["states"] = episode_matrices(self.states, names, "state")
        if self.action_is_pad is not None:
            settled["action_is_pad"] = [_mask(mask) for mask in self.action_is_pad]
        if self.fps is not None:
            settled["fps"] = checked_fps(self.fps)
        if self.action_names is not None:
            settled["action_names"] = tuple(str(name) for name in self.action_names)
        for field, value in settled.items():
            object.__setattr__(self, field, value)
        self._check_companions()

    def _check_companions(self) -> None:
        if self.action_is_pad is not None:
            for name, mask, length in zip(self.names, self.action_is_pad, self.lengths, strict=False):
                if mask.ndim != 1:
                    raise ActionShapeError(
                        f"expected action_is_pad ({length},), one bool per frame, got shape {mask.shape} in episode "
                        f"{name}: a frame is padded as a whole"
                    )
        for what in ("states", "action_is_pad"):
            companion = getattr(self, what)
            got = None if companion is None else [len(item) for item in companion]
            if got is not None and got != list(self.lengths):
                raise ActionShapeError(
                    f"expected {what} of the same lengths as the actions {_short(self.lengths)}, got {_short(got)}"
                )
        if not self.key:
            raise ActionValueError("expected a key of at least one character, got an empty one")
        if self.action_names is not None and len(self.action_names) != self.action_dim:
            raise ActionShapeError(
                f"expected {self.action_dim} action_names, got {len(self.action_names)}: None drops them"
            )
        if len(self.offsets) != len(self):
            raise ActionShapeError(f"expected {len(self)} offsets, got {len(self.offsets)}")

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        action: str | None = None,
        state: str | Literal[False] | None = None,
        episode: str | None = None,
        key: str | None = None,
        fps: float | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Read a folder, a file or a data set of the Hub.

        Args:
            source: Path of a LeRobot v2.0, v2.1 or v3.0 folder, a flat parquet file or folder, `.npz`,
                `.npy`, HDF5 (robomimic, LIBERO, ALOHA), a Diffusion Policy zarr folder or zip, an RLDS
                folder; or a Hub data set id `owner/name`, of which only `meta/` and `data/` are fetched.
            action: Column of the actions; None finds the common names.
            state: Column of the states; None finds the common names, False leaves the states out.
            episode: Column of flat parquet that tells the episodes apart; None finds the common names. The
                other layouts know their episodes, and refuse it.
            key: Name of the range these actions are normalised with; None is `"default"`.
            fps: Frames per second; None takes what the recording says.
            revision: Branch, tag or commit of a Hub data set.
            token: Hub token of a private data set.

        Raises:
            FormatError: No known layout, a broken file, or no such column; says what is there.
            OSError: The system does not let a file be read: too many open files, no permission and the like.
            HubError: The Hub did not serve the data set.
        """
        from action_tokenizers.data.readers import read

        folder, name = locate(source, revision, token)
        found = read(folder, action=action, state=state, episode=episode)
        if found.doubt:
            warn(found.doubt)
        episodes = cls(
            found.actions,
            states=found.states,
            fps=found.fps if fps is None else fps,
            key="default" if key is None else key,
            names=found.names,
            action_names=found.action_names,
            source=name,
        )
        warn_of_angles(episodes, name)
        return episodes

    @classmethod
    def from_arrays(
        cls,
        actions: Sequence[Any],
        *,
        states: Sequence[Any] | None = None,
        fps: float | None = None,
        key: str = "default",
        **fields: Any,
    ) -> Self:
        """Build from a list of `(t_i, d)` arrays (numpy, torch or nested lists), or one `(n, t, d)` array."""
        return cls(actions, states=states, fps=fps, key=key, **fields)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.actions)

    def __getitem__(self, which: int | slice | Sequence[int] | NDArray[Any]) -> Self:
        """Return the episodes at these positions (int, list, mask or slice) as Episodes."""
        every = np.arange(len(self))
        index = which if isinstance(which, int | slice | np.integer) else np.asarray(which)
        if isinstance(index, np.ndarray) and index.size == 0:
            raise ActionValueError("expected at least one episode, got an empty selection")
        at = [int(i) for i in np.atleast_1d(every[index])]
        return replace(
            self,
            actions=[self.actions[i] for i in at],
            states=None if self.states is None else [self.states[i] for i in at],
            names=tuple(self.names[i] for i in at),
            action_is_pad=None if self.action_is_pad is None else [self.action_is_pad[i] for i in at],
            offsets=tuple(self.offsets[i] for i in at),
        )

    def __repr__(self) -> str:
        """Return the facts, not the arrays."""
        return (
            f"Episodes({len(self)} episodes, {self.frames} frames, action_dim={self.action_dim}, "
            f"fps={self.fps}, key={self.key!r}, source={self.source!r})"
        )

    @property
    def action_dim(self) -> int:
        """Number of action dims d."""
        return int(self.actions[0].shape[1])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames of each episode."""
        return tuple(len(actions) for actions in self.actions)

    @property
    def frames(self) -> int:
        """Frames of all episodes together."""
        return sum(self.lengths)

    @property
    def padding(self) -> Sequence[NDArray[np.bool_]]:
        """`action_is_pad`, all False where every step was recorded: one `(t_i,)` mask per episode."""
        if self.action_is_pad is not None:
            return self.action_is_pad
        return [np.zeros(length, np.bool_) for length in self.lengths]

    def split(self, test: float = 0.2, *, seed: int = 0, horizon: int | None = None) -> tuple[Self, Self]:
        """Return (train, test) that share no episode.

        `test` is the share of episodes, rounded, at least one and never all. One single episode is split
        in time, with a gap of one `horizon` between the parts, which are then not `independent`.
        """
        if not 0 < test < 1:
            raise ActionValueError(f"expected a test share between 0 and 1, got {test}")
        if len(self) == 1:
            return self._split_in_time(test, horizon)
        count = min(max(1, round(test * len(self))), len(self) - 1)
        order = np.random.default_rng(seed).permutation(len(self))
        return self[np.sort(order[count:])], self[np.sort(order[:count])]

    def _split_in_time(self, test: float, horizon: int | None) -> tuple[Self, Self]:
        if horizon is None:
            raise ActionValueError("expected horizon=: a single episode is split in time, with a gap of one horizon")
        if horizon < 1 or self.frames < 3 * horizon:
            raise ActionShapeError(
                f"expected at least 3 horizons to split one episode in time (train, gap, test), "
                f"got {self.frames} frames and horizon {horizon}"
            )
        usable = self.frames - horizon
        held_out = min(max(horizon, round(test * usable)), usable - horizon)
        return self._cut(0, usable - held_out), self._cut(self.frames - held_out, self.frames)

    def _cut(self, start: int, stop: int) -> Self:
        return replace(
            self,
            actions=[self.actions[0][start:stop]],
            states=None if self.states is None else [self.states[0][start:stop]],
            action_is_pad=None if self.action_is_pad is None else [self.action_is_pad[0][start:stop]],
            offsets=(self.offsets[0] + start,),
            independent=False,
        )


def default_horizon(episodes: Episodes) -> int | None:
    """Return one second of data, at most the median episode, at least 1; None where fps is unknown."""
    if episodes.fps is None:
        return None
    return max(1, min(round(episodes.fps), int(np.median(episodes.lengths))))


def angle_jumps(episodes: Episodes) -> list[int]:
    """Return the dims that stay within one turn and now and then jump by about 2*pi between two frames."""
    slack = 0.5  # radians a joint may really move between two frames
    low = np.min([actions.min(axis=0) for actions in episodes.actions], axis=0).astype(np.float64)
    high = np.max([actions.max(axis=0) for actions in episodes.actions], axis=0).astype(np.float64)
    jumps = np.zeros(episodes.action_dim, np.int64)
    moves = np.zeros_like(jumps)
    for actions in episodes.actions:
        size = np.abs(np.diff(actions.astype(np.float64), axis=0))
        jumps += (size > 2 * np.pi - slack).sum(axis=0)
        moves += ((size > 0) & (size < np.pi)).sum(axis=0)
    # a gripper that switches between -3 and 3 jumps as far, but never moves otherwise
    wrapped = (jumps > 0) & (jumps < moves) & (high - low < 2 * np.pi + 0.1)
    return [int(dim) for dim in np.flatnonzero(wrapped)]


def warn_of_angles(episodes: Episodes, source: str) -> None:
    """Warn of dims that jump by about one turn."""
    jumps = angle_jumps(episodes)
    if jumps:
        warn(
            f"action dims {jumps} of {source!r} jump by about 2*pi between frames, as wrapped angles do: "
            'fit on Relative("state", angles=...) or unwrap them (np.unwrap) first'
        )


def _mask(values: Any) -> NDArray[np.bool_]:
    mask = np.asarray(values)
    if mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
        raise ActionValueError(f"expected action_is_pad of bools, got dtype {mask.dtype}: True marks a padded frame")
    return mask.astype(np.bool_)


def _short(lengths: Sequence[int]) -> str:
    return str(list(lengths)) if len(lengths) <= 8 else f"[{', '.join(map(str, lengths[:8]))}, ...]"


def locate(source: str | os.PathLike[str], revision: str | None, token: str | bool | None) -> tuple[Path, str]:
    """Return the local folder or file, and the name that stands for it in artifacts."""
    path = Path(source)
    if path.exists():
        return path, Path(os.path.abspath(path)).name
    if not (isinstance(source, str) and HUB_ID.fullmatch(source)):
        raise FormatError(
            f"expected a folder, a file or a Hub data set id 'owner/name', got {str(source)!r}: no such path"
        )
    from action_tokenizers.download import fetch

    return fetch(source, HUB_FILES, revision=revision, token=token), source
