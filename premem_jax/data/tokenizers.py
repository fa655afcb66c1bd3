"""Tokenizers: text to token ids and back, and the bytes of every token for the device.

Three kinds behind one interface: SentencePiece (of Gemma2, of Llama2, and the tiny ones trained here), Llama3's
`tokenizer.model` (ranks in tiktoken's form), and the `tokenizer.json` of a Hugging Face folder. Each uses the library
of its publisher. `data/markers.py` says which tokens start, end and control a text.
"""

import abc
import base64
import binascii
import functools
import hashlib
import io
import itertools
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
from etils.epath import Path
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from premem_jax import strict_json
from premem_jax.data import markers
from premem_jax.data.markers import GEMMA_MARKERS
from premem_jax.errors import UserError
from premem_jax.running import storage
from premem_jax.running.atomic import write_bytes

log = logging.getLogger(__name__)

# Word pieces ("▁apples", "▁17") for closed vocabularies; byte-pair pieces for free text.
TRAINING = {
    "word": dict(model_type="word", add_dummy_prefix=True, remove_extra_whitespaces=True),
    "bpe": dict(
        model_type="bpe",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
    ),
}

# Llama3: pattern and special ids of the tokenizer in meta-llama/llama3. It has no pad token; 128004 is the one that
# Llama 3.1 calls `<|finetune_right_pad_id|>`, reserved in Llama 3.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_RANKS, LLAMA3_SPECIAL = 128_000, 256

# Markers in texts that were made with a chat template or decoded with its markers.
CONTROL = re.compile(r"<\|[a-z0-9_]+\|>|</?s>|<(bos|eos|pad|unk|start_of_turn|end_of_turn)>")

KINDS = ("bos", "eos", "pad")
NOTHING: Mapping = {}  # is said of the markers
LLAMA3_NAMED = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
HELD = set("Ab12345x")  # characters for which every tokenizer must have some token, be it one of unknown text
LOSSLESS = "  A b\n\n\tx 12345 '\u017fe\u0301\u00e9\u2211\U0001f9ff<bos><eos><pad><start_of_turn><|end_of_text|>\r\n "


class Tokenizer(abc.ABC):
    """A vocabulary. Text is never read as a control token, unless by its private spelling (`markers.py`).

    `model` holds the bytes of its file and `said` what the files beside it say of its markers: all that a run has to
    keep. Texts begin with `start_ids`, which may be none; targets end in `eos_id`; responses end at any of `eos_ids`.
    `control` has the ids of control tokens by name.
    """

    model: bytes
    said: Mapping
    file = "tokenizer.model"  # the name under which others look for it
    vocab_size: int
    pad_id: int
    bos_id: int | None
    eos_id: int
    start_ids: tuple[int, ...]
    control: Mapping[str, int]
    also_stop: tuple[int, ...] = ()  # markers that the model's own files name

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((self.eos_id, *self.also_stop)))

    @property
    def checksum(self) -> str:
        """SHA-256 of all that the ids of a text depend on."""
        said = json.dumps(self.said, sort_keys=True).encode() if self.said else b""
        return hashlib.sha256(self.model + said).hexdigest()

    @staticmethod
    def load_or_train(kept: Path, texts: Iterable[str], *, kind: str, vocab_size: int, path: str = "") -> "Tokenizer":
        """The tokenizer of a run, from its copy `kept`; on first use, copied from `path` or trained on `texts`.

        `kind` and `vocab_size` are settings for training, ignored if `path` is given.

        Raises:
          UserError: as `load` and `train`.
        """
        if kept.exists():
            try:
                return load(kept)
            except UserError as error:
                raise UserError(f"{error}; it is the run's own copy, delete it to make it again") from error
        tokenizer = load(path) if path else SentencePiece(train(texts, kind=kind, vocab_size=vocab_size))
        beside = kept.parent / markers.SETTINGS
        if tokenizer.said:
            write_bytes(beside, (json.dumps(tokenizer.said, indent=2) + "\n").encode())
        elif beside.exists():
            beside.unlink()
        write_bytes(kept, tokenizer.model)
        return tokenizer

    def in_turns(self, end: int | None) -> None:
        """From here on texts are a template's: nothing is put in front, and targets end in `end`, if there is one."""
        self.start_ids = ()
        if end is not None:
            self.also_stop, self.eos_id = (*self.also_stop, self.eos_id), end

    def _set_markers(self, vocabulary: Mapping[str, int], known: Sequence[int | None], prefix=None) -> None:
        """Sets bos, eos, pad and start: as the folder says and, where it does not, as `known` (bos, eos, pad)."""
        said = self.said
        named = [vocabulary.get(said.get(f"{key}_token"), default) for key, default in zip(KINDS, known, strict=True)]
        for key in KINDS[:2]:
            if said.get(f"{key}_token", next(iter(vocabulary))) not in vocabulary:
                raise UserError(f"{key}_token={said[f'{key}_token']!r} of {markers.SETTINGS} is not in the vocabulary")
        self.bos_id, self.eos_id, self.pad_id = named
        if self.eos_id is None and type(said.get("eos_token_id")) is int:
            self.eos_id = said["eos_token_id"]
        if self.eos_id is None or not 0 <= self.eos_id < self.vocab_size:
            raise UserError(f"no end of text is named; give eos_token in a {markers.SETTINGS} beside the file")
        self.pad_id = self.eos_id if self.pad_id is None else self.pad_id
        self.start_ids = markers.start(said, self.bos_id, prefix)

    def encode_pair(self, prompt: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """One row of `encode_pairs`."""
        return self.encode_pairs([(prompt, target)])[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of prompts (with the start marker, if any) and of their targets (with the stop marker).

        A pair is tokenized as one text, so that training, scoring and sampling use the same tokens. The target begins
        with the first token that holds any of its text. If that token also holds the end of the prompt, it counts as
        target: the likelihood is that of the whole token, and sampling starts before it, so a response begins with the
        prompt's last characters. A warning counts the rows whose prompt alone has other tokens. In GSM8K and MATH, with
        Llama3 and Gemma2, these are nearly all rows if prompts end in a space, and none if they end in a newline, or in
        "Answer:" before a target that begins with a space. The prompt is never empty: where a tokenizer has no start
        marker and the target takes all of it, the end of another text stands in front.

        Raises:
          UserError: a text has a lone surrogate (as from `\\ud800` in JSON).
        """
        for text in (text for pair in pairs for text in pair):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                shown = text[max(0, error.start - 20) : error.end + 20]
                raise UserError(f"text with a lone surrogate, which no tokenizer can hold: {shown!r}") from error
        plain = lambda text: markers.PRIVATE.sub("", text)
        if spelt := sum(bool(CONTROL.search(plain(text))) for pair in pairs for text in pair):
            log.warning(
                "%d of %d prompts and targets spell control tokens, as <eos> or <|eot_id|>. They are read as text; "
                "transformers would read them as the tokens, so remove them, or expect other ids there",
                spelt,
                2 * len(pairs),
            )
        joint_E, alone_E = self._ids([p + t for p, t in pairs]), self._ids([p for p, _ in pairs])
        encoded, moved = [], 0
        for (prompt, target), joint, alone in zip(pairs, joint_E, alone_E, strict=True):
            cut = len(alone)
            if alone != joint[:cut]:
                cut = self._seam(prompt, target)
                moved += 1
            rows = [*self.start_ids, *joint[:cut]] or [self.eos_id], [*joint[cut:], self.eos_id]
            encoded.append(tuple(np.array(ids, np.int32) for ids in rows))
        if moved:
            log.warning(
                "%d of %d prompts have other tokens when their targets follow. A token across the seam counts as "
                "target, and sampling starts before it; begin targets with a space, or end prompts with a newline",
                moved,
                len(pairs),
            )
        return encoded

    def decode(self, ids) -> str:
        """The text of token `ids`; control tokens have none, and invalid UTF-8 becomes U+FFFD."""
        return self.spell(ids).decode("utf-8", "replace")

    def spell(self, ids) -> bytes:
        """The bytes of the text of token `ids`."""
        table = self._table
        return b"".join(table[i] for i in ids if 0 <= i < len(table))

    def shown(self, ids) -> str:
        """The text of token `ids` with the names of control tokens, for people."""
        names = {id: name for name, id in self.control.items()}
        groups = [(named, list(group)) for named, group in itertools.groupby(map(int, ids), names.__contains__)]
        return "".join("".join(map(names.get, group)) if named else self.decode(group) for named, group in groups)

    def token_bytes(self) -> list[bytes] | None:
        """The bytes of each token (V,), empty for control and unknown tokens; None where a text is more than these."""
        return None if self._table is None else list(self._table)

    @functools.cached_property
    def _table(self) -> list[bytes] | None:
        return self._token_bytes()

    def pieces(self) -> dict[str, int] | None:
        """The id of each token by its name; None where tokens are bytes and have none."""
        return None

    @abc.abstractmethod
    def _token_bytes(self) -> list[bytes] | None: ...

    @abc.abstractmethod
    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without markers in front or behind."""

    @abc.abstractmethod
    def _seam(self, prompt: str, target: str) -> int:
        """Number of leading tokens of `prompt + target` that hold nothing of the target."""

    def _apart(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The parts of a text: (a text, None), or (a private spelling, the id of its control token)."""
        at = 0
        for found in markers.PRIVATE.finditer(text):
            if found[1] in self.control:
                yield text[at : found.start()], None
                yield found[0], self.control[found[1]]
                at = found.end()
        yield text[at:], None


class SentencePiece(Tokenizer):
    """A SentencePiece model. U+2581, its sign for a space, comes back as a space."""

    def __init__(self, model: bytes, said: Mapping = NOTHING):
        try:
            proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        except DecodeError as error:
            raise UserError("a SentencePiece model that ends or breaks in the middle") from error
        if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
            raise UserError("a SentencePiece model without its trainer and normalizer: cut off, or not a model")
        if any(isinstance(piece.piece, bytes) for piece in proto.pieces):
            raise UserError("a SentencePiece model with a piece that is not UTF-8: damaged")
        changed = _declare(proto, said)
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString() if changed else model)
        except RuntimeError as error:
            raise UserError(f"not a SentencePiece model ({error})") from error
        self.model, self.said, self._pieces = model, said, pieces
        self.vocab_size = pieces.vocab_size()
        self.control = {p.piece: i for i, p in enumerate(proto.pieces) if p.type == p.CONTROL}
        known = [i if i >= 0 else None for i in (pieces.bos_id(), pieces.eos_id(), pieces.pad_id())]
        self._set_markers({p.piece: i for i, p in enumerate(proto.pieces)}, known)

    def _ids(self, texts):
        if not any(markers.OPEN in text for text in texts):
            return self._pieces.encode(texts)
        each = lambda part, id: self._pieces.encode(part) if id is None else [id]
        return [[i for part in self._apart(text) for i in each(*part)] for text in texts]

    def _seam(self, prompt, target):
        ends, at = [], 0
        offsets = lambda text: self._pieces.encode(text, return_type="offset_mapping")["offsets"]
        for part, id in self._apart(prompt + target):
            ends += [at + end for _, end in offsets(part)] if id is None else [at + len(part)]
            at += len(part)
        return _before(ends, len(prompt))

    def decode(self, ids) -> str:
        return self._pieces.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def pieces(self):
        return {self._pieces.id_to_piece(i): i for i in range(self.vocab_size)}

    def _token_bytes(self):
        pieces = self._pieces
        silent = lambda i: pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i)
        return [b"" if silent(i) else _piece_bytes(pieces.id_to_piece(i)) for i in range(self.vocab_size)]


def _declare(proto, said: Mapping) -> bool:
    """Makes controls of Gemma's markers, and pieces of the tokens that a folder adds; whether any were there."""
    changed = False
    for piece in proto.pieces:
        if piece.type == piece.USER_DEFINED and GEMMA_MARKERS.fullmatch(piece.piece):
            piece.type, changed = piece.CONTROL, True
    for id, token in sorted(said.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        if int(id) == len(proto.pieces):
            piece = proto.pieces.add(piece=token["content"], score=0.0)
            piece.type, changed = piece.CONTROL if token.get("special") else piece.USER_DEFINED, True
    return changed


class Llama3(Tokenizer):
    """Llama3's `tokenizer.model`: 128,000 byte-pair tokens in the order of their merging, then 256 control tokens."""

    def __init__(self, model: bytes, said: Mapping = NOTHING):
        ranks = {}
        for number, line in enumerate(model.splitlines()):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as error:
                raise UserError(f"tiktoken ranks, but line {number + 1} is no token and rank: {line!r}") from error
        if list(ranks.values()) != list(range(LLAMA3_RANKS)):
            raise UserError(
                f"tiktoken ranks, but its {len(ranks)} tokens have not the ranks 0 to {LLAMA3_RANKS - 1} of Llama3 in "
                "order: cut off, or another model's"
            )
        if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            raise UserError(f"tiktoken ranks without tokens for the bytes {missing}")
        self.model, self.said = model, said
        self._bpe = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._ranks = list(ranks)
        self.vocab_size = LLAMA3_RANKS + LLAMA3_SPECIAL
        self.control = {name: LLAMA3_RANKS + i for i, name in enumerate(llama3_markers())}
        self._set_markers(self.control, [LLAMA3_RANKS + i for i in (0, 1, 4)])

    def _ids(self, texts):
        if not any(markers.OPEN in text for text in texts):
            return self._bpe.encode_ordinary_batch(texts)
        each = lambda part, id: self._bpe.encode_ordinary(part) if id is None else [id]
        return [[i for part in self._apart(text) for i in each(*part)] for text in texts]

    def _seam(self, prompt, target):
        sizes = []  # in bytes
        for part, id in self._apart(prompt + target):
            ids = self._bpe.encode_ordinary(part) if id is None else ()
            sizes += [len(self._table[i]) for i in ids] if id is None else [len(part.encode())]
        return int(np.searchsorted(np.cumsum(sizes), len(prompt.encode()), "right"))

    def _token_bytes(self):
        return self._ranks + [b""] * LLAMA3_SPECIAL


def llama3_markers() -> list[str]:
    """The names of Llama3's control tokens, in the order of their ids."""
    reserved = (f"reserved_special_token_{i}" for i in range(LLAMA3_SPECIAL))
    return [f"<|{LLAMA3_NAMED.get(i) or next(reserved)}|>" for i in range(LLAMA3_SPECIAL)]


class HuggingFace(Tokenizer):
    """A `tokenizer.json`: byte-level (Llama3, SmolLM2, Qwen), with U+2581 for spaces (Gemma2, Llama2), or another kind.

    The file's settings for padding and truncation are ignored: batches are made here. Tokens of another kind, such as
    WordPiece, make a text only together; they have no bytes, and the library gives the text.
    """

    file = "tokenizer.json"

    def __init__(self, model: bytes, said: Mapping = NOTHING):
        spec = strict_json.loads(model, self.file)
        try:
            processor = spec.get("post_processor")
            self.control = markers.only_private(spec, said)
            self._bpe = tokenizers.Tokenizer.from_str(json.dumps(spec))
            self._bpe.encode_special_tokens = False
            decoder = json.dumps(spec.get("decoder"), ensure_ascii=False)
        except UserError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"JSON, but no tokenizer.json ({type(error).__name__} {error}); tokenizer_config.json and "
                "special_tokens_map.json are other files"
            ) from error
        if lost := [name for name, id in self.control.items() if self._bpe.token_to_id(markers.private(name)) != id]:
            raise UserError(f"a tokenizer.json in which the added token {lost[0]!r} has not the id that it states")
        self.model, self.said = model, said
        self._vocabulary = self._bpe.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        self._plain = {token["content"] for token in spec["added_tokens"]}
        self._kind = next((kind for kind in ("ByteLevel", "ByteFallback", "▁") if kind in decoder), None)
        alone = not said.keys() - {"eos_token_id"}  # without the files that name bos, if there is one
        prefix = markers.prefix(processor) if processor else None if alone else ()
        self._set_markers(self._vocabulary | dict(self.control), markers.family(self.control, alone), prefix)
        self._check()

    def _check(self) -> None:
        """Warns of a file that changes texts. Raises UserError for one that drops characters."""
        encoded = self._bpe.encode(LOSSLESS, add_special_tokens=False)
        held = {LOSSLESS[i] for first, end in encoded.offsets for i in range(first, end)}
        try:
            text = self.decode(encoded.ids)
        except KeyError as error:
            raise UserError(f"a byte-level tokenizer.json with a token that holds {error}: damaged") from error
        if not held >= HELD or (self._kind == "ByteLevel" and "∑" not in text):
            raise UserError(f"a tokenizer.json that drops characters: {LOSSLESS!r} comes back as {text!r}")
        if text.removeprefix(" ") not in (same := {LOSSLESS, unicodedata.normalize("NFC", LOSSLESS)}) | {
            each.removeprefix(" ") for each in same
        }:
            log.warning("a tokenizer that changes texts: it gives %r back as %r", LOSSLESS, text)
        if self._table is None:
            log.warning("a tokenizer without bytes of each token: responses are graded on the host, not on the device")

    def decode(self, ids) -> str:
        return super().decode(ids) if self._table is not None else self._bpe.decode([int(i) for i in ids])

    def spell(self, ids) -> bytes:
        return super().spell(ids) if self._table is not None else self.decode(ids).encode()

    def _ids(self, texts):
        return [out.ids for out in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def _seam(self, prompt, target):
        offsets = self._bpe.encode(prompt + target, add_special_tokens=False).offsets
        return _before([end for _, end in offsets], len(prompt))

    def pieces(self):
        return {piece: i for piece, i in self._vocabulary.items() if i not in self.control.values()} | dict(
            self.control
        )

    def _token_bytes(self):
        if self._kind is None:
            return None
        silent, table = {*self.control.values()}, [b""] * self.vocab_size
        for piece, i in self._vocabulary.items():
            if i in silent or piece == "<unk>":
                continue
            letters = self._kind == "ByteLevel"
            if letters and piece in self._plain:
                table[i] = piece.encode()
            else:
                table[i] = bytes(BYTE_OF_LETTER[letter] for letter in piece) if letters else _piece_bytes(piece)
        ids = [i for i in self._bpe.encode(LOSSLESS, add_special_tokens=False).ids if table[i]]
        text = b"".join(table[i] for i in ids).decode("utf-8", "replace")
        return table if self._bpe.decode(ids, skip_special_tokens=False).lstrip(" ") == text.lstrip(" ") else None


def load(path: str | Path) -> Tokenizer:
    """Loads the tokenizer in a file or in a Hugging Face folder. Its content decides the kind, not its name.

    Raises:
      UserError: no such file, or not a complete tokenizer of a known kind.
    """
    file, said = storage.path(path), {}
    if file.is_dir():
        names = ("tokenizer.model", "tokenizer.json", "original/tokenizer.model")
        found = [file / name for name in names if (file / name).is_file()]
        if not found:
            raise UserError(f"tokenizer.path={path}: the folder has none of {', '.join(names)}")
        path = file = found[0]
        if found[0].name == "tokenizer.model" and len(found) > 1 and found[1].name == "tokenizer.json":
            file, said = _decisive(*found[:2])
            path = file
    try:
        model = file.read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer.path={path}: cannot be read ({error.strerror or error})") from error
    try:
        said = markers.read(file.parent) | said
        made = _kind(model)(model, said)
        if file.name == made.file:
            _check_added(file.parent, made)
        return made
    except UserError as error:
        raise UserError(f"{path} is no tokenizer to work with: {error}") from error


def _check_added(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if a file beside it adds a token that the tokenizer lacks: `transformers` would know it."""
    for name in ("added_tokens.json", markers.SETTINGS):
        if not (folder / name).is_file() or (pieces := tokenizer.pieces()) is None:
            continue
        said = strict_json.loads((folder / name).read_bytes(), name)
        try:
            if name == markers.SETTINGS:
                said = {token["content"]: int(i) for i, token in (said.get("added_tokens_decoder") or {}).items()}
            said = dict(said.items())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name} has no object of added tokens and their ids") from error
        if other := [token for token, i in said.items() if pieces.get(token) != i]:
            raise UserError(
                f"{name} says that {other[0]!r:.80} is token {said[other[0]]!r:.20}, and {tokenizer.file} "
                f"{pieces.get(other[0], 'has none')}; keep the files of one tokenizer"
            )


def _decisive(pieces: Path, spec: Path) -> tuple[Path, dict]:
    """Of two files of a tokenizer the second, as in `transformers`, unless both have the same tokens; and whether the
    second says that texts begin with bos. In front of a text that begins with a space, only the first puts another.
    """
    said = strict_json.loads(spec.read_bytes(), str(spec))
    try:
        theirs = dict(markers.vocabulary_of(said)) | {token["content"]: token["id"] for token in said["added_tokens"]}
        model = pieces.read_bytes()
        if _kind(model) is not SentencePiece:
            return spec, {}
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        spaced = proto.normalizer_spec.add_dummy_prefix and proto.trainer_spec.model_type != proto.trainer_spec.WORD
        if spaced or theirs != {piece.piece: i for i, piece in enumerate(proto.pieces)}:
            return spec, {}
        processor = said.get("post_processor")
        return pieces, dict(add_bos_token=bool(processor and markers.prefix(processor)))
    except (TypeError, KeyError, ValueError, DecodeError, UserError):
        return spec, {}


def _kind(model: bytes) -> type[Tokenizer]:
    if model.startswith(b"version https://git-lfs"):
        raise UserError("a Git LFS pointer instead of the file; fetch it with `git lfs pull`")
    if model.lstrip().startswith(b"{"):
        return HuggingFace
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", model):
        return Llama3
    if model.startswith(b"\x0a"):  # protobuf's tag of the first piece
        return SentencePiece
    raise UserError(f"neither SentencePiece, tiktoken ranks nor tokenizer.json; it begins with {model[:24]!r}")


def train(texts: Iterable[str], *, kind: str, vocab_size: int) -> bytes:
    """Trains a SentencePiece model on `texts`, deterministically. `vocab_size` is an upper bound.

    Raises:
      UserError: `kind` is not one of `TRAINING`, or the vocabulary is too small for the characters of the texts.
    """
    if kind not in TRAINING:
        raise UserError(f"tokenizer.kind={kind!r}: choose one of {', '.join(TRAINING)}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            num_threads=1,
            minloglevel=2,
            **TRAINING[kind],
        )
    except RuntimeError as error:  # its message is on one line, and ends with what there was
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}: no tokenizer can be trained ({error}); raise it"
        ) from error
    return model.getvalue()


def _before(ends: list[int], border: int) -> int:
    """Number of tokens before the first one that reaches past `border`, from where each ends."""
    return next((i for i, end in enumerate(ends) if end > border), len(ends))


def _piece_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece piece: `▁` is a space, `<0x0A>` a byte."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's mapping of bytes to letters, as in byte-level tokenizer.json files: visible Latin-1 is itself."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_letters()
