"""What cannot be used of a set of images, and how much of that is too much. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.errors import DataError

_FIRST_FEW = 5


class RejectedSample(DataError):
    """One sample whose content cannot be used: `file` holds it under `id`, `reason` says what is wrong."""

    def __init__(self, file: str, id: str, reason: str) -> None:
        self.file, self.id, self.reason = file, id, reason
        super().__init__(f"{file}: {id}: {reason}")

    @property
    def entry(self) -> tuple[str, str]:
        """Name and reason, as `Source.rejected` lists them."""
        return f"{self.file}: {self.id}", self.reason


def first_few(rejected: Sequence[tuple[str, str]]) -> str:
    """The first names and reasons on one line."""
    few = "; ".join(f"{name}: {reason}" for name, reason in rejected[:_FIRST_FEW])
    return few + (f"; and {len(rejected) - _FIRST_FEW} more" if len(rejected) > _FIRST_FEW else "")


def refuse_too_many(
    what: str,
    total: int,
    rejected: Sequence[tuple[str, str]],
    allowed_share: float,
    kind: str = "files",
    setting: str = "data.max_rejected_share",
) -> None:
    """Raise DataError if more than `allowed_share` of `total` had to be rejected; `setting` is where that is said."""
    if len(rejected) / max(1, total) > allowed_share:
        raise DataError(
            f"{what}: {len(rejected)} of {total} {kind} cannot be used, more than "
            f"{setting} {allowed_share:g} allows: {first_few(rejected)}"
        )
