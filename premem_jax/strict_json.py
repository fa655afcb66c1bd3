"""Strict reading of foreign JSON: whatever readers could disagree on is refused."""

import json
import math
import re

from premem_jax.errors import UserError

DEPTH = 100  # of objects and lists in each other; more breaks what later prints or copies the value
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes, where: str):
    """The value of a whole JSON text in UTF-8.

    Python's reader accepts more than RFC 8259, or than other readers can represent: NaN, numbers beyond float64,
    repeated keys (the last one wins, elsewhere the first), lone surrogates.

    Args:
      where: path, or path and line, for the message.

    Raises:
      UserError: the text is truncated, not UTF-8, nested deeper than `DEPTH`, or has one of the above.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
        _check_depth(value)
        if SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not whole JSON (byte {error.start + 1} is not UTF-8)") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: JSON with half of a surrogate pair, which is no text") from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested deeper than {DEPTH} levels") from error
    except ValueError as error:  # of a number with thousands of digits, too
        raise UserError(f"{where}: not whole JSON ({error})") from error
    return value


def _object(pairs: list[tuple]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return made


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:80]} is too large")
    return value


def _constant(text: str):
    raise ValueError(f"{text} is no number of JSON")


def _check_depth(value) -> None:
    """Raises RecursionError if lists and objects are nested deeper than `DEPTH`."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        boxes = (box.values() if isinstance(box, dict) else box for box in level)
        level = [inner for box in boxes for inner in box if isinstance(inner, dict | list)]
        if not level:
            return
    raise RecursionError
