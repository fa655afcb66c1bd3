"""Tokenizers: text to token ids and back, and the bytes of every token for the device.

Three kinds behind one interface: SentencePiece (Gemma2's file, and the tiny ones trained here), Llama3's
`tokenizer.model` (ranks in tiktoken's form), and the `tokenizer.json` of a Hugging Face folder. Each uses the library
of its publisher.
"""

import abc
import base64
import binascii
import functools
import io
import json
import logging
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
from etils.epath import Path
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from premem_jax import strict_json
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

# Gemma2 declares its markers as symbols that SentencePiece finds in plain text, as it does "<table>" or many spaces.
GEMMA_MARKERS = re.compile(r"<mask>|<2mass>|<unused\d+>|<(start|end)_of_turn>|\[@BOS@\]|\[toxicity=0\]")

# Markers in texts that were made with a chat template or decoded with its markers.
CONTROL = re.compile(r"<\|[a-z0-9_]+\|>|</?s>|<(bos|eos|pad|unk|start_of_turn|end_of_turn)>")

# Per family, the names of (bos, eos, pad) in a tokenizer.json.
JSON_MARKERS = (
    ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_2|>"),
    ("<bos>", "<eos>", "<pad>"),
)
LOSSLESS = "  A b\n\n\tx 12345 '\u017fe\u0301\u00e9\u2211\U0001f9ff<bos><eos><pad><start_of_turn><|end_of_text|>\r\n "


class Tokenizer(abc.ABC):
    """A vocabulary. Text is never read as a control token: only this class adds the start and stop markers.

    `model` holds the bytes of its file, all that a run has to keep. Targets end in `eos_id`; responses end at any of
    `eos_ids`.
    """

    model: bytes
    file = "tokenizer.model"  # the name under which others look for it
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    also_stop: tuple[int, ...] = ()  # markers that the model's own files name

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_id, *(i for i in self.also_stop if i != self.eos_id))

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
        write_bytes(kept, tokenizer.model)
        return tokenizer

    def encode_pair(self, prompt: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """One row of `encode_pairs`."""
        return self.encode_pairs([(prompt, target)])[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of prompts (with the start marker) and of their targets (with the stop marker).

        A pair is tokenized as one text, so that training, scoring and sampling use the same tokens. The target begins
        with the first token that holds any of its text. If that token also holds the end of the prompt, it counts as
        target: the likelihood is that of the whole token, and sampling starts before it, so a response begins with the
        prompt's last characters. A warning counts the rows whose prompt alone has other tokens. In GSM8K and MATH, with
        Llama3 and Gemma2, these are nearly all rows if prompts end in a space, and none if they end in a newline, or in
        "Answer:" before a target that begins with a space. The prompt is never empty.

        Raises:
          UserError: a text has a lone surrogate (as from `\\ud800` in JSON).
        """
        for text in (text for pair in pairs for text in pair):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                shown = text[max(0, error.start - 20) : error.end + 20]
                raise UserError(f"text with a lone surrogate, which no tokenizer can hold: {shown!r}") from error
        if spelt := sum(bool(CONTROL.search(text)) for pair in pairs for text in pair):
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
            rows = [self.bos_id, *joint[:cut]], [*joint[cut:], self.eos_id]
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
        table = self._table
        return b"".join(table[i] for i in ids if 0 <= i < len(table)).decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        """The bytes of each token (V,); empty for control and unknown tokens."""
        return list(self._table)

    @functools.cached_property
    def _table(self) -> list[bytes]:
        return self._token_bytes()

    def pieces(self) -> dict[str, int] | None:
        """The id of each token by its name; None where tokens are bytes and have none."""
        return None

    @abc.abstractmethod
    def _token_bytes(self) -> list[bytes]: ...

    @abc.abstractmethod
    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without markers."""

    @abc.abstractmethod
    def _seam(self, prompt: str, target: str) -> int:
        """Number of leading tokens of `prompt + target` that hold nothing of the target."""


class SentencePiece(Tokenizer):
    """A SentencePiece model. U+2581, its sign for a space, comes back as a space."""

    def __init__(self, model: bytes):
        try:
            proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        except DecodeError as error:
            raise UserError("a SentencePiece model that ends or breaks in the middle") from error
        if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
            raise UserError("a SentencePiece model without its trainer and normalizer: cut off, or not a model")
        if any(isinstance(piece.piece, bytes) for piece in proto.pieces):
            raise UserError("a SentencePiece model with a piece that is not UTF-8: damaged")
        markers = [piece for piece in proto.pieces if GEMMA_MARKERS.fullmatch(piece.piece)]
        for piece in markers:
            if piece.type == piece.USER_DEFINED:
                piece.type = piece.CONTROL
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString() if markers else model)
        except RuntimeError as error:
            raise UserError(f"not a SentencePiece model ({error})") from error
        self.model, self._pieces = model, pieces
        self.vocab_size = pieces.vocab_size()
        self.pad_id, self.eos_id, self.bos_id = (getattr(pieces, f"{name}_id")() for name in ("pad", "eos", "bos"))
        if min(self.pad_id, self.eos_id, self.bos_id) < 0:
            raise UserError("a SentencePiece model without pad, eos and bos pieces; Gemma's has them")

    def _ids(self, texts):
        return self._pieces.encode(texts)

    def _seam(self, prompt, target):
        return _before(self._pieces.encode(prompt + target, return_type="offset_mapping")["offsets"], len(prompt))

    def decode(self, ids) -> str:
        return self._pieces.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def pieces(self):
        return {self._pieces.id_to_piece(i): i for i in range(self.vocab_size)}

    def _token_bytes(self):
        pieces = self._pieces
        silent = lambda i: pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i)
        return [b"" if silent(i) else _piece_bytes(pieces.id_to_piece(i)) for i in range(self.vocab_size)]


class Llama3(Tokenizer):
    """Llama3's `tokenizer.model`: 128,000 byte-pair tokens in the order of their merging, then 256 control tokens."""

    def __init__(self, model: bytes):
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
        self.model = model
        self._bpe = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._ranks = list(ranks)
        self.vocab_size = LLAMA3_RANKS + LLAMA3_SPECIAL
        self.bos_id, self.eos_id, self.pad_id = LLAMA3_RANKS, LLAMA3_RANKS + 1, LLAMA3_RANKS + 4

    def _ids(self, texts):
        return self._bpe.encode_ordinary_batch(texts)

    def _seam(self, prompt, target):
        sizes = [len(self._table[i]) for i in self._bpe.encode_ordinary(prompt + target)]
        return int(np.searchsorted(np.cumsum(sizes), len(prompt.encode()), "right"))

    def _token_bytes(self):
        return self._ranks + [b""] * LLAMA3_SPECIAL


class HuggingFace(Tokenizer):
    """The `tokenizer.json` of Llama3 (byte-level) or Gemma2 (byte fallback, where U+2581 comes back as a space).

    The file's settings for padding, truncation and markers are ignored: batches and markers are made here.
    """

    file = "tokenizer.json"

    def __init__(self, model: bytes):
        spec = strict_json.loads(model, self.file)
        try:
            self._control = _only_text(spec)
            self._bpe = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except UserError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"JSON, but no byte-pair tokenizer.json ({type(error).__name__} {error}); tokenizer_config.json and "
                "special_tokens_map.json are other files"
            ) from error
        self._bpe.encode_special_tokens = True  # in the library's words: their names in a text are encoded as text
        self.model = model
        named = next((names for names in JSON_MARKERS if all(name in self._control for name in names)), None)
        if named is None:
            raise UserError("a tokenizer.json with the markers of neither Llama3 nor Gemma2")
        self.bos_id, self.eos_id, self.pad_id = (self._control[name] for name in named)
        self._vocabulary = self._bpe.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        self._plain = {token["content"] for token in spec["added_tokens"]}
        self._byte_level = "ByteLevel" in json.dumps(spec.get("pre_tokenizer"))
        (ids,) = self._ids([LOSSLESS])
        try:
            text = self.decode(ids)
        except KeyError as error:
            raise UserError(f"a byte-level tokenizer.json with a token that holds {error}: damaged") from error
        if text != LOSSLESS:
            raise UserError(f"a tokenizer.json that does not give text back: {LOSSLESS!r} as {text!r}")

    def _ids(self, texts):
        return [out.ids for out in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def _seam(self, prompt, target):
        return _before(self._bpe.encode(prompt + target, add_special_tokens=False).offsets, len(prompt))

    def pieces(self):
        return self._vocabulary

    def _token_bytes(self):
        table = [b""] * self.vocab_size
        for piece, i in self._vocabulary.items():
            if piece in self._control or piece == "<unk>":
                continue
            letters = self._byte_level and piece not in self._plain
            table[i] = bytes(BYTE_OF_LETTER[letter] for letter in piece) if letters else _piece_bytes(piece)
        return table


def _only_text(spec: dict) -> dict[str, int]:
    """Changes a tokenizer.json so that text never gives control tokens; returns the ids of these."""
    for token in spec["added_tokens"]:
        token["special"] = token["special"] or bool(GEMMA_MARKERS.fullmatch(token["content"]))
    control = {token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]}
    # Gemma's vocabulary lists the markers, too; without the merges that make them no text can spell one.
    joined = lambda merge: "".join(merge.split(" ") if isinstance(merge, str) else merge)
    spec["model"]["merges"] = [merge for merge in spec["model"]["merges"] if joined(merge) not in control]
    spec |= dict(truncation=None, padding=None, post_processor=None)
    return control


def load(path: str | Path) -> Tokenizer:
    """Loads the tokenizer in a file or in a Hugging Face folder. Its content decides the kind, not its name.

    Raises:
      UserError: no such file, or not a complete tokenizer of a known kind.
    """
    file = storage.path(path)
    if file.is_dir():
        names = ("tokenizer.model", "tokenizer.json", "original/tokenizer.model")
        found = [file / name for name in names if (file / name).is_file()]
        if not found:
            raise UserError(f"tokenizer.path={path}: the folder has none of {', '.join(names)}")
        path = file = found[0]
        if found[0].name == "tokenizer.model" and len(found) > 1 and found[1].name == "tokenizer.json":
            path = file = _decisive(*found[:2])
    try:
        model = file.read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer.path={path}: cannot be read ({error.strerror or error})") from error
    try:
        made = _kind(model)(model)
        if file.name == made.file:
            _check_added(file.parent, made)
        return made
    except UserError as error:
        raise UserError(f"{path} is no tokenizer to work with: {error}") from error


def _check_added(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if a file beside it adds a token that the tokenizer lacks: `transformers` would know it."""
    for name in ("added_tokens.json", "tokenizer_config.json"):
        if not (folder / name).is_file() or (pieces := tokenizer.pieces()) is None:
            continue
        said = strict_json.loads((folder / name).read_bytes(), name)
        try:
            if name == "tokenizer_config.json":
                said = {token["content"]: int(i) for i, token in (said.get("added_tokens_decoder") or {}).items()}
            said = dict(said.items())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name} has no object of added tokens and their ids") from error
        if other := [token for token, i in said.items() if pieces.get(token) != i]:
            raise UserError(
                f"{name} says that {other[0]!r:.80} is token {said[other[0]]!r:.20}, and {tokenizer.file} "
                f"{pieces.get(other[0], 'has none')}; keep the files of one tokenizer"
            )


def _decisive(pieces: Path, spec: Path) -> Path:
    """Of two files of a tokenizer, the second, as in `transformers`, unless both have the same tokens."""
    said = strict_json.loads(spec.read_bytes(), str(spec))
    try:
        theirs = dict(said["model"]["vocab"]) | {token["content"]: token["id"] for token in said["added_tokens"]}
        model = pieces.read_bytes()
        if _kind(model) is not SentencePiece:
            return spec
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except (TypeError, KeyError, ValueError, DecodeError, UserError):
        return spec
    return pieces if theirs == {piece.piece: i for i, piece in enumerate(proto.pieces)} else spec


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


def _before(offsets: list[tuple[int, int]], border: int) -> int:
    """Number of tokens before the first one that reaches past `border`."""
    return next((i for i, (_, end) in enumerate(offsets) if end > border), len(offsets))


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
