"""Seeds on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.spec.seeds import MAX_SEED, format_seeds, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", (0,)),
        ("0-5", (0, 1, 2, 3, 4, 5)),
        ("0,2,4-6", (0, 2, 4, 5, 6)),
        ("3, 1", (3, 1)),
        ("7-7", (7,)),
        ("007", (7,)),
    ],
)
def test_seeds_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "1,",
        "a",
        "-1",
        "1-",
        "1--2",
        "5-0",
        "0,0",
        "0-3,2",
        "1.5",
        "0-99999999999",
        str(MAX_SEED + 1),
        "٣",
        "1;2",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="allowed"):
        parse_seeds(text)


@given(st.lists(st.integers(0, 2000), unique=True, min_size=1, max_size=40).map(tuple))
def test_formatted_seeds_are_read_back(seeds: tuple[int, ...]) -> None:
    assert parse_seeds(format_seeds(seeds)) == seeds
