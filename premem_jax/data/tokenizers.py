"""Tokenizers: text to token ids and back, and the bytes of every token for the device.

One interface; `tokenizer_kinds.py` implements it, `tokenizer_files.py` loads and trains. `markers.py` says which
tokens start, end and control a text.
"""

import abc
import functools
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from premem_jax.data import markers
from premem_jax.errors import UserError

log = logging.getLogger(__name__)

# Markers in texts that were made with a chat template or decoded with its markers.
CONTROL = re.compile(r"<\|[a-z0-9_]+\|>|</?s>|<(bos|eos|pad|unk|start_of_turn|end_of_turn)>")

KINDS = ("bos", "eos", "pad")


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
