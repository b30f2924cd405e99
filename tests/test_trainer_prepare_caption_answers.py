"""Whether an answer is a caption, by its words alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.caption_server import CAPTION
from trainer.prepare.captions.answers import LEAST_WORDS, judged
from trainer.prepare.captions.prompt import seed_of, temperature_of
from trainer.prepare.captions.protocols import Answer
from trainer.prepare.passes import Failed

TOKENS = 500

_LINE = (
    "woman man child hair dark light short long face skin pale warm soft hard lamp window wall grey green pullover "
    "shirt collar smile closed mouth eyes look left right head turned slightly shoulder hand frame below blurred garden"
)
_WORDS = _LINE.split()


def prose_of(seed: int) -> str:
    """Five sentences of words in no order, which no two sentences share."""
    draw = random.Random(seed)
    return " ".join(f"A {' '.join(draw.sample(_WORDS, 12))}." for _ in range(5))


prose = st.integers(0, 2**32).map(prose_of)
few = settings(max_examples=15)


def reason(text: str, end: str = "stop") -> str:
    """Why an answer is none."""
    found = judged(Answer(text, end), TOKENS)
    assert isinstance(found, Failed), found
    return found.reason


@few
@given(prose)
def test_plain_prose_is_taken_as_it_is(text: str) -> None:
    assert judged(Answer(text), TOKENS) == text


@few
@given(prose, st.sampled_from(["\n", "\n\n", "\t", "  ", " "]))
def test_white_space_is_collapsed(text: str, space: str) -> None:
    assert judged(Answer(f"{space}{text.replace(' ', space)}{space}"), TOKENS) == text


@given(
    st.text(max_size=400)
    | st.lists(
        st.sampled_from([*_WORDS, "**", "\n- ", '"', "Sure! ", "Caption: ", ". I ", "</think>", "\ud800"]), max_size=60
    ).map(" ".join)
)
def test_whatever_is_taken_is_one_paragraph_that_is_taken_again(text: str) -> None:
    found = judged(Answer(text), TOKENS)
    if isinstance(found, Failed):
        assert found.reason
        return
    assert found == " ".join(found.split())
    assert len(found.split()) >= LEAST_WORDS
    found.encode()
    assert judged(Answer(found), TOKENS) == found


@pytest.mark.parametrize(
    "opening",
    [
        "Sure! ",
        "Certainly. Here is the description:\n\n",
        "Here's a detailed, objective caption of the photograph: ",
        "Okay, here is a dense paragraph describing it:\n",
        "Caption: ",
        "**Description:** ",
        "<think>The user wants a caption. I cannot name her.</think>\n\n",
        "It is a photograph, so I start with the subject.</think>",
    ],
)
@few
@given(text=prose)
def test_an_opening_is_taken_off(opening: str, text: str) -> None:
    assert judged(Answer(opening + text), TOKENS) == text


@pytest.mark.parametrize(
    "ending", [" Let me know if you need anything else!", "\n\nWould you like a shorter one?", " I hope this helps."]
)
@few
@given(text=prose)
def test_an_offer_at_the_end_is_taken_off(ending: str, text: str) -> None:
    assert judged(Answer(text + ending), TOKENS) == text


def test_quotation_marks_and_emphasis_are_taken_off() -> None:
    assert judged(Answer(f'"{CAPTION}"'), TOKENS) == CAPTION
    assert judged(Answer(CAPTION.replace("green woollen", "**green** *woollen*")), TOKENS) == CAPTION
    assert judged(Answer(CAPTION.replace("green", "“green”")), TOKENS) == CAPTION.replace("green", "“green”")


@pytest.mark.parametrize(
    "refusal",
    [
        "I'm sorry, but I can't help with that. ",
        "I’m sorry, but I can’t describe people. ",
        "I cannot identify the person in this photograph. ",
        "As an AI, I do not look at faces. ",
        "Unfortunately, I am unable to see any image. ",
        "Sorry, I won't do this. ",
        "Please provide an image. ",
    ],
)
@few
@given(text=prose)
def test_a_refusal_is_never_a_caption(refusal: str, text: str) -> None:
    assert reason(refusal + text).startswith("the model refused")
    assert reason(refusal).startswith("the model refused")


def test_a_sign_in_the_picture_may_say_what_a_model_may_not() -> None:
    text = f'{CAPTION} Behind her hangs a poster that reads "I cannot help it, I am sorry" in red letters.'
    assert judged(Answer(text), TOKENS) == text


def test_a_model_that_speaks_of_itself_is_not_taken() -> None:
    assert reason(f"{CAPTION} However, I think that she is a singer.").startswith("the model speaks of itself")


@few
@given(prose, st.sampled_from(["stop", "refused"]))
def test_what_was_cut_off_or_refused_is_never_taken(text: str, end: str) -> None:
    assert "cut off after 500 tokens" in reason(text, "limit")
    assert reason(text, "refused").startswith("the model refused")


@few
@given(
    prose,
    st.lists(st.sampled_from(_WORDS), min_size=3, max_size=8).map(" ".join),
    st.integers(6, 40),
    st.sampled_from([", ", ". ", " "]),
)
def test_a_loop_is_never_taken(text: str, clause: str, times: int, joint: str) -> None:
    looped = f"{text} {joint.join([clause] * times)}"
    assert isinstance(judged(Answer(looped, "limit"), 10_000), Failed)
    assert "repeats itself" in judged(Answer(looped), 10_000).reason


def test_lists_headings_and_labels_are_not_taken() -> None:
    for text in (
        "- A woman.\n- Dark hair.\n" + CAPTION,
        f"1. {CAPTION}\n2. {CAPTION}",
        f"## Subject\n{CAPTION}",
        f"**Subject:** {CAPTION}\n**Hair:** dark and long.",
        f"Subject: {CAPTION}\nHair: dark and long.",
        f"```\n{CAPTION}\n```",
    ):
        assert "list or has headings" in reason(text)


def test_what_is_no_text_is_not_taken() -> None:
    assert reason("") == "the answer is empty"
    assert reason(" \n…!") == "the answer is empty"
    assert "tokens went elsewhere" in reason("", "limit")
    assert "U+0000" in reason(f"{CAPTION}\0")
    assert "halves of characters (U+D800)" in reason(f"{CAPTION}\ud800")
    assert "<|im_end|>" in reason(f"{CAPTION}<|im_end|>")
    assert "has 3 words, fewer than 20" in reason("A woman smiles.")
    assert "more than 60 characters" in reason(f"{CAPTION} {'a' * 61}")
    assert "more than 500 tokens can be" in reason("words " * 1000)


def test_seeds_differ_by_run_image_and_answer_and_are_what_they_were() -> None:
    seeds = {seed_of(run, id, rejected) for run in (0, 1) for id in ("ab", "cd") for rejected in (0, 1, 2)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(0, "0123456789abcdef", 0) == 0xD49BD904 & 0x7FFFFFFF
    assert temperature_of(0) == 0.0 < temperature_of(1)
