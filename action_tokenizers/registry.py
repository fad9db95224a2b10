"""Names of tokenizer types and the classes behind them.

Built-in families are imported when asked for; other distributions add theirs through the entry-point group
`action_tokenizers`, or simply by defining a subclass with `name=`.
"""

from importlib import import_module
from importlib.metadata import entry_points

from action_tokenizers.errors import ActionTokenizerError, UnknownTokenizerError

__all__ = ["known_types", "register", "tokenizer_class"]

GROUP = "action_tokenizers"
BUILT_IN = {
    "binning": "action_tokenizers.tokenizers.binning:BinningTokenizer",
    "fast": "action_tokenizers.tokenizers.fast:FASTTokenizer",
    "kmeans": "action_tokenizers.tokenizers.kmeans:KMeansTokenizer",
    "preset": "action_tokenizers.tokenizers.presets:PresetTokenizer",
    "published_fast": "action_tokenizers.tokenizers.published_fast:PublishedFASTTokenizer",
    "residual_vq": "action_tokenizers.tokenizers.residual_vq:ResidualVQTokenizer",
    "trap": "action_tokenizers.diagnostics.known:TrapTokenizer",
}
# the built-in types that can be fitted on any data with their defaults
FAMILIES = ("binning", "fast", "kmeans", "residual_vq")

_classes: dict[str, type] = {}


def register(name: str, cls: type) -> None:
    """Let `name` mean `cls`; defining the same class anew (a notebook cell run twice) replaces it.

    Raises:
        ActionTokenizerError: another class holds the name.
    """
    place = f"{cls.__module__}:{cls.__qualname__}"
    held = BUILT_IN.get(name) or (
        f"{_classes[name].__module__}:{_classes[name].__qualname__}" if name in _classes else place
    )
    if held != place:
        raise ActionTokenizerError(f"tokenizer type {name!r} is already {held}; give {place} another name")
    _classes[name] = cls


def known_types() -> dict[str, str]:
    """Return every known type name with where it comes from, sorted."""
    found = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    found.update({name: f"{cls.__module__}:{cls.__qualname__}" for name, cls in _classes.items()})
    return dict(sorted((found | BUILT_IN).items()))


def tokenizer_class(name: str, *, distribution: str | None = None) -> type:
    """Return the class of a tokenizer type.

    Args:
        name: the type, as in an artifact's `tokenizer_type`.
        distribution: what wrote the artifact, for the error's advice.

    Raises:
        UnknownTokenizerError: nobody here knows the name; lists who is known.
    """
    if name not in _classes:
        if name in BUILT_IN:
            module, _, attribute = BUILT_IN[name].partition(":")
            _classes[name] = getattr(import_module(module), attribute)
        else:
            for entry in entry_points(group=GROUP, name=name):
                register(name, entry.load())
    if name not in _classes:
        advice = f"; it was written by {distribution}: install that" if distribution else ""
        raise UnknownTokenizerError(f"expected a tokenizer type among {list(known_types())}, got {name!r}{advice}")
    return _classes[name]
