"""A stand-in for the published FAST processor, so that we can be measured beside it without its code.

The original lives on the Hub as remote code of `physical-intelligence/fast`. What follows is written from
the behaviour noted in our survey: DCT over time, scale, round, shift by the smallest coefficient, one
character per coefficient, byte-level BPE over the text. `tests/recipes/test_reference_fast.py` proves it:
every id and every decoded action of the golden vectors that the original processor made is reproduced.

What it keeps from the original, because a comparison must not flatter either side:

* a coefficient below the fitted range is clipped, one above it is not (its bytes may be outside the
  vocabulary and are then lost);
* ids that do not spell `horizon * action_dim` characters decode to an all-zero chunk (`failures` counts
  them; the original prints);
* `vocab_size` is what was asked for, `len(reference)` is what the training found;
* the alphabet of a fit is `chr(0..max-min)`, of which byte-level text never uses 68 symbols below 256: dead
  ids.

It leaves out the `transformers` wrapper around every call, so its speeds are a little better than the
original's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

__all__ = ["ReferenceFAST"]

MIN_FREQUENCY = 2
MAX_PIECE_LENGTH = 10_000

Floats = NDArray[np.floating]


@dataclass
class ReferenceFAST:
    """The published FAST algorithm over a byte-level BPE of the `tokenizers` library.

    Example:
        >>> chunks = np.random.default_rng(0).uniform(-1, 1, (20, 8, 2))
        >>> reference = ReferenceFAST.fit(list(chunks), vocab_size=300)
        >>> ids = reference.encode(chunks[:3])
        >>> float(abs(reference.decode(ids, 8, 2) - chunks[:3]).max()) < 0.2
        True
    """

    bpe: Tokenizer
    scale: float = 10.0
    min_token: int = 0
    vocab_size: int = 1024
    failures: int = field(default=0, init=False)

    @classmethod
    def from_folder(cls, path: str | Path) -> ReferenceFAST:
        """Load a published folder; newer ones keep tokenizer.json in `bpe_tokenizer/`."""
        folder = Path(path)
        config = json.loads((folder / "processor_config.json").read_text())
        places = [folder / "tokenizer.json", folder / "bpe_tokenizer" / "tokenizer.json"]
        tokenizer_file = next((place for place in places if place.is_file()), None)
        if tokenizer_file is None:
            raise FileNotFoundError(f"no tokenizer.json in {folder} nor in its bpe_tokenizer/ subfolder")
        return cls(
            Tokenizer.from_file(str(tokenizer_file)),
            scale=config["scale"],
            min_token=config["min_token"],
            vocab_size=config["vocab_size"],
        )

    @classmethod
    def fit(cls, chunks: Iterable[Floats], scale: float = 10, vocab_size: int = 1024) -> ReferenceFAST:
        """Learn alphabet and merges from chunks `(t, d)`, which may differ in `t`."""
        rounded = [_rounded_dct(np.asarray(chunk)[None], scale).ravel() for chunk in chunks]
        low = int(min(coefficients.min() for coefficients in rounded))
        high = int(max(coefficients.max() for coefficients in rounded))
        if high - low > vocab_size:
            raise ValueError(f"coefficients span {low}..{high}, more than the {vocab_size} ids asked for")

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        bpe.post_processor = processors.ByteLevel(trim_offsets=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_FREQUENCY,
            initial_alphabet=[chr(symbol) for symbol in range(high - low + 1)],
            max_token_length=MAX_PIECE_LENGTH,
            special_tokens=[],
            show_progress=False,
        )
        bpe.train_from_iterator((_text(coefficients - low) for coefficients in rounded), trainer=trainer)
        return cls(bpe, scale=scale, min_token=low, vocab_size=vocab_size)

    def encode(self, chunks: Floats) -> list[list[int]]:
        """Return the ids of the chunks `(n, t, d)` by one call of the BPE per chunk, as the original does."""
        return [self.bpe.encode(text).ids for text in self._texts(chunks)]

    def encode_batch(self, chunks: Floats) -> list[list[int]]:
        """Return the same ids by one call for all chunks, which the BPE spreads over the cores."""
        return [encoding.ids for encoding in self.bpe.encode_batch_fast(self._texts(chunks))]

    def decode(self, ids: Iterable[Sequence[int]], horizon: int, action_dim: int) -> NDArray[np.float64]:
        """Return actions `(n, t, d)`, decoding row by row; a row that does not fit becomes zeros."""
        rows = (self.bpe.decode(list(row), skip_special_tokens=False) for row in ids)
        return self._actions(rows, horizon, action_dim)

    def decode_batch(self, ids: Iterable[Sequence[int]], horizon: int, action_dim: int) -> NDArray[np.float64]:
        """Return the same actions with one call of the BPE for all rows."""
        rows = self.bpe.decode_batch([list(row) for row in ids], skip_special_tokens=False)
        return self._actions(rows, horizon, action_dim)

    def __len__(self) -> int:
        """The size that the vocabulary really has."""
        return self.bpe.get_vocab_size()

    def _texts(self, chunks: Floats) -> list[str]:
        shifted = _rounded_dct(np.asarray(chunks), self.scale) - self.min_token
        return [_text(row) for row in np.maximum(shifted, 0).reshape(len(shifted), -1)]

    def _actions(self, texts: Iterable[str], horizon: int, action_dim: int) -> NDArray[np.float64]:
        actions = []
        for text in texts:
            if len(text) == horizon * action_dim:
                coefficients = np.array([ord(character) for character in text], dtype=np.float64)
                coefficients = (coefficients + self.min_token).reshape(horizon, action_dim)
            else:
                self.failures += 1
                coefficients = np.zeros((horizon, action_dim))
            actions.append(idct(coefficients / self.scale, axis=0, norm="ortho"))
        return np.stack(actions) if actions else np.zeros((0, horizon, action_dim))


def _rounded_dct(chunks: Floats, scale: float) -> NDArray[np.int64]:
    """`(n, t, d)` actions to integers, in the precision that came in."""
    coefficients: Floats = dct(chunks, axis=1, norm="ortho")
    return np.around(coefficients * scale).astype(np.int64)


def _text(symbols: NDArray[np.int64]) -> str:
    """One character per coefficient; row-major over `(t, d)` puts all dims of the lowest frequency first."""
    return "".join(map(chr, symbols.tolist()))
