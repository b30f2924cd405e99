"""YAML 1.2 core schema, strict: what scalars mean, what is refused, and that what we write is read back."""

from __future__ import annotations

import contextlib
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import SpecError
from runner.spec import yaml12

TABLE = [
    ("", None),
    ("~", None),
    ("null", None),
    ("Null", None),
    ("true", True),
    ("false", False),
    ("off", "off"),
    ("on", "on"),
    ("yes", "yes"),
    ("No", "No"),
    ("y", "y"),
    ("1:30", "1:30"),
    ("12:30:45", "12:30:45"),
    ("2e-3", 0.002),
    ("1e3", 1000.0),
    ("1.", 1.0),
    (".5", 0.5),
    ("-1.5E+2", -150.0),
    ("+.inf", math.inf),
    ("-.Inf", -math.inf),
    ("inf", "inf"),
    ("nan", "nan"),
    ("12", 12),
    ("-7", -7),
    ("+7", 7),
    ("012", 12),
    ("0o17", 15),
    ("0x1F", 31),
    ("0b101", "0b101"),
    ("1_000", "1_000"),
    ("9223372036854775807", 2**63 - 1),
    ("2026-01-02", "2026-01-02"),
    ("'true'", "true"),
    ('"12"', "12"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "meaning"), TABLE)
def test_plain_scalars_follow_the_core_schema(text: str, meaning: object) -> None:
    value = yaml12.parse(f"key: {text}\n".encode(), "f").values["key"]
    assert value == meaning
    assert type(value) is type(meaning)


@pytest.mark.parametrize("text", [".nan", ".NaN"])
def test_not_a_number(text: str) -> None:
    assert math.isnan(yaml12.plain_scalar(text))


def test_every_key_and_item_has_its_line() -> None:
    document = yaml12.parse(b"# note\na:\n  b: 1\n\n  c: [x,\n   y]\n\xc3\xa4: {d: 2}\n", "f")
    assert document.values == {"a": {"b": 1, "c": ["x", "y"]}, "ä": {"d": 2}}
    assert document.lines == {
        ("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", 0): 5, ("a", "c", 1): 6, ("ä",): 7, ("ä", "d"): 7,
    }  # fmt: skip


def test_small_aliases_and_a_byte_order_mark_are_fine() -> None:
    assert yaml12.parse(b"\xef\xbb\xbfa: &x [1]\nb: *x\n", "f").values == {"a": [1], "b": [1]}


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)

REFUSED = [
    (b"", None, "is empty"),
    (b"# only a remark\n", None, "is empty"),
    (b"- 1\n- 2\n", 1, "is not a block of keys"),
    (b"just words\n", 1, "is not a block of keys"),
    (b"a: 1\nb: 2\na: 3\n", 3, "is written twice, first in line 1"),
    (b"a:\n  b: 1\n  b: 1\n", 3, "is written twice"),
    (b"a: 1\n'a': 2\n", 2, "is written twice"),
    (b"a: !!python/object/apply:os.system [echo]\n", 1, "tag"),
    (b"a: !!str 1\n", 1, "tag"),
    (b"a: ! 1\n", 1, "tag"),
    (b"!!map {a: 1}\n", 1, "tag"),
    (b"a: !own {b: 1}\n", 1, "tag"),
    (b"b: &b {c: 1}\na:\n  <<: *b\n", 3, "merge key"),
    (LAUGHS.encode(), None, "too large once its aliases are expanded"),
    (b"a: &a [*a]\n", None, "too large once its aliases are expanded"),
    (b"a: &a {b: *a}\n", None, "too large once its aliases are expanded"),
    (b"a: *nowhere\n", 1, "is not YAML"),
    (b"a: [1, 2\n", None, "is not YAML"),
    (b"a:\n\t- 1\n", 2, "is not YAML"),
    (b"a: 1\n---\nb: 2\n", None, "is not YAML"),
    (b"a: 1\nb: \xff\n", 2, "is not UTF-8 text"),
    ("a: ü\n".encode("latin-1"), 1, "is not UTF-8 text"),
    (b"a: 1\nb: \x00\n", 2, "is a binary file"),
    ("a: 1\n".encode("utf-16"), 1, "is a binary file"),
    (b"\x7fELF\x02\x01\x01\x00\x00", 1, "is a binary file"),
    (b"a: \x07\n", 1, "control character"),
    (b"1: x\n", 1, "is not text"),
    (b"true: x\n", 1, "is not text"),
    (b"? [a]\n: x\n", 1, "a list or a block"),
    (b"a: 9223372036854775808\n", 1, "64 bits"),
    (b"a: " + b"9" * 5000 + b"\n", 1, "64 bits"),
    (b"a: " + b"[" * 3000 + b"]" * 3000 + b"\n", 1, "nested too deeply"),
    (b"a: '" + b"x" * yaml12.MAX_BYTES + b"'\n", None, "KiB large"),
]


@pytest.mark.parametrize(("data", "line", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_strict_yaml_is_refused_with_its_line(data: bytes, line: int | None, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        yaml12.parse(data, "arm.yaml")
    assert problem in caught.value.problem
    assert caught.value.where.file == "arm.yaml"
    if line is not None:
        assert caught.value.where.line == line
    assert "\n" not in str(caught.value)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(
        [text for text, _ in TABLE] + ["<<", "a\nb", " x ", "- y", "# z", "1e5", "0o7", "1_0", "0b1", "12:30"]
    )
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(texts, trees, min_size=1, max_size=4))
def test_what_is_written_means_the_same_to_readers_of_both_versions(values: dict[str, object]) -> None:
    text = yaml12.dump(values)
    assert yaml12.parse(text.encode(), "f").values == values
    assert yaml.safe_load(text) == values


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(SpecError):
        assert isinstance(yaml12.parse(data, "f").values, dict)


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    with contextlib.suppress(SpecError):
        value = yaml12.parse_value(text, "--set x")
        assert value is None or isinstance(value, bool | int | float | str | list | dict)
