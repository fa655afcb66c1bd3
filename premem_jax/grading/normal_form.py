"""Hendrycks' normal form of an answer, in plain Python on bytes. Answers with equal normal forms are equal.

Source: the MATH dataset's string normaliser (Hendrycks et al., arXiv 2103.03874). It is defined on characters; here a
character is a byte and the UTF-8 continuation bytes after it, which on valid UTF-8 is the same. A brace is always a
character of its own.
"""

import re

UNIT = b"\\text{ "
SQRT = b"\\sqrt"
FRAC = b"\\frac"
HALF = b"\\frac{1}{2}"
_INTEGER = rb"(0|-?[1-9][0-9]*)"
_SLASH = re.compile(_INTEGER + b"/" + _INTEGER)
_FRACTION = re.compile(rb"\\frac\{" + _INTEGER + rb"\}\{" + _INTEGER + rb"\}")


def normal_form(answer: bytes) -> bytes | None:
    """The normal form, or None if the rules break down: two units, or a root or fraction with nothing after it."""
    text = delete_marks(answer)
    text, *units = text.split(UNIT)
    if len(units) > 1:
        return None
    text = lead_with_zero(text.replace(b"\\%", b""))
    text = brace_roots(drop_left_side(text))
    text = text and brace_fractions(text.replace(b" ", b""))
    return text and one_fraction(text)


def delete_marks(text: bytes) -> bytes:
    """Deletes line breaks, thin spaces, doubled backslashes, sizes of fractions and brackets, degrees, dollars."""
    text = text.replace(b"\n", b"").replace(b"\\!", b"").replace(b"\\\\", b"\\")
    text = text.replace(b"tfrac", b"frac").replace(b"dfrac", b"frac")
    for mark in (b"\\left", b"\\right", b"^{\\circ}", b"^\\circ", b"\\$"):
        text = text.replace(mark, b"")
    return text


def lead_with_zero(text: bytes) -> bytes:
    """`.5` to `0.5` at the start, after a space and after an opening brace."""
    text = text.replace(b" .", b" 0.").replace(b"{.", b"{0.")
    return b"0" + text if text.startswith(b".") else text


def drop_left_side(text: bytes) -> bytes:
    """`x = 5` to ` 5`, if there is one equals sign with at most two characters to its left."""
    left, *right = text.split(b"=")
    return right[0] if len(right) == 1 and len(_starts(left)) <= 2 else text


def brace_roots(text: bytes) -> bytes | None:
    r"""`\sqrt3` to `\sqrt{3}`; None if nothing follows a root."""
    done, *parts = text.split(SQRT)
    for part in parts:
        if not part:
            return None
        first, rest = _first(part)
        done += SQRT + (part if first.startswith(b"{") else b"{" + first + b"}" + rest)
    return done


def brace_fractions(text: bytes) -> bytes | None:
    r"""`\frac12` and `\frac1{2}` to `\frac{1}{2}`. None if nothing follows a fraction; unchanged if only one
    character does.
    """
    done, *parts = text.split(FRAC)
    for part in parts:
        if not part:
            return None
        above, rest = _first(part)
        if above.startswith(b"{"):
            done += FRAC + part
            continue
        if not rest:
            return text
        below, rest = _first(rest)
        done += FRAC + b"{" + above + b"}" + (below if below.startswith(b"{") else b"{" + below + b"}") + rest
    return done


def one_fraction(text: bytes) -> bytes:
    r"""Exactly `0.5`, or two plain integers with a slash, to a `\frac`."""
    if text == b"0.5":
        return HALF
    slash = _SLASH.fullmatch(text)
    return b"\\frac{%b}{%b}" % slash.groups() if slash else text


def written_with_slash(form: bytes) -> bytes | None:
    r"""`a/b` for a normal form `\frac{a}{b}` of two plain integers: the other text with this normal form."""
    fraction = _FRACTION.fullmatch(form)
    return b"%b/%b" % fraction.groups() if fraction else None


def _starts(text: bytes) -> list[int]:
    return [i for i, byte in enumerate(text) if byte & 0xC0 != 0x80]


def _first(text: bytes) -> tuple[bytes, bytes]:
    """The first character and the rest."""
    end = next((i for i in range(1, len(text)) if text[i] & 0xC0 != 0x80), len(text))
    return text[:end], text[end:]
