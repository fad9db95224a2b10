"""Every exception this library raises; each message says what was expected, what came and what to do."""

__all__ = [
    "ActionShapeError",
    "ActionTokenizerError",
    "ActionValueError",
    "FormatError",
    "HubError",
    "MissingExtraError",
    "NotFittedError",
    "TokenError",
    "UnknownTokenizerError",
]


class ActionTokenizerError(Exception):
    """Base of every error of this library."""


class NotFittedError(ActionTokenizerError, RuntimeError):
    """A tokenizer was used before `fit` or `from_pretrained`."""


class ActionShapeError(ActionTokenizerError, ValueError):
    """Actions, or a horizon, action_dim or key of a call, do not match what was fitted."""


class ActionValueError(ActionTokenizerError, ValueError):
    """A value is unusable: NaN or inf in actions, a parameter outside its domain, no data at all."""


class TokenError(ActionTokenizerError, ValueError):
    """Ids that no chunk of this tokenizer encodes to."""


class FormatError(ActionTokenizerError, ValueError):
    """A file or folder is not what it should be: a broken artifact, no data set, a missing column."""


class UnknownTokenizerError(FormatError):
    """An artifact names a tokenizer type that is not installed here."""


class HubError(ActionTokenizerError, OSError):
    """The Hub did not do what was asked: no such repository, no permission, no connection, half a file."""


class MissingExtraError(ActionTokenizerError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""
