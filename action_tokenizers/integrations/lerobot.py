"""LeRobot: steps for its processor pipelines that encode and decode with any tokenizer of this library.

A fitted tokenizer also is the `action_tokenizer_input_object` of LeRobot's own `ActionTokenizerProcessorStep`, as it
is. The steps here keep a tokenizer of any family whole instead: a saved pipeline holds its config and its tensors and
is loaded by unmodified LeRobot (0.4.4 to 0.6), without remote code and without naming a second repository.

Limits of LeRobot to know:

* Its `pi0_fast` decodes by itself, with `bpe_tokenizer`, `min_token` and `scale` of the published FAST processor, and
  executes zeros where it cannot: only tokenizers exported as such a folder decode inside that policy.
* Before 0.6.2 its own step does not save a tokenizer that was given as an object: name a saved folder as
  `action_tokenizer_name`, here or in the overrides when loading.
* Its own step cuts off what exceeds `max_action_tokens`; what is left decodes to nothing. Nothing is cut off here.
* Its rollout loops post-process single steps of an action queue; a chunk is decoded before it is queued.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.artifact import from_parts, to_parts
from action_tokenizers.base import ActionTokenizer
from action_tokenizers.data.relative import Relative
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError, NotFittedError, TokenError

if TYPE_CHECKING:
    ProcessorStep = object
else:
    try:
        from lerobot.processor import ProcessorStep
    except ImportError:  # then no pipeline of LeRobot's can be imported either, and nobody asks for its base class
        ProcessorStep = object

__all__ = ["ActionDecodeStep", "ActionEncodeStep"]

ACTION, OBSERVATION, COMPLEMENTARY = "action", "observation", "complementary_data"
STATE, REFERENCE = "observation.state", "action.reference"
TOKENS, TOKEN_MASK, VALID, IS_PAD = "action.tokens", "action.token_mask", "action.valid", "action_is_pad"

Transition = dict[Any, Any]
Doubles = npt.NDArray[np.float64]


class _TokenizerStep(ProcessorStep):
    """A step that carries its tokenizer: the config in `get_config`, the tensors in `state_dict`.

    Not registered with LeRobot on purpose: a saved pipeline names an unregistered step by its class path, and so
    loads where nothing has imported this module.
    """

    def __init__(self, tokenizer: ActionTokenizer | Mapping[str, Any], key: str | None, convert_relative: bool) -> None:
        self._tokenizer: ActionTokenizer | None = None
        self._config: dict[str, Any] = {}
        if isinstance(tokenizer, ActionTokenizer):
            to_parts(tokenizer)  # an unfitted one is refused here, not when the first checkpoint is written
            self._tokenizer = tokenizer
        elif isinstance(tokenizer, Mapping):
            self._config = dict(tokenizer)
        else:
            raise ActionValueError(
                f"expected a fitted tokenizer or the config of one, got a {type(tokenizer).__name__}; "
                "ActionTokenizer.from_pretrained(name) loads one"
            )
        self.key, self.convert_relative = key, convert_relative

    @property
    def tokenizer(self) -> ActionTokenizer:
        """The tokenizer.

        Raises:
            NotFittedError: the step was made from a config, and its state is not loaded yet.
        """
        if self._tokenizer is None:
            raise NotFittedError("expected a step with its state, got one made from a config; call load_state_dict")
        return self._tokenizer

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, as JSON values, that make this step again."""
        config = self._config if self._tokenizer is None else to_parts(self._tokenizer)[0]
        return {"tokenizer": config, "key": self.key, "convert_relative": self.convert_relative}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tokenizer's tensors, on the CPU."""
        return to_parts(self.tokenizer)[1]

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Complete a step that was made from a config.

        Raises:
            FormatError: tensors that do not belong to the config, or other ones than the step's tokenizer has.
        """
        if self._tokenizer is None:
            self._tokenizer = from_parts(self._config, state, "the step's config")
        own = self.state_dict()
        if set(own) != set(state) or not all(torch.equal(own[name], state[name].cpu()) for name in own):
            raise FormatError(
                "expected the tensors of the tokenizer this step was made with, got others; make a new step instead"
            )

    def save_artifacts(self, save_directory: Any) -> dict[str, str]:
        """Return no further files: config and state are all there is."""
        return {}

    def reset(self) -> None:
        """Begin a new episode."""

    def transform_features(self, features: Any) -> Any:
        """Return the features as they are: ids travel in the complementary data, which has none."""
        return features

    def _reference(self, transition: Transition, actions: torch.Tensor) -> Doubles:
        """Return what relative `actions (b, t, d)` are relative to, `(b, d)`."""
        relative, d = self.tokenizer.relative, actions.shape[-1]
        given = _part(transition, COMPLEMENTARY).get(REFERENCE)
        name = REFERENCE
        if given is None and relative is not None and "previous" not in relative.modes(d):
            name = STATE
            given = _part(transition, OBSERVATION).get(STATE)
        if given is None:
            raise ActionValueError(
                f"expected the reference (b, {d}) of relative actions as {REFERENCE!r} in the complementary data (or "
                f"as {STATE!r} in the observation, where every dim is relative to the state), got none; give it, or "
                "let other steps convert and set convert_relative=False"
            )
        reference = torch.as_tensor(given).detach().cpu().double()
        shape = tuple(reference.shape)
        reference = reference[None] if reference.ndim == 1 else reference
        if reference.ndim != 2 or len(reference) != len(actions) or reference.shape[1] < d:
            raise ActionShapeError(f"expected {name!r} as ({len(actions)}, {d}), one per chunk, got {shape}")
        if not bool(torch.isfinite(reference).all()):
            raise ActionValueError(f"expected a finite {name!r}, got NaN or inf")
        found: Doubles = reference[:, :d].numpy()
        return found

    def _convert(
        self, transition: Transition, actions: torch.Tensor, way: Callable[[Relative, Any, Any], Any]
    ) -> torch.Tensor:
        """Return `actions (..., t, d)` made relative (`Relative.apply`) or absolute again (`Relative.invert`)."""
        relative = self.tokenizer.relative
        if relative is None or not self.convert_relative:
            return actions
        chunks = actions.detach().reshape(-1, *actions.shape[-2:])
        reference = self._reference(transition, chunks)
        converted = way(relative, chunks.cpu().double().numpy(), reference)
        return torch.as_tensor(converted, device=actions.device).reshape(actions.shape)


class ActionEncodeStep(_TokenizerStep):
    """Encode the action of a transition; the ids join its complementary data, the action stays.

    `action.tokens` `(b, n)` int64 are the tokenizer's own ids, padded with its pad to the longest of the batch, and
    `action.token_mask` `(b, n)` bool tells which are not padding. `action_is_pad` `(b, t)`, as LeRobot's datasets
    give it, is honoured. A transition without action, as in inference, passes unchanged.

    The tokenizer brings its own range: put the step before LeRobot's normalizer, or fit with `range="unit"` on
    normalized actions and put it after.

    Args:
        tokenizer: fitted, or the config of one as `get_config` gave it.
        key: whose range; needed where several were fitted.
        convert_relative: for a tokenizer of relative actions: take absolute ones and make them relative to
            `observation.state` `(b, >= d)`, or to `action.reference` `(b, d)` in the complementary data; False where
            they are relative already.

    Example:
        >>> import numpy as np, torch
        >>> from action_tokenizers import BinningTokenizer
        >>> step = ActionEncodeStep(BinningTokenizer(bins=8).fit(np.random.default_rng(0).normal(size=(50, 4, 2))))
        >>> step({"action": torch.zeros(3, 4, 2)})["complementary_data"]["action.tokens"].shape
        torch.Size([3, 8])
    """

    def __init__(
        self, tokenizer: ActionTokenizer | Mapping[str, Any], *, key: str | None = None, convert_relative: bool = True
    ) -> None:
        super().__init__(tokenizer, key, convert_relative)

    def __call__(self, transition: Transition) -> Transition:
        """Return a copy of `transition` with the ids of its action `(t, d)` or `(b, t, d)`.

        Raises:
            ActionShapeError: not a chunk the tokenizer was fitted for, or a reference of another shape.
            ActionValueError: NaN or inf, or no reference for relative actions.
        """
        actions = transition.get(ACTION)
        if actions is None:
            return transition
        if not isinstance(actions, torch.Tensor) or actions.ndim not in (2, 3):
            what = tuple(actions.shape) if isinstance(actions, torch.Tensor) else type(actions).__name__
            raise ActionShapeError(f"expected the action as a tensor (t, d) or (b, t, d), got {what}")
        data = _part(transition, COMPLEMENTARY)
        relative = self._convert(transition, actions, Relative.apply)
        ids = self.tokenizer.encode(relative, key=self.key, action_is_pad=data.get(IS_PAD))
        found = {TOKENS: ids, TOKEN_MASK: self.tokenizer.pad_mask(ids)}
        return {**transition, COMPLEMENTARY: {**data, **found}}


class ActionDecodeStep(_TokenizerStep):
    """Decode ids to the action of a transition, and never let an undecodable generation pass for one.

    `action.valid` `(b,)` bool in the complementary data tells which chunks were decoded as generated. Holding the
    last position is left to the controller, who knows whether repeating a command stops the robot (positions) or
    moves it on (deltas, velocities).

    Args:
        tokenizer: fitted, or the config of one as `get_config` gave it.
        key: whose range; needed where several were fitted.
        convert_relative: for a tokenizer of relative actions: return absolute ones, given `observation.state`
            `(b, >= d)` at the chunk's start, or `action.reference` `(b, d)` in the complementary data. LeRobot's
            post-processors see neither: there, set False and let its `AbsoluteActionsProcessorStep` follow.
        on_invalid: `raise`, or `repair`: the action keeps what the ids do say, the rest is neutral, and `action.valid`
            is False. Where a pipeline hands on the action alone, as LeRobot's post-processors do, look at `valid` of
            this step after each call.
        source: where the ids are: `action` (what a policy returned), or a key of the complementary data.
        horizon: steps per chunk, where the fit left them open.
        action_dim: dims per step, likewise.

    Attributes:
        valid: `action.valid` of the last call; None before the first, and after `reset`.

    Example:
        >>> import numpy as np, torch
        >>> from action_tokenizers import BinningTokenizer
        >>> step = ActionDecodeStep(BinningTokenizer(bins=8).fit(np.random.default_rng(0).normal(size=(50, 4, 2))))
        >>> step({"action": torch.zeros(3, 8, dtype=torch.int64)})["action"].shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        tokenizer: ActionTokenizer | Mapping[str, Any],
        *,
        key: str | None = None,
        convert_relative: bool = True,
        on_invalid: str = "raise",
        source: str = ACTION,
        horizon: int | None = None,
        action_dim: int | None = None,
    ) -> None:
        super().__init__(tokenizer, key, convert_relative)
        if on_invalid not in ("raise", "repair"):
            raise ActionValueError(f"expected on_invalid='raise' or 'repair', got {on_invalid!r}")
        self.on_invalid, self.source = on_invalid, source
        self.horizon, self.action_dim = horizon, action_dim
        self.valid: torch.Tensor | None = None

    def __call__(self, transition: Transition) -> Transition:
        """Return a copy of `transition` with the action `(t, d)` or `(b, t, d)` of its ids `(n,)` or `(b, n)`.

        Raises:
            TokenError: no ids, ids that are not integers, or, under `raise`, ids of no chunk; says where and why.
            ActionShapeError: an open horizon or action_dim that was not given, or a reference of another shape.
            ActionValueError: no reference for relative actions.
        """
        self.valid = None
        data = _part(transition, COMPLEMENTARY)
        ids = transition.get(ACTION) if self.source == ACTION else data.get(self.source)
        if not isinstance(ids, torch.Tensor):
            raise TokenError(f"expected {self.source!r} as a tensor of ids (n,) or (b, n), got {type(ids).__name__}")
        if self.on_invalid == "raise":
            actions = self.tokenizer.decode(ids, horizon=self.horizon, action_dim=self.action_dim, key=self.key)
            valid = torch.ones(ids.shape[:-1], dtype=torch.bool, device=ids.device)
        else:
            actions, valid = self.tokenizer.try_decode(
                ids, horizon=self.horizon, action_dim=self.action_dim, key=self.key
            )
        actions = self._convert(transition, actions, Relative.invert)
        self.valid = valid
        return {**transition, ACTION: actions, COMPLEMENTARY: {**data, VALID: valid}}

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, as JSON values, that make this step again."""
        own = {"on_invalid": self.on_invalid, "source": self.source}
        return {**super().get_config(), **own, "horizon": self.horizon, "action_dim": self.action_dim}

    def reset(self) -> None:
        """Begin a new episode."""
        self.valid = None


def _part(transition: Transition, name: str) -> Mapping[str, Any]:
    """Return one of the dicts of a transition; a missing one is empty."""
    return transition.get(name) or {}
