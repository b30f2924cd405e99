"""The sizes of images in the course of a run: the same source, ids and order, in other pixels. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trainer.errors import DataError

if TYPE_CHECKING:
    from trainer.data.sample import Source

Stage = tuple[int, int]
"""The step that a stage ends before, and the side of the square image in it (pixels)."""


@runtime_checkable
class Resizing(Protocol):
    """A source that can give its images in another size."""

    def at_size(self, size: int) -> Source:
        """The same images, ids and splits where the square image has `size` pixels a side."""
        ...


class Stages:
    """The source for every step: `stages` in their order, then the source as it is.

    Raises DataError for a source that knows one size only.
    """

    def __init__(self, source: Source, stages: Sequence[Stage]) -> None:
        self._last = source
        self._stages: list[tuple[int, Source]] = []
        for end, size in stages:
            if not isinstance(source, Resizing):
                raise DataError("resolution: this source has images of one size; allowed: no stages")
            self._stages.append((end, source.at_size(size)))

    def of(self, step: int) -> Source:
        """The source of the update that follows `step` finished steps."""
        return next((source for end, source in self._stages if step < end), self._last)

    def step_of_the_largest(self, step: int) -> int:
        """A step not before `step` whose images are the largest that are still to come."""
        return max(step, self._stages[-1][0]) if self._stages else step
