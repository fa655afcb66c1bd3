"""A tokenizer from a file, from a Hugging Face folder, from a run's own copy, or trained on texts."""

import io
import json
import re
from collections.abc import Iterable

import sentencepiece
from etils.epath import Path
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from premem_jax import strict_json
from premem_jax.data import markers
from premem_jax.data.tokenizer_kinds import HuggingFace, Llama3, SentencePiece
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.running import storage
from premem_jax.running.atomic import write_bytes

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


def load_or_train(kept: Path, texts: Iterable[str], *, kind: str, vocab_size: int, path: str = "") -> Tokenizer:
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
