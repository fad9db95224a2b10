"""What every training here shares: the optimiser, its batches, scales of what is seen, checks of numbers."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from action_tokenizers.errors import ActionValueError

__all__ = ["Trainer", "check_sizes", "check_training", "scale_of"]

WARM_UP = 0.05  # share of the steps in which the rate rises
LARGEST_GRADIENT = 1.0
WEIGHT_DECAY = 0.01
ROUNDING = 1e-6  # of float32


class Trainer:
    """AdamW whose rate rises, then falls to 0 by a cosine, with clipped gradients; draws the batches.

    Args:
        network: what learns.
        steps: of the optimiser.
        learning_rate: the largest.
        seed: of the batches.
        largest_gradient: what longer ones are cut to.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        steps: int,
        learning_rate: float,
        seed: int,
        largest_gradient: float = LARGEST_GRADIENT,
    ) -> None:
        self.network, self.largest_gradient = network, largest_gradient
        self.learning_rate, self.done = learning_rate, 0
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / (WARM_UP * steps), 1.0) * (1 + math.cos(math.pi * step / steps)) / 2,
        )

    def rows(self, count: int, batch: int, device: torch.device | str) -> torch.Tensor:
        """Return `(batch,)` rows of `count`, drawn alike for every device."""
        return torch.randint(count, (batch,), generator=self.generator, device="cpu").to(device)

    def step(self, loss: torch.Tensor) -> None:
        """Follow the gradient of `loss`.

        Raises:
            ActionValueError: it is not finite.
        """
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_gradient)
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            raise ActionValueError(
                f"expected a finite loss, got {loss.item()} (gradient {norm.item()}) at step {self.done} with "
                f"learning_rate {self.learning_rate}; lower it, or look for extreme values in the data"
            )
        self.optimizer.step()
        self.schedule.step()
        self.done += 1


def check_sizes(sizes: Mapping[str, Any], least: Mapping[str, int] | None = None) -> None:
    """Refuse sizes of a network that are not integers >= 1, or >= `least[name]`."""
    for name, value in sizes.items():
        lowest = (least or {}).get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ActionValueError(f"expected {name} an integer >= {lowest}, got {value!r}")


def check_training(steps: Any, batch_size: Any, learning_rate: Any) -> None:
    """Refuse numbers no training can have."""
    check_sizes({"steps": steps, "batch_size": batch_size})
    if not 0 < learning_rate < math.inf:
        raise ActionValueError(f"expected learning_rate a finite number > 0, got {learning_rate!r}")


def scale_of(values: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each dim of `values (n, d)`; 1 where it does not vary beyond rounding.

    A dim that never moved in the demonstrations may move a little when deployed: that must not count as far.
    """
    scale = values.double().std(0, correction=0)
    is_constant = scale <= ROUNDING * values.double().abs().amax(0).clamp_min(1)
    return torch.where(is_constant, torch.ones_like(scale), scale)
