"""Optional packages: imported where they are used, and missed in one line."""

from importlib import import_module
from types import ModuleType

from action_tokenizers.errors import MissingExtraError

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Return the imported `module`, or say which extra installs it.

    Raises:
        MissingExtraError: `module` is not installed.

    Example:
        >>> require("json", "data").dumps([1])
        '[1]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here and is not installed: pip install 'action-tokenizers[{extra}]'"
        ) from error
