"""FAST: a DCT along time, coefficients rounded to integers, byte-pair encoding over the integers.

Pertsch et al. 2025 (arXiv:2501.09747). Unlike the published processor nothing passes through text: symbols are
integers, every id spans a known number of coefficients, and no coefficient is ever clipped or dropped.
"""

from __future__ import annotations  # those of inner functions would be built anew in every call

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer, Progress
from action_tokenizers.codecs.bpe_train import MergeTrainer, train_merges
from action_tokenizers.codecs.dct import coefficient_bound, dct_round, dct_weights, idct, idct_weights
from action_tokenizers.codecs.dct_bpe import decode_chunks, encode_chunks
from action_tokenizers.codecs.symbols import (
    Alphabet,
    Tables,
    alphabet_size,
    build_tables,
    choose_alphabet,
    count_values,
    decode_rows,
    encode_rows,
    pack_rows,
    parse_rows,
    to_symbols,
)
from action_tokenizers.codecs.threads import all_rows, over_rows
from action_tokenizers.doors import refuse_odd
from action_tokenizers.errors import ActionValueError, FormatError
from action_tokenizers.tokenizers.tokenizer_json import MOST_SYMBOLS, symbol_level

__all__ = ["FASTTokenizer"]

_Writer = Callable[[int, int, npt.NDArray[np.int32], npt.NDArray[np.int64]], int]

# chunks between two kernels, few enough to stay in cache
PIECE = 64
MOST_IDS = 1 << 20
MOST_HORIZON = 4096
MOST_COEFFICIENT = 1 << 20


class FASTTokenizer(ActionTokenizer, name="fast"):
    """Few ids for smooth chunks: low frequencies first, long runs of zeros in one id.

    Args:
        horizon: steps per chunk; None: from the data.
        range: see `ActionTokenizer`.
        scale: levels per unit of an orthonormal DCT coefficient: the quantization step is 1 / scale.
        vocab_size: most ids, pad included; fewer exist where the data hold no more pairs to merge.

    The DCT and the byte-pair encoding run on the CPU, on whatever device the actions come; so do their tensors.
    A repaired chunk keeps its valid prefix, that is its low frequencies; what is missing counts as zero, or as the
    mean of the data where not even frequency 0 was said.

    Example:
        >>> import numpy as np
        >>> phase = np.random.default_rng(0).uniform(0, 6, (200, 1, 3))
        >>> actions = np.sin(np.linspace(0, 3, 20)[:, None] + phase).astype(np.float32)
        >>> tokenizer = FASTTokenizer(vocab_size=512).fit(actions)
        >>> ids = tokenizer.encode(actions)
        >>> ids.shape[1] < 60, float(abs(tokenizer.decode(ids) - actions).mean()) < 0.05
        (True, True)
    """

    prefix_decodable = True
    size_names = frozenset({"alphabet", "radix", "merges"})
    own_steps: ClassVar[Mapping[str, frozenset[str]]] = {
        "_encode_actions": frozenset({"_coefficients"}),
        "_decode_whole": frozenset({"pad_id", "vocab_size"}),
    }
    decode_alone = """
        from scipy.fft import idct

        t, d, scale = config["fitted"]["horizon"], config["fitted"]["action_dim"], config["params"]["scale"]
        alphabet, merges, radix = tensors["alphabet"], tensors["merges"], config["fitted"]["sizes"]["radix"]
        bound = round(scale * t**0.5)
        low = len(alphabet) + (-(-(2 * bound + 1) // radix) if radix else 0)
        spell = lambda i: [i] if i < low + radix else [s for part in merges[i - low - radix] for s in spell(part)]
        values, digit = [], 0
        for symbol in (s for i in ids for s in spell(i)):
            if symbol < len(alphabet):
                values.append(alphabet[symbol])
            elif symbol < low:
                digit = symbol - len(alphabet)
            else:
                values.append(digit * radix + symbol - low - bound)
        z = idct(np.array(values).reshape(t, d) / scale, axis=0, norm="ortho")
        low, high = tensors["range.low"][0], tensors["range.high"][0]
        actions = low + (np.clip(z, -1, 1) + 1) / 2 * (high - low)
    """

    alphabet: torch.Tensor  # (m,) int32, coefficients that have a symbol, ascending
    merges: torch.Tensor  # (merges, 2) int32, ids that a merge joins
    neutral: torch.Tensor  # (d,) mean of the data: a dim whose frequency 0 is missing stands there

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = "quantile",
        scale: float = 10,
        vocab_size: int = 2048,
    ) -> None:
        super().__init__(horizon=horizon, range=range, scale=scale, vocab_size=vocab_size)

    @property
    def vocab_size(self) -> int:
        """Ids that exist: alphabet, merges and the pad."""
        self._fitted_range()
        return self._alphabet_size() + int(self._sizes["merges"]) + 1

    def _fixed_length(self) -> bool:
        return False

    def _alphabet_size(self) -> int:
        # the sizes alone decide it, so that a config says how wide a policy's head is
        return alphabet_size(self._sizes["alphabet"], self._bound(), self._sizes["radix"])

    def _bound(self) -> int:
        return coefficient_bound(self._horizon or 0, self._params["scale"])

    def _check_params(self) -> None:
        self._whole("vocab_size", 2, MOST_IDS)
        scale, horizon = self._positive("scale"), self._horizon or 1
        # the DCT is a matrix of horizon x horizon, the alphabet a table of all coefficients
        if horizon > MOST_HORIZON:
            raise ActionValueError(f"expected a horizon of at most {MOST_HORIZON} steps, got {horizon}")
        most = MOST_COEFFICIENT / horizon**0.5
        if scale > most:
            raise ActionValueError(f"expected scale <= {most:.0f} at horizon {horizon}, got {scale}")

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        if progress is not None:
            progress("dct", 0, 2)
        coefficients = self._coefficients(chunks.numpy())
        if progress is not None:
            progress("bpe", 1, 2)
        alphabet, pairs = self._learn(coefficients, self._whole("vocab_size") - 1)
        self._sizes = {"alphabet": len(alphabet.values), "radix": alphabet.radix, "merges": len(pairs)}
        self._allocate()
        self.alphabet.copy_(torch.from_numpy(alphabet.values))
        self.merges.copy_(torch.from_numpy(pairs))
        # chunks first: long rows fill vector instructions
        self.neutral.copy_(torch.from_numpy(chunks.numpy().mean(axis=0, dtype=np.float64).mean(axis=0)))

    def _learn(self, coefficients: npt.NDArray[np.int32], room: int) -> tuple[Alphabet, npt.NDArray[np.int32]]:
        """Choose the alphabet and the merges that fill `room` ids.

        A symbol for a rare value is worth as many ids as the value occurs, a merge as many as its pair does. So
        values rarer than the last merge give up their symbol, and more merges are learned instead.
        """
        counts, bound = count_values(coefficients, self._bound()), self._bound()

        def choose(least: int) -> Alphabet:
            try:
                return choose_alphabet(counts, room, least)
            except ValueError as error:
                raise ActionValueError(
                    f"expected vocab_size >= {error} and a pad, for coefficients within ±{bound} "
                    f"(scale {self._params['scale']}, horizon {self._horizon}), got {room + 1}"
                ) from error

        wide = choose(2)
        symbol = build_tables(wide, np.empty((0, 2), np.int32)).symbol
        merges = room - wide.size
        trainer = MergeTrainer(to_symbols(coefficients, symbol, bound), wide.size, merges + len(wide.values))
        pairs, seen = trainer.learn(merges)
        if len(pairs) < merges or not len(pairs):
            return wide, pairs
        is_rare = (counts[wide.values + bound] < seen[-1]) & (wide.values != 0)
        if seen[-1] <= 2 or not bool(is_rare.any()):
            return wide, pairs
        # no merge so far holds a rare value, so learning anew without them would begin with these same merges
        alphabet = choose(int(seen[-1]))
        retired = np.flatnonzero(~np.isin(wide.values, alphabet.values))
        if np.isin(pairs, retired).any():  # so little room that the digits drive out frequent values too
            symbol = build_tables(alphabet, np.empty((0, 2), np.int32)).symbol
            joined = to_symbols(coefficients, symbol, bound)
            return alphabet, train_merges(joined, alphabet.size, room - alphabet.size)[0]
        trainer.retire(retired)
        more, _ = trainer.learn(max(0, room - alphabet.size - merges))
        pairs = np.concatenate([pairs, more])[: room - alphabet.size]
        base = np.searchsorted(alphabet.values, wide.values[np.minimum(pairs, len(wide.values) - 1)])
        is_merge = pairs >= wide.size
        return alphabet, np.where(is_merge, pairs - wide.size + alphabet.size, base).astype(np.int32)

    def _allocate(self) -> None:
        sizes = self._sizes
        self.register_buffer("alphabet", torch.zeros(sizes["alphabet"], dtype=torch.int32))
        self.register_buffer("merges", torch.zeros(sizes["merges"], 2, dtype=torch.int32))
        self.register_buffer("neutral", torch.zeros(self._action_dim or 0, dtype=torch.float32))

    def _check_tensors(self) -> None:
        values, pairs = self.alphabet.cpu().numpy(), self.merges.cpu().numpy()
        base, bound = self._alphabet_size(), self._bound()
        digits = range(len(values), base)
        fine = (
            len(values) > 0
            and bool((np.diff(values) > 0).all())
            and abs(int(values[0])) <= bound
            and abs(int(values[-1])) <= bound
            and 0 in values
            and (self._sizes["radix"] > 0 or len(values) == 2 * bound + 1)
            and bool((pairs >= 0).all() and (pairs < np.arange(base, base + len(pairs))[:, None]).all())
            and not bool(np.isin(pairs, digits).any())
            and len(np.unique(pairs, axis=0)) == len(pairs)
            and bool((self.neutral.abs() <= 1).all())
        )
        # a chain of doublings would make ids longer than any chunk, and their tables larger than memory
        if not fine or not _spans_fit(base, pairs, (self._horizon or 0) * (self._action_dim or 0)):
            raise FormatError(
                "expected an ascending alphabet with 0 and merges of earlier ids that fit a chunk, got others; "
                "the file is damaged"
            )

    def _tables(self) -> Tables:
        """Return the kernels' arrays."""
        return self._tables_of(self._build_tables)

    def _build_tables(self) -> Tables:
        alphabet = Alphabet(self.alphabet.cpu().numpy(), self._bound(), self._sizes["radix"])
        return build_tables(alphabet, self.merges.cpu().numpy())

    def _coefficients(self, chunks: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        n, t, d = chunks.shape
        out = np.empty((n, t * d), np.int32)
        weights, bound = dct_weights(t, float(self._params["scale"])), self._bound()
        over_rows(lambda i, j: dct_round(chunks[i:j], weights, bound, out[i:j]), n, least=64)
        return out

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        coefficients, tables = self._coefficients(chunks.cpu().contiguous().numpy()), self._tables()
        coder = tables.coder

        def write(i: int, j: int, out: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> int:
            encode_rows(*coder, coefficients[i:j], out, lengths)
            return int(lengths.max(initial=0))

        return self._rows(chunks, tables, write)

    def _encode_actions(self, chunks: torch.Tensor, key: str | None) -> torch.Tensor:
        source, tables = chunks.cpu().contiguous().numpy(), self._tables()
        coder = tables.coder
        low, high = self._fitted_range().bounds(key)
        weights = dct_weights(chunks.shape[1], float(self._params["scale"]))
        all_finite: list[bool] = []

        def write(i: int, j: int, out: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> int:
            longest, finite = encode_chunks(*coder, source[i:j], low, high, weights, out, lengths)
            all_finite.append(finite)
            return int(longest)

        ids = self._rows(chunks, tables, write)
        if not all(all_finite):
            refuse_odd(chunks)
        return ids

    def _rows(self, chunks: torch.Tensor, tables: Tables, write: _Writer) -> torch.Tensor:
        """Return padded ids from a function that writes those of some chunks, and says how many the longest has."""
        n, t, d = chunks.shape
        width, pad = self._max_tokens(t, d), len(tables.span)
        # room for the longest rows there can be; only the memory that ids are written to is ever touched
        joined = np.empty(n * width, np.int32)
        lengths = np.empty(n, np.int64)
        blocks: list[tuple[int, int, int]] = []

        def encode(i: int, j: int) -> None:
            blocks.append((i, j, write(i, j, joined[i * width : j * width], lengths[i:j])))

        over_rows(encode, n, least=PIECE)
        ids = np.empty((n, max((longest for *_, longest in blocks), default=0)), np.int64)
        for i, j, _ in blocks:
            pack_rows(joined[i * width : j * width], lengths[i:j], pad, ids[i:j])
        return torch.from_numpy(ids).to(chunks.device)

    def _decode_whole(self, ids: torch.Tensor, horizon: int, action_dim: int, key: str | None) -> torch.Tensor | None:
        rows = ids.cpu().contiguous().numpy()
        out = np.empty((len(rows), horizon, action_dim), np.float32)
        tables, weights, scale = self._tables(), idct_weights(horizon), float(self._params["scale"])
        low, high = self._fitted_range().bounds(key)
        speller, pad = tables.speller, len(tables.span)

        def decode(i: int, j: int) -> bool:
            return decode_chunks(speller, rows[i:j], pad, weights, scale, low, high, out[i:j])

        return torch.from_numpy(out).to(ids.device) if all_rows(decode, len(rows), least=PIECE) else None

    def _parse(self, ids: torch.Tensor, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = ids.cpu().contiguous().numpy()
        kept, complete = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
        length, tables = horizon * action_dim, self._tables()
        over_rows(
            lambda i, j: parse_rows(tables, rows[i:j], length, kept[i:j], complete[i:j]),
            len(rows),
            least=1024,
        )
        return torch.from_numpy(kept).to(ids.device), torch.from_numpy(complete).to(ids.device)

    def _decode(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        rows, used = ids.cpu().contiguous().numpy(), kept.cpu().numpy()
        out = np.empty((len(rows), horizon, action_dim), np.float32)
        said = np.empty(len(rows), np.int64)
        tables, weights, scale = self._tables(), idct_weights(horizon), float(self._params["scale"])

        def part(i: int, j: int) -> None:
            coefficients = np.zeros((j - i, horizon * action_dim), np.int32)
            decode_rows(tables, rows[i:j], used[i:j], coefficients, said[i:j])
            idct(coefficients, weights, scale, out[i:j])

        over_rows(part, len(rows), least=PIECE)
        short = said < action_dim  # not even the frequency 0 of every dim
        missing = np.arange(action_dim) >= said[short, None]
        out[short] += np.where(missing, self.neutral.cpu().numpy(), np.float32(0))[:, None, :]
        return torch.from_numpy(out).to(ids.device)

    def _allowed(self, prefix: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        tables = self._tables()
        rows = prefix.cpu().numpy()
        v, last = self.vocab_size - 1, prefix.shape[1] - 1
        left = horizon * action_dim - tables.span[rows].sum(1)
        mask = np.zeros((len(rows), v + 1), np.bool_)
        mask[:, :v] = tables.span <= left[:, None]
        mask[:, tables.low : tables.first_merge] = False
        if last >= 0 and tables.radix:
            waits = (rows[:, last] >= tables.high) & (rows[:, last] < tables.low)
            digits = tables.value[rows[waits, last]]
            mask[waits] = False
            in_bound = digits[:, None] * tables.radix + np.arange(tables.radix) <= 2 * tables.bound
            mask[waits, tables.low : tables.first_merge] = in_bound
        return torch.from_numpy(mask).to(prefix.device)

    def _choices(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        tables = self._tables()
        rows, n = ids.cpu().numpy(), ids.shape[1]
        said = np.arange(n) < kept.cpu().numpy()[:, None]
        token = np.where(said, rows, 0)
        spans = np.where(said, tables.span[token], 0)
        left = horizon * action_dim - np.cumsum(spans, 1) + spans
        # ids that may start a coefficient: all but the low digits
        starts = np.delete(tables.span, np.arange(tables.low, tables.first_merge))
        choices = np.searchsorted(np.sort(starts), left, side="right")
        if tables.radix:
            is_low = (token >= tables.low) & (token < tables.first_merge)
            digit = tables.value[np.where(is_low, np.roll(token, 1, axis=1), 0)]
            choices = np.where(is_low, np.minimum(tables.radix, 2 * tables.bound + 1 - digit * tables.radix), choices)
        return torch.from_numpy(np.where(said, choices, 1)).to(ids.device)

    def _locate(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        tables = self._tables()
        rows = ids.cpu().numpy()
        said = np.arange(rows.shape[1]) < kept.cpu().numpy()[:, None]
        span = np.where(said, tables.span[np.where(said, rows, 0)], 0)
        begin = np.cumsum(span, 1) - span
        # a high digit spans nothing yet, a low one completes the coefficient that its high digit began
        dim = np.where((span > 1) & (action_dim > 1), -1, begin % action_dim)
        return torch.from_numpy(np.stack([np.full_like(begin, -1), dim, begin // action_dim], -1)).to(ids.device)

    def _more_files(self) -> dict[str, bytes]:
        base = self._alphabet_size()
        return {} if base > MOST_SYMBOLS else {"tokenizer.json": symbol_level(base, self.merges.cpu().numpy())}

    def _max_tokens(self, horizon: int, action_dim: int) -> int:
        return horizon * action_dim * (2 if self._sizes["radix"] else 1)


def _spans_fit(base: int, pairs: npt.NDArray[np.int32], most: int) -> bool:
    span = [1] * base
    for a, b in pairs.tolist():
        span.append(span[a] + span[b])
        if span[-1] > most:
            return False
    return True
