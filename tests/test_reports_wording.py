"""Escaping, against a real Markdown parser, and the format of numbers."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from reports.wording import LONGEST, clean, escape, exact, label, listed, number, seconds, signed
from tests.fakes.studies import HOSTILE

PARSER = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(["table", "strikethrough"])
nasty = st.text(alphabet=st.sampled_from("[]()<>`*_~|\\!#@$&;:/-+=.1a \n\t\x1b\x00\u202e\u200b\ud800é"), max_size=30)


def texts(source: str) -> list[Token]:
    return [leaf for token in PARSER.parse(source) for leaf in (token.children or [token])]


@given(nasty | st.text(max_size=40))
def test_an_escaped_string_is_one_paragraph_of_plain_text(hostile: str) -> None:
    leaves = texts(f"- start {escape(hostile)} end\n")
    kinds = {token.type for token in leaves}
    assert kinds <= {"bullet_list_open", "list_item_open", "paragraph_open", "text", "text_special", "paragraph_close",
                     "list_item_close", "bullet_list_close"}  # fmt: skip
    shown = "".join(token.content for token in leaves)
    assert " ".join(shown.split()) == " ".join(f"start {clean(hostile)} end".split())


@given(nasty | st.text(max_size=40))
def test_an_escaped_string_at_the_start_of_a_block_opens_nothing(hostile: str) -> None:
    kinds = {token.type for token in PARSER.parse(f"- {escape(hostile)}\n")}
    assert kinds <= {"bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close",
                     "list_item_close", "bullet_list_close"}  # fmt: skip


@given(nasty)
def test_an_escaped_string_stays_in_its_table_cell(hostile: str) -> None:
    parsed = PARSER.parse(f"| a | b |\n| --- | --- |\n| {escape(hostile)} | last |\n")
    cells = [token for token in parsed if token.type == "td_open"]
    assert len(cells) == 2
    assert [token.content for token in parsed if token.type == "inline"][-1] == "last"


@given(st.text(max_size=60))
def test_nothing_invisible_is_left(hostile: str) -> None:
    for shown in (clean(hostile), escape(hostile), label(hostile)):
        assert not [c for c in shown if unicodedata.category(c).startswith("C")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("val/recon_rmse", "val/recon_rmse"),
        ("-0.05", "-0.05"),
        ("[red]", r"\[red\]"),
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("\x1b[31m", r"\\x1b\[31m"),
        ("see https://x.example and www.x.example", r"see https\://x.example and www\.x.example"),
        ("1. first", r"1\. first"),
        ("two\nlines", "two lines"),
        ("__init__", r"\_\_init\_\_"),
        ("a@b.example", r"a\@b.example"),
    ],
)
def test_escaping_leaves_ordinary_text_readable(source: str, expected: str) -> None:
    assert escape(source) == expected


def test_the_hostile_string_has_no_markup_left() -> None:
    assert "<script" not in escape(HOSTILE)
    assert "\x1b" not in escape(HOSTILE)
    assert {token.type for token in texts(escape(HOSTILE))} <= {
        "paragraph_open",
        "text",
        "text_special",
        "paragraph_close",
    }


def test_long_strings_are_cut_once() -> None:
    assert clean("x" * (LONGEST + 1)) == "x" * LONGEST + "…"
    assert clean("x" * LONGEST) == "x" * LONGEST


@pytest.mark.parametrize(
    ("value", "shown", "with_sign", "stored"),
    [
        (None, "n/a", "n/a", ""),
        (math.nan, "nan", "nan", "nan"),
        (math.inf, "inf", "inf", "inf"),
        (-math.inf, "-inf", "-inf", "-inf"),
        (-0.0, "0", "+0", "-0.0"),
        (0.123456, "0.1235", "+0.123", "0.123456"),
        (1e-9, "1e-09", "+1e-09", "1e-09"),
    ],
)
def test_numbers_have_one_format(value: float | None, shown: str, with_sign: str, stored: str) -> None:
    assert (number(value), signed(value), exact(value)) == (shown, with_sign, stored)


def test_lists_read_like_a_sentence() -> None:
    assert [listed([]), listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 s"), (0.00844, "under 0.1 s"), (0.0999, "under 0.1 s"), (0.1, "0.1 s"), (2.5, "2.5 s"), (9.96, "10 s"),
        (95.4, "95 s"), (3600.2, "3,600 s"), (math.inf, "inf s"), (math.nan, "nan s"),
    ],
)  # fmt: skip
def test_a_duration_is_no_more_exact_than_its_measurement(value: float, shown: str) -> None:
    assert seconds(value) == shown
