"""A policy over the ids of any tokenizer: exact log-probabilities, sampling that always decodes, saved with its codec.

A reference for people who write their own: it satisfies `diagnostics.policy.LogitPolicy`, so that the audit measures
it, and `planning.Planner` executes it.
"""

import copy
import hashlib
import math
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.cloning import saving
from action_tokenizers.cloning.network import Cache, TokenTransformer, seeded
from action_tokenizers.cloning.trainer import check_sizes, scale_of
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError, TokenError

__all__ = ["TransformerPolicy"]

Ints = npt.NDArray[np.int64]

NAME, TOKENIZER = "policy", "tokenizer"


class TransformerPolicy(nn.Module):
    """A transformer that predicts the ids of a chunk from one state; see `training.clone` for how it learns.

    Its law is that of the ids one after another, each softmaxed over the ids with which the chunk can still be
    completed (`tokenizer.allowed`): every chunk it draws decodes, and all that do have probabilities that add up to 1.

    Args:
        tokenizer: fitted, with a horizon.
        state_dim: ds.
        width: of the network, a multiple of `heads`.
        layers: number of transformer blocks.
        heads: of each attention.
        seed: of the first weights.

    Attributes:
        tokenizer: moves with the policy.

    Raises:
        NotFittedError: the tokenizer is not fitted.
        ActionShapeError: it has no horizon or action_dim of its own, or several keys.
        ActionValueError: sizes outside their domain.
    """

    def __init__(
        self,
        tokenizer: ActionTokenizer,
        state_dim: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"state_dim": state_dim, "width": width, "layers": layers, "heads": heads}
        check_sizes(sizes)
        if width % heads:
            raise ActionValueError(f"expected width a multiple of heads, got {width} and {heads}")
        if tokenizer.max_tokens is None:
            raise ActionShapeError(
                "expected a tokenizer with a horizon and action_dim of its own, got one that leaves them to each call; "
                "fit it with horizon=, or set tokenizer.time_horizon"
            )
        if len(tokenizer.range_keys) > 1:
            raise ActionShapeError(
                f"expected a tokenizer of one key, got {list(tokenizer.range_keys)}; fit one per robot for a policy"
            )
        self.tokenizer = tokenizer
        self.sizes = sizes
        self.temperature = 1.0
        with seeded(seed):
            self.network = TokenTransformer(tokenizer.vocab_size, tokenizer.max_tokens, state_dim, width, layers, heads)
        self.state_mean: torch.Tensor
        self.state_scale: torch.Tensor
        self.register_buffer("state_mean", torch.zeros(state_dim))
        self.register_buffer("state_scale", torch.ones(state_dim))

    @property
    def state_dim(self) -> int:
        """Dims ds of a state."""
        return self.sizes["state_dim"]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.state_mean.device

    def know_states(self, states: Any) -> None:
        """Take mean and scale of each dim of `states (n, ds)`, with which every state is seen from now on."""
        values = self._open_states(states)
        self.state_mean.copy_(values.double().mean(0))
        self.state_scale.copy_(scale_of(values))

    @property
    def temperature(self) -> float:
        """What divides the logits in `sample`, `log_prob` and `logits` alike.

        1 is the law that was learned, 0 the likeliest id each time.
        """
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        """Set it."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ActionValueError(f"expected temperature a finite number >= 0, got {value!r}")
        self._temperature = float(value)

    def at(self, temperature: float) -> Self:
        """Return this policy at another temperature; they share their weights."""
        other = copy.copy(self)
        other.temperature = temperature
        return other

    def forward(self, states: Any, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits `(b, n, v)` of `ids (b, n)` under teacher forcing, not masked: what a loss is made of."""
        logits: torch.Tensor = self.network(self._seen(states), self._in_vocabulary(ids[:, :-1]))
        return logits

    @torch.no_grad()
    def log_prob(self, states: Any, ids: Any) -> npt.NDArray[np.float64]:
        """Return the log-probability in nats of each row of `ids (b, n)`, `(b,)` float64.

        Rows may end in pads; -inf: not a chunk, cut off before its end included.

        Raises:
            ActionShapeError: not one row of ids per state, or another state_dim.
            ActionValueError: NaN or inf in a state.
        """
        rows = self._open_ids(ids, len(states))
        every = self.forward(states, rows)
        total = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        inside = self._in_vocabulary(rows)
        for p in range(rows.shape[1]):
            allowed = self._allowed(rows[:, :p])
            chosen = inside[:, p : p + 1]
            logits = self._law(every[:, p], allowed)
            found = logits.gather(1, chosen)[:, 0] - logits.logsumexp(1)
            is_possible = allowed.gather(1, chosen)[:, 0] & (rows[:, p] == inside[:, p])
            # a row that is no chunk any more allows nothing, and -inf - -inf is no number
            total += torch.where(is_possible, found, -torch.inf)
        total[torch.as_tensor(self.tokenizer.length(rows), device=self.device) < 0] = -torch.inf
        return total.cpu().numpy()

    @torch.no_grad()
    def logits(self, states: Any, prefix: Any) -> npt.NDArray[np.float64]:
        """Return the logits `(b, v)` float64 of the id after `prefix (b, m)`; -inf: cannot follow.

        Raises:
            ActionShapeError: not one prefix per state, one that is too long, or another state_dim.
            TokenError: ids outside the vocabulary.
        """
        rows = self._open_ids(prefix, len(states), most=self._max_tokens - 1)
        outside = (rows != self._in_vocabulary(rows)).nonzero()
        if len(outside):
            row, place = outside[0].tolist()
            raise TokenError(
                f"expected ids in 0..{self.tokenizer.vocab_size - 1}, got {rows[row, place]} in row {row} at {place}; "
                "give the tokenizer's ids, not those of a language model"
            )
        last = self.network(self._seen(states), rows)[:, -1]
        law: npt.NDArray[np.float64] = self._law(last, self._allowed(rows)).cpu().numpy()
        return law

    def sample(self, states: Any, *, seed: int) -> Ints:
        """Return the ids of one chunk per state `(b, ds)`, `(b, n)` int64, padded as `tokenizer.encode` pads.

        Row i takes the same random numbers whatever its state: in states that differ a little it mostly draws the same.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (len(states), self._max_tokens)
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        return self._write(states, uniforms.to(self.device))

    def greedy(self, states: Any) -> Ints:
        """Return ids as `sample` does, each the likeliest after those before it, whatever the temperature."""
        return self._write(states, None)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write weights and tokenizer into `folder`: `policy.json`, `policy.safetensors` and `tokenizer/`.

        Returns:
            The folder's absolute path.

        Raises:
            FormatError: `tokenizer/` holds files of something else.
            OSError: it cannot be written.
        """
        path = Path(folder)
        self.tokenizer.save_pretrained(path / TOKENIZER)
        config = {"sizes": self.sizes, "temperature": self.temperature, "tokenizer": _digest(path / TOKENIZER)}
        return saving.write(path, NAME, config, self._own_tensors())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Return a policy as `save_pretrained` wrote it.

        Raises:
            FormatError: a file is missing or not as it was written, or the tokenizer is another one.
        """
        path = Path(folder)
        config, tensors = saving.read(path, NAME, {"sizes", "temperature", "tokenizer"})
        tokenizer = ActionTokenizer.from_pretrained(path / TOKENIZER)
        if _digest(path / TOKENIZER) != config["tokenizer"]:
            raise FormatError(
                f"expected the tokenizer that the policy in {path} was trained on, got another one in {TOKENIZER}/; "
                "its ids mean something else: restore the folder"
            )
        try:
            policy = cls(tokenizer, **config["sizes"])
            policy.temperature = float(config["temperature"])
        except (TypeError, ValueError) as error:
            raise FormatError(f"expected sizes of a policy in {path / NAME}.json, got {error}") from error
        saving.fill(policy, policy._own_tensors(), tensors, NAME)
        return policy.eval()

    @property
    def _max_tokens(self) -> int:
        return self.tokenizer.max_tokens_for()

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.state_dict().items() if not k.startswith("tokenizer.")}

    @torch.no_grad()
    def _write(self, states: Any, uniforms: torch.Tensor | None) -> Ints:
        """Return whole chunks; `uniforms (b, n)` choose by the inverse of the cumulative probabilities."""
        seen = self._seen(states)
        ids = torch.empty(len(seen), 0, dtype=torch.int64, device=self.device)
        caches: list[Cache] | None = None
        last = None
        for p in range(self._max_tokens):
            logits, caches = self.network.step(seen, last, caches)
            law = self._law(logits, self._allowed(ids))
            last = law.argmax(1) if uniforms is None else _inverse_cdf(law, uniforms[:, p])
            ids = torch.cat([ids, last[:, None]], 1)
            # where every chunk has the same number of ids, none is complete earlier
            if self.tokenizer.pad_id is not None and bool((self.tokenizer.length(ids) >= 0).all()):
                break
        return ids.cpu().numpy()

    def _law(self, logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Return the logits `(b, v)` float64 that the policy follows: at its temperature, -inf where not allowed."""
        law = logits.double().masked_fill(~allowed, -torch.inf)
        if self.temperature > 0:
            return law / self.temperature
        likeliest = torch.full_like(law, -torch.inf).scatter(1, law.argmax(1, keepdim=True), 0.0)
        return torch.where(allowed.any(1, keepdim=True), likeliest, law)

    def _in_vocabulary(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ids that the network knows; others become 0."""
        return torch.where((ids >= 0) & (ids < self.tokenizer.vocab_size), ids, 0)

    def _allowed(self, prefix: torch.Tensor) -> torch.Tensor:
        allowed: torch.Tensor = self.tokenizer.allowed(prefix)
        return allowed

    def _seen(self, states: Any) -> torch.Tensor:
        return (self._open_states(states) - self.state_mean) / self.state_scale

    def _open_states(self, states: Any) -> torch.Tensor:
        values = torch.as_tensor(states, dtype=torch.float32, device=self.device)
        if values.ndim != 2 or values.shape[1] != self.state_dim:
            raise ActionShapeError(f"expected states (b, {self.state_dim}), got {tuple(values.shape)}")
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            raise ActionValueError(f"expected finite states, got NaN or inf in row {bad[0, 0]}, dim {bad[0, 1]}")
        return values

    def _open_ids(self, ids: Any, count: int, most: int | None = None) -> torch.Tensor:
        rows = torch.as_tensor(ids, device=self.device)
        most = self._max_tokens if most is None else most
        if rows.is_floating_point() or rows.ndim != 2 or len(rows) != count or rows.shape[1] > most:
            raise ActionShapeError(
                f"expected integer ids ({count}, n) with n <= {most}, got {rows.dtype} {tuple(rows.shape)}"
            )
        return rows.long()


def _inverse_cdf(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return for each row of `logits (b, v)` the id at which the cumulative probability passes `uniforms (b,)`."""
    cumulative = logits.softmax(1).cumsum(1)
    # never past the last possible id, which rounding of the sum might skip
    reach = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, reach, right=True)[:, 0].clamp_max(_last_possible(logits))


def _last_possible(logits: torch.Tensor) -> torch.Tensor:
    v = logits.shape[1]
    return v - 1 - (logits > -torch.inf).flip(1).int().argmax(1)


def _digest(folder: Path) -> str:
    """Return a digest of what decides the meaning of the ids of a saved tokenizer."""
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
