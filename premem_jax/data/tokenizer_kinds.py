"""Three kinds of tokenizers, each through the library of its publisher.

SentencePiece (of Gemma2, of Llama2, and the tiny ones trained here), Llama3's `tokenizer.model` (ranks in tiktoken's
form), and the `tokenizer.json` of a Hugging Face folder.
"""

import base64
import binascii
import json
import logging
import re
import unicodedata
from collections.abc import Mapping

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from premem_jax import strict_json
from premem_jax.data import markers
from premem_jax.data.markers import GEMMA_MARKERS
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError

log = logging.getLogger(__name__)

NOTHING: Mapping = {}  # is said of the markers

# Llama3: pattern and special ids of the tokenizer in meta-llama/llama3. It has no pad token; 128004 is the one that
# Llama 3.1 calls `<|finetune_right_pad_id|>`, reserved in Llama 3.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_RANKS, LLAMA3_SPECIAL = 128_000, 256
LLAMA3_NAMED = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}

HELD = set("Ab12345x")  # characters for which every tokenizer must have some token, be it one of unknown text
LOSSLESS = "  A b\n\n\tx 12345 '\u017fe\u0301\u00e9\u2211\U0001f9ff<bos><eos><pad><start_of_turn><|end_of_text|>\r\n "


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
