"""Levels of k-means on residuals of whole chunks, in action space or in a PCA latent; coarse to fine."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import Progress
from action_tokenizers.codecs.nearest import MOST_SEED, Books, build_books, fit_codebook, nearest, nearest_levels
from action_tokenizers.codecs.residual import decode_levels, residual_decode, residual_encode
from action_tokenizers.codecs.threads import all_rows
from action_tokenizers.errors import ActionValueError
from action_tokenizers.slots import SlotTokenizer

__all__ = ["ResidualVQTokenizer"]

MOST_LEVELS = 1024

# codebooks, mean and each level's first id
_Tables = tuple[Books, npt.NDArray[np.float64], npt.NDArray[np.int64]]


class ResidualVQTokenizer(SlotTokenizer, name="residual_vq"):
    """One id per level: the first says the chunk roughly, each further one corrects what is left.

    Args:
        horizon: steps per chunk; None: from the data.
        range: see `ActionTokenizer`.
        levels: ids per chunk.
        codebook_size: most codewords per level; every level has ids of its own.
        latent: `identity` (the chunk itself) or `pca`.
        latent_dim: for `pca`, the number of components, or a share of the variance below 1; None: 0.999 of it.
        seed: of k-means.

    `decode_prefix` decodes the first levels alone; a missing level adds nothing, and with none the chunk is the
    mean of the data.

    Example:
        >>> import numpy as np
        >>> actions = np.random.default_rng(0).uniform(-1, 1, (300, 4, 2)).astype(np.float32)
        >>> tokenizer = ResidualVQTokenizer(levels=3, codebook_size=32).fit(actions)
        >>> ids = tokenizer.encode(actions)
        >>> errors = [float(((tokenizer.decode_prefix(ids[:, :m]) - actions) ** 2).mean()) for m in (0, 1, 2, 3)]
        >>> ids.shape, errors == sorted(errors, reverse=True)
        ((300, 3), True)
    """

    prefix_decodable = True
    size_names = frozenset({"codewords", "basis"})
    own_steps: ClassVar[Mapping[str, frozenset[str]]] = {"_decode_whole": frozenset({"_slots", "_levels"})}
    decode_alone = """
        codewords = config["fitted"]["sizes"]["codewords"]
        codes = ids - np.cumsum([0, *codewords[:-1]])
        latent = tensors["codebooks"][np.arange(len(codes)), codes].sum(axis=0)
        flat = (latent @ tensors["basis"] if len(tensors["basis"]) else latent) + tensors["mean"]
        z = flat.reshape(config["fitted"]["horizon"], config["fitted"]["action_dim"])
        low, high = tensors["range.low"][0], tensors["range.high"][0]
        actions = low + (np.clip(z, -1, 1) + 1) / 2 * (high - low)
    """
    LATENTS: ClassVar[tuple[str, ...]] = ("identity", "pca")

    mean: torch.Tensor  # (t * d,)
    basis: torch.Tensor  # (l, t * d) rows orthonormal; (0, t * d) for identity
    codebooks: torch.Tensor  # (levels, k, l), rows beyond a level's own number are zero

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = "quantile",
        levels: int = 4,
        codebook_size: int = 256,
        latent: str = "identity",
        latent_dim: int | float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            horizon=horizon,
            range=range,
            levels=levels,
            codebook_size=codebook_size,
            latent=latent,
            latent_dim=latent_dim,
            seed=seed,
        )

    @property
    def vocab_size(self) -> int:
        """Codewords of all levels."""
        self._fitted_range()
        return int(sum(self._sizes["codewords"]))

    def _check_params(self) -> None:
        self._whole("levels", most=MOST_LEVELS)
        self._whole("codebook_size")
        self._whole("seed", 0, MOST_SEED)
        if self._params["latent"] not in self.LATENTS:
            raise ActionValueError(f"expected latent among {list(self.LATENTS)}, got {self._params['latent']!r}")
        if self._params["latent_dim"] is not None:
            size = self._positive("latent_dim")
            if size >= 1 and size != int(size):
                raise ActionValueError(f"expected latent_dim None, a positive integer or a share below 1, got {size}")

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        flat = chunks.flatten(1)
        mean, basis = self._latent_space(flat)
        left = _project(flat, mean, basis)
        codebooks = []
        levels, size, seed = self._whole("levels"), self._whole("codebook_size"), self._whole("seed", 0)
        for level in range(levels):
            if progress is not None:
                progress("k-means", level, levels)
            codebook = fit_codebook(left.float(), size, seed + level)
            left -= codebook[nearest(left, codebook)]
            codebooks.append(codebook)
        self._sizes = {"codewords": [len(c) for c in codebooks], "basis": len(basis)}
        self._allocate()
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        for level, codebook in enumerate(codebooks):
            self.codebooks[level, : len(codebook)] = codebook

    def _latent_space(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean `(t * d,)` and basis `(l, t * d)`, float32 as they are stored."""
        mean = flat.double().mean(0)
        if self._params["latent"] == "identity":
            return mean.float(), torch.empty(0, flat.shape[1], dtype=torch.float32)
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        asked = self._params["latent_dim"] or 0.999
        most = min(flat.shape)
        if asked >= 1 and asked > most:
            raise ActionValueError(f"expected latent_dim <= {most} for {tuple(flat.shape)} data, got {asked}")
        if not bool((flat != flat[0]).any()):
            return mean.float(), torch.eye(
                1, flat.shape[1], dtype=torch.float32
            )  # constant data: any direction will do
        with threadpool_limits(1):
            pca = PCA(int(asked) if asked >= 1 else float(asked), svd_solver="full").fit(flat.double().numpy())
        return mean.float(), torch.from_numpy(pca.components_).float()

    def _allocate(self) -> None:
        size = (self._horizon or 0) * (self._action_dim or 0)
        sizes, rows = self._sizes["codewords"], self._sizes["basis"]
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float32))
        self.register_buffer("basis", torch.zeros(rows, size, dtype=torch.float32))
        self.register_buffer("codebooks", torch.zeros(len(sizes), max(sizes), rows or size, dtype=torch.float32))

    def _levels(self) -> list[torch.Tensor]:
        return [book[:k] for book, k in zip(self.codebooks, self._sizes["codewords"], strict=True)]

    def _max_tokens(self, horizon: int, action_dim: int) -> int:
        return len(self._sizes["codewords"])

    def _slots(self, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        count = torch.tensor(self._sizes["codewords"], device=self.mean.device)
        return count.cumsum(0) - count, count

    def _slot_meaning(self, horizon: int, action_dim: int) -> torch.Tensor:
        return torch.tensor([[-1, -1, level] for level in range(self._max_tokens(horizon, action_dim))])

    def _tables(self) -> _Tables:
        """Return the kernels' arrays."""
        return self._tables_of(self._build_tables)

    def _build_tables(self) -> _Tables:
        mean, (first, _) = self.mean.double().cpu().numpy(), self._slots(0, 0)
        return build_books(self._levels()), mean, first.cpu().numpy()

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        flat = chunks.flatten(1)
        if flat.device.type != "cpu":
            first, _ = self._slots(0, 0)
            return residual_encode(_project(flat, self.mean, self.basis), self._levels()) + first
        books, mean, first_ids = self._tables()
        if len(self.basis):
            return nearest_levels(_project(flat, self.mean, self.basis), books, first=first_ids)
        return nearest_levels(flat, books, mean=mean, first=first_ids)

    def _decode_whole(self, ids: torch.Tensor, horizon: int, action_dim: int, key: str | None) -> torch.Tensor | None:
        if ids.device.type != "cpu" or len(self.basis) or ids.shape[1] != len(self._sizes["codewords"]):
            return None
        # codebooks and mean as they are now: arrays over them cost nothing
        words, mean = self.codebooks.numpy(), self.mean.double().numpy()
        sizes, (low, high) = np.array(self._sizes["codewords"]), self._fitted_range().bounds(key)
        first = np.cumsum(sizes) - sizes
        rows, out = ids.contiguous().numpy(), np.empty((len(ids), horizon, action_dim), np.float32)

        def decode(i: int, j: int) -> bool:
            return decode_levels(words, sizes, mean, first, low, high, rows[i:j], out[i:j])

        return torch.from_numpy(out) if all_rows(decode, len(rows)) else None

    def _decode(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        first, _ = self._slots(0, 0)
        codes = ids[:, : len(first)] - first[: ids.shape[1]]
        latent = residual_decode(codes, self._levels(), kept)
        flat = (latent @ self.basis.double() if len(self.basis) else latent) + self.mean
        return flat.float().reshape(-1, horizon, action_dim)


def _project(flat: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """float64: residuals of several levels must not depend on how a batch was blocked."""
    centred = flat.double() - mean
    return centred @ basis.double().T if len(basis) else centred
