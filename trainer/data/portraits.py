"""Procedural portraits: a handful of named attributes, drawn from the id alone. "left" is always the viewer's left."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from trainer.data.split import id_hash

MOUTHS = ("smiling", "serious", "surprised")
SKINS = ("pale", "fair", "tan", "bronze", "deep")
PLACES = ("left", "middle", "right", "high", "low")
YAWS = ("left", "forward", "right")
GAZES = ("left", "ahead", "right")
HAIR_STYLES = ("short", "long", "curly", "bun")
HAIR_COLOURS = ("dark", "brown", "light", "red", "gray", "violet")
SHIRTS = ("red", "blue", "green", "yellow", "white", "black", "purple", "orange")
BACKGROUNDS = ("blue", "green", "pink", "yellow", "white", "gray", "teal", "lilac")

# Base colours, 8-bit sRGB.
SKIN_RGB = {
    "pale": (250, 220, 200),
    "fair": (238, 190, 156),
    "tan": (210, 152, 110),
    "bronze": (164, 108, 72),
    "deep": (104, 66, 46),
}
HAIR_RGB = {
    "dark": (34, 28, 32),
    "brown": (104, 62, 34),
    "light": (238, 206, 120),
    "red": (190, 72, 30),
    "gray": (166, 168, 176),
    "violet": (130, 62, 168),
}
SHIRT_RGB = {
    "red": (204, 48, 52),
    "blue": (44, 88, 196),
    "green": (38, 138, 82),
    "yellow": (240, 196, 48),
    "white": (242, 242, 240),
    "black": (40, 42, 50),
    "purple": (122, 60, 150),
    "orange": (236, 126, 38),
}
BACKGROUND_RGB = {
    "blue": (120, 176, 232),
    "green": (146, 204, 138),
    "pink": (246, 176, 192),
    "yellow": (248, 228, 144),
    "white": (246, 244, 238),
    "gray": (140, 146, 156),
    "teal": (74, 164, 166),
    "lilac": (192, 170, 226),
}


@dataclass(frozen=True, slots=True)
class Portrait:
    """Everything that is drawn, as words: nothing in the image depends on anything else."""

    mouth: str
    skin: str
    place: str
    yaw: str
    gaze: str
    hair_style: str
    hair_colour: str
    shirt: str
    background: str


CHOICES: dict[str, tuple[str, ...]] = {
    "mouth": MOUTHS,
    "skin": SKINS,
    "place": PLACES,
    "yaw": YAWS,
    "gaze": GAZES,
    "hair_style": HAIR_STYLES,
    "hair_colour": HAIR_COLOURS,
    "shirt": SHIRTS,
    "background": BACKGROUNDS,
}
COLOURS: dict[str, dict[str, tuple[int, int, int]]] = {
    "skin": SKIN_RGB,
    "hair_colour": HAIR_RGB,
    "shirt": SHIRT_RGB,
    "background": BACKGROUND_RGB,
}
assert tuple(CHOICES) == tuple(field.name for field in fields(Portrait))


def portrait_of(id: str) -> Portrait:
    """The portrait of an id, every attribute uniform over its words and independent of the others."""
    return Portrait(**{name: words[id_hash(f"{name} of {id}") % len(words)] for name, words in CHOICES.items()})


def edited(portrait: Portrait, attribute: str, word: str) -> Portrait:
    """The same portrait with one attribute changed. Raises ValueError for an unknown attribute or word."""
    if word not in CHOICES.get(attribute, ()):
        allowed = CHOICES.get(attribute, tuple(CHOICES))
        raise ValueError(f"{attribute!r} cannot be {word!r}; allowed: {', '.join(allowed)}")
    return replace(portrait, **{attribute: word})


def mirrored(portrait: Portrait) -> Portrait:
    """The portrait that the mirror shows: every left is right, every right left."""
    other = {"left": "right", "right": "left"}
    return Portrait(**{name: other.get(getattr(portrait, name), getattr(portrait, name)) for name in CHOICES})


def colour_edit(portrait: Portrait, id: str) -> tuple[str, str]:
    """The edit that validation applies to an image: one of its colours, by the id, becomes the most different one."""
    attribute = tuple(COLOURS)[id_hash(f"edit of {id}") % len(COLOURS)]
    palette = COLOURS[attribute]
    now = palette[getattr(portrait, attribute)]
    return attribute, max(palette, key=lambda word: sum((a - b) ** 2 for a, b in zip(palette[word], now, strict=True)))
