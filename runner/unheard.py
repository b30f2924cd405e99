"""What a run that ended well has not said: no metric at all, or never the one that its study is decided by. Pure.

Exit code 0 means finished, whatever was read; a name mistyped in an arm must not look like a success all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

from provisioning.run_paths import OURS
from runner.spec.models import ResolvedArm

SHOWN = 8


def unheard(arm: ResolvedArm, names: Collection[str], files: Sequence[str]) -> str | None:
    """A warning for a person, None when all is well. `names` are the metrics of the run that were read so far, `files`
    the names in its folder."""
    if not names:
        return f"it ended well, and no metric was read: {_where(arm, files)}"
    primary = None if arm.primary is None else arm.primary.metric
    if primary is None or primary in names:
        return None
    return f"its primary {primary} was never reported; reported: {_some(nearest_first(primary, names))}"


def nearest_first(name: str, names: Collection[str]) -> list[str]:
    """Names, those that look most like `name` in front."""
    close = get_close_matches(name, sorted(names), n=SHOWN, cutoff=0.5)
    return [*close, *sorted(set(names) - set(close))]


def _where(arm: ResolvedArm, files: Sequence[str]) -> str:
    metrics: dict[str, Any] = dict(arm.metrics or {})
    if metrics.get("source") == "regex":
        return "no line of its output matches metrics.pattern"
    path = str(metrics.get("path", "metrics.jsonl"))
    mine = [name for name in files if not name.startswith("attempt-") and name not in OURS]
    if path.split("/")[0] in mine:
        return (
            f"metrics.path {path} is there, and nothing in it is a {metrics.get('source', 'jsonl')} record with a step"
        )
    beside = f"; its folder holds {_some(nearest_first(path, mine))}" if mine else "; it wrote no file into its folder"
    return f"there is no {path} (metrics.path){beside}"


def _some(names: Sequence[str]) -> str:
    more = "" if len(names) <= SHOWN else f" and {len(names) - SHOWN} more"
    return ", ".join(names[:SHOWN]) + more
