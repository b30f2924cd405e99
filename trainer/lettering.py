"""Words in pictures: lines that fit. No torch."""

from __future__ import annotations

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines that fit into `width` pixels; a word that is too long is cut."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if not line or font.getlength(longer) <= width:
                line = longer
            else:
                lines.append(line)
                line = word
        lines.append(line)
    return [cut(line, font, width) for line in lines]


def cut(line: str, font: Font, width: int) -> str:
    """The line, or as much of it as fits into `width` pixels with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
