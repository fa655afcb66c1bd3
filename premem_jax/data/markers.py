"""Which tokens of a vocabulary start, end and control a text: what a model folder says of them, in several files.

Texts here never hold a control token by accident: one is written in its private spelling, its name between two
noncharacters of Unicode, and its plain name is text. Chat templates write private spellings (`data/chat.py`), people's
texts must not have them.
"""

import json
import re
from collections.abc import Mapping

import tokenizers
from etils.epath import Path

from premem_jax import strict_json
from premem_jax.errors import UserError

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters, which no text is meant to have
PRIVATE = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}")

# Gemma2 declares its markers as symbols that SentencePiece finds in plain text, as it does "<table>" or many spaces.
GEMMA_MARKERS = re.compile(r"<mask>|<2mass>|<unused\d+>|<(start|end)_of_turn>|\[@BOS@\]|\[toxicity=0\]")

# Per family, the names of (bos, eos, pad) in a tokenizer.json that comes without its other files.
FAMILIES = (
    ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_2|>"),
    ("<bos>", "<eos>", "<pad>"),
)

SETTINGS = "tokenizer_config.json"
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
KEPT = (*NAMES, "add_bos_token", "add_eos_token", "added_tokens_decoder", "chat_template")
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def private(name: str) -> str:
    """How a text spells the control token called `name`."""
    return f"{OPEN}{name}{CLOSE}"


def shown(text: str) -> str:
    """A text for people, with control tokens by their names."""
    return text.replace(OPEN, "").replace(CLOSE, "")


def refuse_private(texts) -> None:
    """Raises UserError if a text has one of the characters that only control tokens have."""
    for text in texts:
        if OPEN in text or CLOSE in text:
            at = min(text.find(sign) % (len(text) + 1) for sign in (OPEN, CLOSE))
            raise UserError(f"a text with U+FDD0 or U+FDD1, which are no characters: {text[max(0, at - 20) :][:60]!r}")


# ---- What a folder says ---------------------------------------------------------------------------------------------


def read(folder: Path) -> dict:
    """What the files beside a tokenizer say of its markers, in the form of one tokenizer_config.json; {} for nothing.

    Of `special_tokens_map.json` and `tokenizer_config.json` the second decides. A folder that names no end of text
    there has it in `generation_config.json` or `config.json` (`eos_token_id`). `chat_template.jinja` goes before
    a template elsewhere.

    Raises:
      UserError: a file that is no JSON object, or a marker that is no text.
    """
    said = {}
    for file in ("special_tokens_map.json", SETTINGS):
        said |= _marked(file, _object(folder / file))
    stated = [_object(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    ids = [i for i in stated if i not in (None, [])]
    if ids and "eos_token" not in said and "eos_token_id" not in said:
        said["eos_token_id"] = ids[0][0] if isinstance(ids[0], list) else ids[0]
    template = _object(folder / "chat_template.json").get("chat_template", said.get("chat_template"))
    if (file := folder / "chat_template.jinja").exists():
        template = _bytes(file).decode("utf-8", "replace")
    if isinstance(template, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    said["chat_template"] = template if isinstance(template, str) and template else None
    return {key: value for key, value in said.items() if value is not None}


def _marked(file: str, read: Mapping) -> dict:
    said = {key: read[key] for key in KEPT if key in read} | {
        key: read["eos_token_id"] for key in ("eos_token_id",) if key in read
    }
    for name in NAMES:
        if isinstance(said.get(name), dict):  # a token with its flags
            said[name] = said[name].get("content")
        if not isinstance(said.get(name), str | None):
            raise UserError(f"{file}: {name}={repr(said[name])[:80]} must be a text, or a token with `content`")
    for id, token in (said.get("added_tokens_decoder") or {}).items():
        if not id.isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise UserError(f"{file} has no object of added tokens and their ids: {id!r:.20} is {token!r:.60}")
    more = [read[key] for key in ("additional_special_tokens", "extra_special_tokens") if read.get(key)]
    each = [token for tokens in more for token in (tokens.values() if isinstance(tokens, dict) else tokens)]
    names = [token.get("content") if isinstance(token, dict) else token for token in each]
    if names:
        said["additional_special_tokens"] = [name for name in names if isinstance(name, str)]
    return said


def _object(file: Path) -> dict:
    if not file.exists():
        return {}
    found = strict_json.loads(_bytes(file), str(file))
    if not isinstance(found, dict):
        raise UserError(f"{file}: JSON, but no object")
    return found


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def start(said: Mapping, bos_id: int | None, prefix: tuple[int, ...] | None) -> tuple[int, ...]:
    """The tokens in front of every text: those of a post-processor, else bos, unless the flags leave it out.

    `transformers` 5 does it in this order. Where a folder has a flag for one of bos and eos, the other is off.
    """
    if prefix is not None:
        return prefix
    flagged = "add_bos_token" in said or "add_eos_token" in said
    return () if bos_id is None or (flagged and not said.get("add_bos_token")) else (bos_id,)


def prefix(processor: Mapping) -> tuple[int, ...]:
    """The ids that a tokenizer.json's post-processor puts in front of a text."""
    text, id = "x", 2**31 - 1
    spec = dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=None)
    spec |= dict(post_processor=processor, decoder=None, model=dict(type="WordLevel", vocab={text: id}, unk_token=text))
    ids = tokenizers.Tokenizer.from_str(json.dumps(spec)).encode(text).ids
    return tuple(ids[: ids.index(id)])


def family(control: Mapping[str, int], alone: bool) -> list[int | None]:
    """Ids of bos, eos and pad in the family of a tokenizer.json; unless it is alone, other files name bos."""
    names = next((names for names in FAMILIES if all(name in control for name in names)), ("",) * 3)
    bos, eos, pad = (control.get(name) for name in names)
    return [bos if alone else None, eos, pad]


# ---- A tokenizer.json whose texts are texts -------------------------------------------------------------------------


def only_private(spec: dict, said: Mapping) -> dict[str, int]:
    """Changes a tokenizer.json so that only private spellings give control tokens; returns the ids of these, by name.

    Controls are the tokens that the file or the folder's settings declare as special, and Gemma's markers. What the
    settings declare beyond the file is added to it.
    """
    added = {token["content"]: token for token in spec["added_tokens"]}
    for id, token in sorted(said.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        mine = added.setdefault(token["content"], dict.fromkeys(FLAGS, False) | dict(id=int(id), normalized=True))
        mine |= {flag: token[flag] for flag in FLAGS if flag in token} | dict(content=token["content"])
    vocabulary = vocabulary_of(spec)
    for name in [*(said.get(name) for name in NAMES), *said.get("additional_special_tokens", ())]:
        if name in vocabulary and name not in added:
            added[name] = dict.fromkeys(FLAGS, False) | dict(id=vocabulary[name], content=name)
        if name in added:
            added[name]["special"] = True
    control = {}
    for name, token in added.items():
        if token["special"] or GEMMA_MARKERS.fullmatch(name):
            control[name] = token["id"]
            token |= dict(content=private(name), special=True, normalized=False)
    _rename(spec["model"], control)
    spec["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    spec |= dict(truncation=None, padding=None, post_processor=None)
    return control


def vocabulary_of(spec: Mapping) -> dict[str, int]:
    """The ids of a tokenizer.json's pieces without the added tokens."""
    pieces = spec["model"]["vocab"]
    return pieces if isinstance(pieces, dict) else {piece: i for i, (piece, _) in enumerate(pieces)}


def _rename(model: dict, control: Mapping[str, int]) -> None:
    """Gives the control tokens in a model's vocabulary their private spelling; no merge makes one any longer."""
    new = lambda piece: private(piece) if piece in control else piece
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new(piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[new(piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = new(model["unk_token"])
    if "merges" in model:
        parts = lambda merge: merge.split(" ") if isinstance(merge, str) else merge
        of = lambda left, right: {left, right, left + right}
        model["merges"] = [merge for merge in model["merges"] if not control.keys() & of(*parts(merge))]
