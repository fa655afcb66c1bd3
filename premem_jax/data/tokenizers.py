"""Text to token ids and back, and what the device needs to know of a vocabulary: the bytes of every token."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece

from premem_jax.atomic import write_bytes
from premem_jax.errors import UserError

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


class Tokenizer:
    """A SentencePiece model. Text is never read as a control token: only this class adds the start and stop markers."""

    def __init__(self, model: bytes):
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.model = model
        self.vocab_size = self._pieces.vocab_size()
        self.pad_id, self.eos_id, self.bos_id = (
            getattr(self._pieces, f"{name}_id")() for name in ("pad", "eos", "bos")
        )
        if min(self.pad_id, self.eos_id, self.bos_id) < 0:
            raise UserError("tokenizer: the SentencePiece model needs pad, eos and bos pieces")

    @classmethod
    def load_or_train(cls, path: Path, texts: Iterable[str], *, kind: str, vocab_size: int) -> "Tokenizer":
        """The model at `path`, trained on `texts` and written there on first use.

        Raises:
          UserError: unknown kind, or a file that is no SentencePiece model.
        """
        if not path.exists():
            write_bytes(path, train(texts, kind=kind, vocab_size=vocab_size))
        try:
            return cls(path.read_bytes())
        except (RuntimeError, UserError) as error:  # an empty file is a model of nothing to SentencePiece
            raise UserError(f"{path} is no tokenizer model ({error}); delete it to train it again") from error

    def encode_pair(self, prompt: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a prompt (with the start marker) and of its target (with the stop marker).

        The pair is tokenized as one text and cut where the prompt alone agrees with it, so that a model is trained on,
        scored on and prompted with the same tokens. The prompt is never empty.
        """
        joint = self._pieces.encode(prompt + target)
        alone = self._pieces.encode(prompt)
        cut = next(
            (i for i, (a, b) in enumerate(zip(alone, joint, strict=False)) if a != b), min(len(alone), len(joint))
        )
        as_array = lambda ids: np.asarray(ids, np.int32)
        return as_array([self.bos_id, *joint[:cut]]), as_array([*joint[cut:], self.eos_id])

    def decode(self, ids) -> str:
        return self._pieces.decode([int(i) for i in ids])

    def token_bytes(self) -> list[bytes]:
        """The bytes each token stands for; empty for control and unknown pieces."""
        pieces = self._pieces
        table = []
        for i in range(self.vocab_size):
            if pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i):
                table.append(b"")
            elif pieces.is_byte(i):
                table.append(bytes([int(pieces.id_to_piece(i)[1:-1], 16)]))
            else:
                table.append(pieces.id_to_piece(i).replace("▁", " ").encode())
        return table


def train(texts: Iterable[str], *, kind: str, vocab_size: int) -> bytes:
    """A SentencePiece model of `texts`, the same for the same texts. `vocab_size` is an upper bound.

    Raises:
      UserError: `kind` is not one of `TRAINING`.
    """
    if kind not in TRAINING:
        raise UserError(f"tokenizer.kind={kind!r}: choose one of {', '.join(TRAINING)}")
    model = io.BytesIO()
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
    return model.getvalue()
