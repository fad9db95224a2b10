"""Fit, load, compare and audit the tokenizers that turn continuous robot actions into tokens."""

from action_tokenizers.base import ActionTokenizer
from action_tokenizers.data import ChunkSample, Episodes, Relative
from action_tokenizers.errors import (
    ActionShapeError,
    ActionTokenizerError,
    ActionValueError,
    FormatError,
    HubError,
    NotFittedError,
    TokenError,
    UnknownTokenizerError,
)
from action_tokenizers.ranges import Range
from action_tokenizers.tokenizers.binning import BinningTokenizer
from action_tokenizers.tokenizers.fast import FASTTokenizer
from action_tokenizers.tokenizers.kmeans import KMeansTokenizer
from action_tokenizers.tokenizers.residual_vq import ResidualVQTokenizer
from action_tokenizers.vocabulary import ActionVocabulary

__version__ = "0.1.0"

__all__ = [
    "ActionShapeError",
    "ActionTokenizer",
    "ActionTokenizerError",
    "ActionValueError",
    "ActionVocabulary",
    "BinningTokenizer",
    "ChunkSample",
    "Episodes",
    "FASTTokenizer",
    "FormatError",
    "HubError",
    "KMeansTokenizer",
    "NotFittedError",
    "Range",
    "Relative",
    "ResidualVQTokenizer",
    "TokenError",
    "UnknownTokenizerError",
    "__version__",
]
