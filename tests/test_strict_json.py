import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax import strict_json
from premem_jax.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_values_come_back(value, ascii):
    assert strict_json.loads(json.dumps(value, ensure_ascii=ascii).encode(), "file") == value


@given(VALUES, st.data())
def test_damage_gives_what_the_library_reads_or_a_refusal(value, data):
    whole = bytearray(json.dumps(value).encode())
    cut = data.draw(st.integers(0, len(whole)))
    if cut < len(whole) and data.draw(st.booleans()):
        whole[cut] ^= 1 << data.draw(st.integers(0, 7))
    else:
        whole = whole[:cut]
    try:
        read = strict_json.loads(bytes(whole), "here.json")
    except UserError as error:
        assert str(error).startswith("here.json: ")
    else:
        assert read == json.loads(bytes(whole).decode())


@pytest.mark.parametrize(
    "text, why",
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested"),
        (b"[" * 101 + b"]" * 101, "nested"),
        (b"9" * 5000, "digits"),
        (b"-1e999", "too large"),
        (b"[NaN]", "NaN"),
        (b"-Infinity", "Infinity"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' is there twice"),
        (rb'{"a\ud800": 1}', "surrogate"),
        (rb'["\uDFFF\ud800"]', "surrogate"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b"", "not whole"),
        (b"{} {}", "not whole"),
    ],
)
def test_refusals_name_the_reason(text, why):
    with pytest.raises(UserError, match=rf"^row 7: .*{why}"):
        strict_json.loads(text, "row 7")


def test_what_is_only_near_a_limit_is_read():
    assert strict_json.loads(rb'"\ud83d\ude00"', "x") == "😀"
    assert strict_json.loads(b"[" * 100 + b"]" * 100, "x")
