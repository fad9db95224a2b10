"""Published FAST tokenizers (`physical-intelligence/fast` and refits of it), read from their JSON files.

Pertsch et al. 2025 (arXiv:2501.09747). Ids and actions equal those of the published processor, without its code:
the same DCT, the same byte-level BPE over coefficients written as text. What it does with a sequence that does not
decode, it does not do: no chunk of zeros, no actions hundreds of times too large.
"""

import copy
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch

from action_tokenizers.base import ActionTokenizer, Progress, range_of
from action_tokenizers.codecs.byte_bpe import (
    ByteTables,
    allowed_rows,
    build_byte_tables,
    choices_rows,
    decode_rows,
    encode_rows,
    locate_rows,
    parse_rows,
)
from action_tokenizers.codecs.byte_text import MOST_CHARACTER, write_characters
from action_tokenizers.codecs.dct import coefficient_bound, dct_matrix, idct, idct_weights
from action_tokenizers.codecs.symbols import pack_rows
from action_tokenizers.codecs.threads import over_rows
from action_tokenizers.data.sample import ChunkSample
from action_tokenizers.errors import ActionShapeError, ActionValueError, FormatError
from action_tokenizers.folder import write_folder
from action_tokenizers.ranges import OpenRange, Range
from action_tokenizers.tokenizers.tokenizer_json import read_byte_level, read_json_file, write_byte_level

__all__ = ["PublishedFASTTokenizer"]

CONFIG, PROCESSOR, TOKENIZER = "config.json", "processor_config.json", "tokenizer.json"
# releases of transformers differ in where they look for it
PLACES = (TOKENIZER, f"bpe_tokenizer/{TOKENIZER}")
PROCESSOR_CLASS = "UniversalActionProcessor"
REMOTE_CODE = "physical-intelligence/fast--processing_action_tokenizer.UniversalActionProcessor"
PIECE = 256
MOST_HORIZON = 4096
MOST_CHUNK_VALUES = 1 << 26
# far beyond any limit, and a DCT of such actions still sums to finite numbers
MOST_ACTION = 1e30


class PublishedFASTTokenizer(ActionTokenizer, name="published_fast"):
    """An imported FAST vocabulary; `ActionTokenizer.from_pretrained("physical-intelligence/fast")` returns one.

    It takes actions that are normalised already, as the published processor does, and neither clips nor clamps them,
    with one exception: it knows a `limit`. A coefficient that no chunk within ±limit can have is clipped at encode
    (as the original clips below its smallest one), and ids that stand for one are refused at decode. Values beyond
    what an unclipped chunk decodes to at most, the limit and half a rounding step per coefficient, are clamped to
    that: a sequence that no chunk encodes to may hold them. `with_range` adds the normaliser that the files lack.

    Args:
        horizon: steps per chunk; None: any.
        range: `open`, or a `Range` that maps actions to [-1, 1].
        scale: levels per unit of an orthonormal DCT coefficient.
        min_token: the coefficient that is written as the first character; smaller ones are clipped to it.
        vocab_size: what the published config says; the property says what is there.
        limit: the largest |action| to expect, in normalised units.

    What a damaged sequence does not say counts as zero, and such a chunk is clamped to ±limit.
    """

    prefix_decodable = True
    size_names = frozenset({"ids", "text", "merges"})
    decode_alone = """
        from scipy.fft import idct

        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in printable]
        byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}
        text, ends = bytes(tensors["tokens"]), tensors["ends"]
        entries = [text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends)]
        read = lambda e: bytes(byte_of[c] for c in e) if all(c in byte_of for c in e) else e.encode()
        characters = b"".join(read(entries[i]) for i in ids).decode()
        values = np.array([ord(c) for c in characters]) + config["params"]["min_token"]
        d = config["fitted"]["action_dim"] or 7  # dims of the chunk
        actions = idct(values.reshape(-1, d) / config["params"]["scale"], axis=0, norm="ortho")
        if config["params"]["range"] != "open":
            low, high = tensors["range.low"][0], tensors["range.high"][0]
            actions = low + (np.clip(actions, -1, 1) + 1) / 2 * (high - low)
    """

    tokens: torch.Tensor  # (text,) uint8, the vocabulary's entries as UTF-8, joined
    ends: torch.Tensor  # (v,) int64, where each entry ends
    merges: torch.Tensor  # (m, 3) int32, ids left, right and product, by rank

    def __init__(
        self,
        *,
        horizon: int | None = None,
        range: Any = "open",
        scale: float = 10,
        min_token: int = 0,
        vocab_size: int = 1024,
        limit: float = 5.0,
    ) -> None:
        super().__init__(
            horizon=horizon, range=range, scale=scale, min_token=min_token, vocab_size=vocab_size, limit=limit
        )

    @classmethod
    def from_published(cls, folder: str | os.PathLike[str], *, limit: float = 5.0) -> Self:
        """Read a published folder: `processor_config.json`, and `tokenizer.json` beside it or in `bpe_tokenizer/`.

        Args:
            folder: a local folder; `ActionTokenizer.from_pretrained` also takes the id of a Hub repository.
            limit: the largest |action| to expect, in normalised units.

        Raises:
            FormatError: a missing or damaged file, or a vocabulary that is not plain byte-level BPE; names the file.
            ActionValueError: a limit that is no finite number above 0.
        """
        path = Path(folder)
        if (path / CONFIG).is_file():
            raise FormatError(
                f"expected published FAST files in {path}, got a {CONFIG} too; from_pretrained loads ours"
            )
        config = read_json_file(path / PROCESSOR)
        file = next((path / place for place in PLACES if (path / place).is_file()), path / TOKENIZER)
        tokens, merges = read_byte_level(file)
        missing = [name for name in ("scale", "min_token") if name not in config]
        if missing:
            raise FormatError(f"expected {missing[0]} in {path / PROCESSOR}, got none; this is no FAST tokenizer")
        tokenizer = cls(
            horizon=config.get("time_horizon"),
            scale=config["scale"],
            min_token=config["min_token"],
            vocab_size=config.get("vocab_size", len(tokens)),
            limit=limit,
        )
        tokenizer._positive("limit")  # the caller's, not the file's
        try:
            with torch.device("cpu"):  # also where a policy is being built under another default device
                tokenizer._fill(tokens, merges, config.get("action_dim"))
        except (ActionValueError, ActionShapeError, OverflowError) as error:
            raise FormatError(f"expected the parameters of a FAST tokenizer in {path / PROCESSOR}: {error}") from error
        except FormatError as error:
            raise FormatError(f"{file}: {error}") from error
        return tokenizer

    def to_published(self, folder: str | os.PathLike[str]) -> Path:
        """Write the folder that other tools read: the published processor's files, with the same ids.

        The byte-pair encoding stands in the root and in `bpe_tokenizer/`, where older and newer transformers look.
        What the format has no place for stays behind: the limit and, if there is one, the range.

        Raises:
            FormatError: the folder holds a saved tokenizer, a model or a text tokenizer, whose files would be replaced.
        """
        tables = self._entries()
        encoding = write_byte_level(tables, self.merges.cpu().numpy())
        config = {
            "action_dim": self.action_dim,
            "auto_map": {"AutoProcessor": REMOTE_CODE},
            "min_token": self._params["min_token"],
            "processor_class": PROCESSOR_CLASS,
            "scale": self._params["scale"],
            "time_horizon": self.horizon,
            "vocab_size": self._params["vocab_size"],
        }
        wrapper = {
            "added_tokens_decoder": {},
            "clean_up_tokenization_spaces": False,
            "processor_class": PROCESSOR_CLASS,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        files: dict[str, bytes] = {}
        for place in PLACES:
            inside = place.removesuffix(TOKENIZER)
            files |= {
                place: encoding,
                f"{inside}tokenizer_config.json": _json(wrapper),
                f"{inside}special_tokens_map.json": _json({}),
            }
        files[PROCESSOR] = _json(config)
        held = [name for name in (CONFIG, *files) if (Path(folder) / name).exists()]
        if held and (CONFIG in held or not _is_published(Path(folder) / PROCESSOR)):
            raise FormatError(
                f"expected a new folder to export to, or an earlier export, got files of something else in {folder}, "
                f"which would be overwritten: {', '.join(held)}"
            )
        return write_folder(folder, files, ())

    def with_limit(self, limit: float) -> Self:
        """Return a copy that expects actions up to ±`limit`, in normalised units.

        Raises:
            ActionValueError: no finite number above 0, or one that no character can stand for.
        """
        other = copy.deepcopy(self)
        other._params["limit"] = limit
        other._check_params()
        other._settled()
        return other

    def with_range(self, range: Range | ChunkSample) -> Self:
        """Return a copy that maps actions to [-1, 1] by itself, clipped, as tokenizers fitted here do.

        Args:
            range: what becomes -1 and +1; or a sample of chunks, whose q01 and q99 do and whose source is remembered.

        Raises:
            ActionShapeError: a range of another action_dim than the tokenizer's.
            ActionValueError: no `Range`.
        """
        told = {}
        if isinstance(range, ChunkSample):
            told = self._provenance_of(range)
            range = range_of(range)
        if not isinstance(range, Range):
            raise ActionValueError(
                f"expected a Range or a ChunkSample, got a {type(range).__name__}; Range(low, high) makes one"
            )
        if self._action_dim not in (None, range.action_dim):
            raise ActionShapeError(f"expected a range of action_dim {self._action_dim}, got {range.action_dim}")
        other = copy.deepcopy(self)
        other._params["range"] = range
        other._action_dim = range.action_dim
        other._provenance = {**self._provenance, **told}
        other.range = Range(range.low, range.high, range.keys)
        other._beside.pop("audit.json", None)  # it measured another map
        return other

    def fit(self, data: Any, *, progress: Progress | None = None) -> NoReturn:
        """Refuse: an imported vocabulary is what it is."""
        raise ActionValueError(
            "expected no fit of an imported vocabulary, got one; fit a FASTTokenizer, or give this one a normaliser "
            "with with_range(Range(low, high))"
        )

    @property
    def vocab_size(self) -> int:
        """Ids of the published vocabulary, and the pad, which it does not have."""
        self._fitted_range()
        return int(self._sizes["ids"]) + 1

    def _fit(self, chunks: torch.Tensor, is_pad: torch.Tensor | None, progress: Progress | None) -> None:
        self.fit(chunks)

    def _fill(self, tokens: Sequence[str], merges: npt.NDArray[np.int32], action_dim: Any) -> None:
        """Become fitted, with the facts and tensors of a published folder."""
        text = "".join(tokens).encode()
        facts = {
            "horizon": self.asked_horizon,
            "action_dim": action_dim,
            "range_keys": ["default"],
            "sizes": {"ids": len(tokens), "text": len(text), "merges": len(merges)},
        }
        is_whole = isinstance(action_dim, int) and not isinstance(action_dim, bool)
        most = MOST_CHUNK_VALUES // (facts["horizon"] or 1)
        if action_dim is not None and not (is_whole and 0 < action_dim <= most):
            raise ActionShapeError(f"expected action_dim None or an integer in 1..{most}, got {action_dim!r}")
        from action_tokenizers import __version__

        self._restore(facts, {"library": f"action-tokenizers {__version__}", "imported": "published FAST folder"})
        self.tokens.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.ends.copy_(torch.tensor([len(token.encode()) for token in tokens]).cumsum(0))
        self.merges.copy_(torch.from_numpy(merges))
        self._check_loaded()

    def _needs_horizon(self) -> bool:
        return False

    @property
    def codes_steps_alone(self) -> bool:
        """False: a chunk of any horizon is transformed as a whole."""
        return False

    def _fixed_length(self) -> bool:
        return False

    def _settled(self) -> None:
        fitted = self._fitted_range()
        self.range = self._allocate_range(fitted.keys).to(fitted.low.device)

    def _allocate_range(self, keys: Sequence[str]) -> Range:
        if isinstance(self._params["range"], Range):
            return super()._allocate_range(keys)
        limits = torch.full((1, self._action_dim or 1), self._positive("limit"), dtype=torch.float32)
        return OpenRange(-limits, limits, keys)

    def _allocate(self) -> None:
        sizes = self._sizes
        self.register_buffer("tokens", torch.zeros(sizes["text"], dtype=torch.uint8))
        self.register_buffer("ends", torch.zeros(sizes["ids"], dtype=torch.int64))
        self.register_buffer("merges", torch.zeros(sizes["merges"], 3, dtype=torch.int32))

    def _check_params(self) -> None:
        if (self._horizon or 1) > MOST_HORIZON:
            raise ActionShapeError(f"expected a horizon of at most {MOST_HORIZON} steps, got {self._horizon}")
        self._whole("vocab_size", 1)
        self._positive("limit")
        if not isinstance(self._params["range"], Range) and self._params["range"] != "open":
            raise ActionValueError(f"expected range 'open' or a Range, got {self._params['range']!r}")
        low = self._params["min_token"]
        if isinstance(low, bool) or not isinstance(low, int) or not -MOST_CHARACTER <= low <= 0:
            raise ActionValueError(f"expected min_token an integer in -{MOST_CHARACTER}..0, got {low!r}")
        scale = self._positive("scale")
        if scale < 1e-6 or scale * self._params["limit"] > 1 << 20:
            raise ActionValueError(f"expected scale >= 1e-6 and scale * limit <= {1 << 20}, got scale {scale}")
        if (self._horizon or 1) > MOST_HORIZON:
            raise ActionValueError(f"expected a horizon of at most {MOST_HORIZON} steps, got {self._horizon}")

    def _check_tensors(self) -> None:
        ends, rows = self.ends.cpu().numpy(), self.merges.cpu().numpy()
        ascending = len(ends) > 0 and ends[0] > 0 and bool((np.diff(ends) > 0).all()) and ends[-1] == len(self.tokens)
        if not ascending or not bool(((rows >= 0) & (rows < len(ends))).all()):
            raise FormatError("expected entries that are not empty and merges of their ids, got others")
        try:
            entries = self._entries()
        except UnicodeDecodeError as error:
            raise FormatError(f"expected entries in UTF-8, got {error}") from error
        if len(set(entries)) < len(entries) or len(np.unique(rows[:, :2], axis=0)) < len(rows):
            raise FormatError("expected every entry and every merge once, got some twice")
        span = np.diff(ends, prepend=0)
        fits = bool((span[rows[:, 0]] + span[rows[:, 1]] == span[rows[:, 2]]).all())
        if not fits or any(entries[a] + entries[b] != entries[c] for a, b, c in rows.tolist()):
            raise FormatError("expected merges that join two entries to a third, got others")
        tables = self._tables()
        if tables.spelling[-self._params["min_token"], 0] < 0:
            raise FormatError("expected the bytes of the zero coefficient in the vocabulary, got none")
        if tables.begins_inside():
            raise FormatError("expected an entry for every byte that entries begin with, got none for some")
        fitted, limit = self._fitted_range(), torch.tensor(self._params["limit"], dtype=torch.float32)
        if isinstance(fitted, OpenRange) and not bool((fitted.high == limit).all() and (fitted.low == -limit).all()):
            raise FormatError(f"expected a range of ±{float(limit)}, the limit, got another")

    def _entries(self) -> list[str]:
        text, ends = self.tokens.cpu().numpy().tobytes(), [0, *self.ends.tolist()]
        return [text[a:b].decode() for a, b in pairwise(ends)]

    def _tables(self) -> ByteTables:
        """Return the kernels' arrays, built at the first call after a load."""
        return self._tables_of(lambda: build_byte_tables(self._entries(), self.merges.cpu().numpy()))

    def _limit(self) -> float:
        """The largest |z| to expect: 1 where a range maps there."""
        return 1.0 if isinstance(self._params["range"], Range) else float(self._params["limit"])

    def _characters(self, horizon: int) -> tuple[int, int]:
        """Return the first and the last character a coefficient can be."""
        if horizon > MOST_HORIZON:
            raise ActionShapeError(f"expected a horizon of at most {MOST_HORIZON} steps, got {horizon}")
        low, bound = self._params["min_token"], coefficient_bound(horizon, self._params["scale"], self._limit())
        return max(0, -bound - low), min(MOST_CHARACTER, bound - low)

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        from scipy.fft import dct

        source = chunks.cpu().numpy()
        n, t, d = source.shape
        tables, width, scale = self._tables(), self._max_tokens(t, d), np.float32(self._params["scale"])
        (low, high), shift = self._characters(t), self._params["min_token"]
        joined, lengths = np.empty(n * width, np.int32), np.empty(n, np.int64)
        blocks: list[tuple[int, int]] = []

        def encode(i: int, j: int) -> None:
            blocks.append((i, j))
            piece = np.empty((min(PIECE, j - i), t * d), np.int32)
            place = i * width
            for start in range(i, j, PIECE):
                stop = min(start + PIECE, j)
                part = np.clip(source[start:stop], -MOST_ACTION, MOST_ACTION)
                # float32 as it came: in another precision a near tie would round to another id than the original's
                coefficients = dct(part, axis=1, norm="ortho", overwrite_x=True).reshape(-1, t * d)
                characters = piece[: stop - start]
                write_characters(coefficients, scale, shift, low, high, characters)
                place += encode_rows(tables, characters, joined[place:], lengths[start:stop])

        over_rows(encode, n, least=PIECE)
        if n and lengths.min() < 0:
            raise ActionValueError(
                f"expected coefficients that this vocabulary can spell, got others in chunk {int(lengths.argmin())}: "
                "it was fitted on data that never held them; normalise and clip as for its training, or fit anew"
            )
        ids = np.empty((n, int(lengths.max()) if n else 0), np.int64)
        for i, j in blocks:
            pack_rows(joined[i * width :], lengths[i:j], self.vocab_size - 1, ids[i:j])
        return torch.from_numpy(ids).to(chunks.device)

    def _parse(self, ids: torch.Tensor, horizon: int, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = ids.cpu().contiguous().numpy()
        kept, complete = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
        reader, (low, high), n = self._tables().reader, self._characters(horizon), horizon * action_dim

        def parse(i: int, j: int) -> None:
            parse_rows(reader, rows[i:j], n, low, high, kept[i:j], complete[i:j])

        over_rows(parse, len(rows), least=PIECE)
        return torch.from_numpy(kept).to(ids.device), torch.from_numpy(complete).to(ids.device)

    def _decode(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        rows, used = ids.cpu().contiguous().numpy(), kept.cpu().numpy()
        t, d = horizon, action_dim
        out = np.empty((len(rows), t, d), np.float32)
        said = np.empty(len(rows), np.int64)
        reader, (low, high) = self._tables().reader, self._characters(t)
        matrix, weights = dct_matrix(t), idct_weights(t)
        scale, shift = float(self._params["scale"]), self._params["min_token"]

        def decode(i: int, j: int) -> None:
            coefficients = np.full((j - i, t * d), -shift, np.int32)
            decode_rows(reader, rows[i:j], used[i:j], low, high, coefficients, said[i:j])
            coefficients += shift
            idct(coefficients, weights, scale, out[i:j])

        over_rows(decode, len(rows), least=64)
        # a rounded coefficient is off by half a step at most, and a value by the sum of what they weigh in it
        overshoot = 0.5 / scale * float(np.abs(matrix).sum(0).max())
        most = np.where(said == t * d, self._limit() + overshoot, self._limit()).astype(np.float32)[:, None, None]
        return torch.from_numpy(np.clip(out, -most, most, out=out)).to(ids.device)

    def _allowed(self, prefix: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        rows = prefix.cpu().contiguous().numpy()
        mask = np.zeros((len(rows), self.vocab_size), np.bool_)
        reader, (low, high), n = self._tables().reader, self._characters(horizon), horizon * action_dim

        def allow(i: int, j: int) -> None:
            allowed_rows(reader, rows[i:j], n, low, high, mask[i:j])

        over_rows(allow, len(rows), least=4)
        return torch.from_numpy(mask).to(prefix.device)

    def _choices(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        rows, used = ids.cpu().contiguous().numpy(), kept.cpu().numpy()
        counts = np.ones(rows.shape, np.int64)
        reader, (low, high), n = self._tables().reader, self._characters(horizon), horizon * action_dim

        def count(i: int, j: int) -> None:
            choices_rows(reader, rows[i:j], used[i:j], n, low, high, counts[i:j])

        over_rows(count, len(rows), least=8)
        return torch.from_numpy(counts).to(ids.device)

    def _locate(self, ids: torch.Tensor, kept: torch.Tensor, horizon: int, action_dim: int) -> torch.Tensor:
        rows, used = ids.cpu().contiguous().numpy(), kept.cpu().numpy()
        first, span = np.zeros(rows.shape, np.int64), np.zeros(rows.shape, np.int64)
        reader, (low, high), n = self._tables().reader, self._characters(horizon), horizon * action_dim
        locate_rows(reader, rows, used, n, low, high, first, span)
        # an id that begins or ends inside a character is about that character too
        dim = np.where((span > 1) & (action_dim > 1), -1, first % action_dim)
        return torch.from_numpy(np.stack([np.full_like(first, -1), dim, first // action_dim], -1)).to(ids.device)

    def _max_tokens(self, horizon: int, action_dim: int) -> int:
        _, high = self._characters(horizon)
        return horizon * action_dim * (1 if high < 0x80 else 2 if high < 0x800 else 3)


def _is_published(file: Path) -> bool:
    try:
        return read_json_file(file).get("processor_class") == PROCESSOR_CLASS
    except FormatError:
        return False


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
