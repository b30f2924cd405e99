"""What a pass is: one kind of artefact, made for batches of images by one model that is resident meanwhile. No torch.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from trainer.prepare.recipe import Recipe

JsonValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a pass may look at. `image_CHW` is the uint8 RGB crop, `caption` the text, each there if the pass needs it.

    `source` is the file that the image came from: beside it, a caption may stand.
    """

    id: str
    source: Path
    image_CHW: np.ndarray | None = None
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What a pass made for one image: the content of each of its files, and facts worth keeping in the record.

    Arrays become .npy files; text is written as UTF-8.
    """

    files: Mapping[str, np.ndarray | str]
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a pass could make nothing for one image; it is tried again by the next run."""

    reason: str


Encode = Callable[[Sequence[Inputs]], Sequence[Made | Failed]]
"""One answer per input, in their order. All images of a batch have one shape.

Raises DataError if the whole pass cannot go on, such as a caption server that is gone.
"""


class Pass(Protocol):
    """One kind of artefact.

    `artefact` names it, `files` are what it consists of (the names that shards use), `needs` are the artefacts it is
    made from: `image` and `caption` reach it through `Inputs`. `batch` is the most images it is asked for at once.
    """

    artefact: str
    files: tuple[str, ...]
    needs: tuple[str, ...]
    batch: int

    @property
    def recipe(self) -> Recipe:
        """What it is made with; raises DataError or UsageError if its model cannot be found. Loads no weights."""
        ...

    def open(self) -> AbstractContextManager[Encode]:
        """Load the model; it is freed when the context ends. Raises DataError with what to do if that fails."""
        ...


@runtime_checkable
class LooksBeside(Protocol):
    """A pass that also reads files of the person beside the photograph, such as a caption in a .txt file."""

    def beside(self, source: Path) -> Mapping[str, str]:
        """SHA-256 in hex of each such file by what it is ('' if it cannot be read): where one has changed since, the
        artefact is stale. No key is a path."""
        ...


@runtime_checkable
class EachAlone(Protocol):
    """A pass whose answer for an image does not depend on the others of its batch: what is done is not asked again."""

    each_alone: Literal[True]
