"""Whether what a model said is a caption: judged by its words alone. Pure."""

from __future__ import annotations

import re
from collections import Counter

from trainer.prepare.captions.protocols import Answer
from trainer.prepare.captions.text import broken_characters, has_words, one_paragraph
from trainer.prepare.passes import Failed

LEAST_WORDS = 20
MOST_CHARACTERS_PER_TOKEN = 10
LONGEST_WORD = 60
MOST_SAME_CLAUSES = 3
"""A clause of three or more words that stands more often than this is a loop."""
MOST_SAME_RUNS = 5
"""The same for any four words in a row."""
_RUN = 4

_THOUGHTS_END = "</think>"
_SPECIAL = re.compile(
    r"<\|[^|<>]{1,40}\|>|</?s>|<(?:end|start)_of_\w+>|<(?:image|eos|bos|pad)>|\[/?INST\]|</?think>", re.I
)
_LIST = re.compile(r"^[ \t]*(?:[-*•–—+][ \t]+\S|\(?\d{1,2}[.)][ \t]+\S|#{1,6}[ \t]*\S|\||```|>[ \t])", re.MULTILINE)
_LABEL = re.compile(r"^[ \t]*(?:\*\*|__)?[A-Z][A-Za-z /&]{1,30}(?::(?:\*\*|__)|(?:\*\*|__)?:)", re.MULTILINE)
_MARKS = re.compile(r"\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=[\w.,])[*_](?!\w)")

_PREAMBLE = re.compile(
    r"""(?ix) ^ (?:
      (?: sure | certainly | of\ course | absolutely | okay | ok | great | got\ it )\b (?: \ thing )? [^\w\s]+ \s*
    | (?: here (?:'s | \ is | \ are | \ you\ go ) | below\ is | this\ is | the\ following\ is ) \b
      [^.:\n]{0,120} \b (?: description | caption | paragraph | summary ) \b [^.:\n]{0,80} : \s*
    | (?: (?: image | photo | photograph | detailed | dense | objective )\ ){0,3}
      (?: caption | description | paragraph ) \s* : \s*
    )"""
)
_ENDING = re.compile(
    r"(?i)(?<=[.!?])\s+(?:let me know|would you like|do you want|i hope|hope this|feel free|please let me know"
    r"|if you(?:'d| would| want| need| have))\b[^.!?]*[.!?]*$"
)
_REFUSAL = re.compile(
    r"""(?ix) \b (?:
      i (?: 'm | \ am ) \ (?: (?: so | very | really | truly )\ )? (?: sorry | afraid | unable | not\ able
        | not\ comfortable | not\ allowed | not\ permitted | an\ ai\b )
    | sorry, \ (?: but\ )? i\b
    | i \ (?: (?: really | simply | also )\ )? (?: can't | cannot | can\ not | can\ only | couldn't | could\ not | won't
        | will\ not | don't | do\ not | must | apologi[sz]e | shouldn't | should\ not )
    | my\ apologies | as\ an\ ai\b | as\ a\ (?: large\ )? language\ model | against\ my\ (?: guidelines | policy )
    | no\ image\ (?: was | is | has | attached | provided )
    | (?: please | could\ you )\ (?: provide | upload | attach | share )
    )"""
)
_HEAD = 250
_ALWAYS_REFUSAL = re.compile(r"(?i)\bas an ai\b|\bas a (?:large )?language model\b")
_ITSELF = re.compile(
    r"(?:^|(?<=[.!?] ))(?:(?:However|But|Unfortunately|Also|Overall|Note that),? )?(?:I'm|I've|I'd|I'll|I [a-z]+|My )"
)


def judged(answer: Answer, most_tokens: int) -> str | Failed:
    """The caption in an answer, one paragraph, or why there is none.

    Emphasis marks, thoughts before the answer, an opening such as "Here is the description:" and an offer at the end
    are taken off. Everything else that is no plain paragraph is a failure, so that another try can be made.
    """
    said = answer.text.rpartition(_THOUGHTS_END)[2].replace("’", "'").strip()
    if len(said) > MOST_CHARACTERS_PER_TOKEN * most_tokens:
        return Failed(f"the answer has {len(said):,} characters, more than {most_tokens:,} tokens can be")
    problem = broken_characters(said)
    if problem:
        return Failed(f"the answer holds {problem}")
    if not has_words(said):
        return Failed("the answer is empty" + (": its tokens went elsewhere" if answer.end == "limit" else ""))
    caption = _bare(said)
    line = caption if isinstance(caption, str) else one_paragraph(said)
    refusal = _refusal(line)
    if refusal or answer.end == "refused":
        return Failed(f"the model refused: {_start(refusal or line)}")
    loop = _loop(line)
    if loop:
        return Failed(f"the answer repeats itself: {_start(loop)}")
    if answer.end == "limit":
        return Failed(f"the answer was cut off after {most_tokens:,} tokens; --caption-tokens allows more")
    return caption if isinstance(caption, Failed) else _in_form(caption)


def _in_form(caption: str) -> str | Failed:
    special = _SPECIAL.search(caption)
    if special:
        return Failed(f"the answer holds a mark of the model, {special[0]}")
    itself = _ITSELF.search(caption)
    if itself:
        return Failed(f"the model speaks of itself: {_start(caption[itself.start() :])}")
    words = caption.split()
    if any(len(word) > LONGEST_WORD for word in words):
        return Failed(f"the answer has a word of more than {LONGEST_WORD} characters")
    if len(words) < LEAST_WORDS:
        return Failed(f"the answer has {len(words)} words, fewer than {LEAST_WORDS}: {_start(caption)}")
    return caption


def _bare(text: str) -> str | Failed:
    """The paragraph without what models put around it. Taken off until nothing more comes off."""
    before = ""
    while text != before:
        before = text
        text = _ENDING.sub("", _PREAMBLE.sub("", text.strip()))
        if len(text) > 1 and text[0] in "\"'“" and text[-1] in "\"'”" and not re.search(r"[\"“”]", text[1:-1]):
            text = text[1:-1]
        if _LIST.search(text) or len(_LABEL.findall(text)) > 1:
            return Failed(f"the answer is a list or has headings: {_start(one_paragraph(text))}")
        text = one_paragraph(_MARKS.sub("", text))
    return text


def _refusal(line: str) -> str:
    """Where a refusal begins, '' if there is none. Later in a text, such words may stand on a sign in the picture."""
    found = _REFUSAL.search(line[:_HEAD]) or _ALWAYS_REFUSAL.search(line)
    return line[found.start() :] if found else ""


def _loop(text: str) -> str:
    """A clause, or four words in a row, that stands too often; '' if none does."""
    lowered = text.lower()
    clauses = Counter(
        " ".join(words) for clause in re.split(r"[.,;:!?\n]+", lowered) if len(words := clause.split()) >= 3
    )
    words = re.findall(r"\w+", lowered)
    runs = Counter(" ".join(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1))
    for counted, most in ((clauses, MOST_SAME_CLAUSES), (runs, MOST_SAME_RUNS)):
        for said, count in counted.most_common(1):
            if count > most:
                return said
    return ""


def _start(text: str) -> str:
    return f'"{text}"' if len(text) <= 80 else f'"{text[:79]}…"'
