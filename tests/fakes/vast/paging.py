"""Keyset paging: a token names the last record of a page, so that records made meanwhile move nothing."""

from __future__ import annotations

import base64
import json


def token(last: int) -> str:
    """The cursor behind this number."""
    return base64.b64encode(json.dumps({"values": {"id": last}}).encode()).decode()


def after_token(text: str | None) -> int | None:
    """The number in a cursor; None without one. Raises ValueError for a cursor that is none of ours."""
    if not text:
        return None
    try:
        return int(json.loads(base64.b64decode(text, validate=True))["values"]["id"])
    except (KeyError, TypeError) as wrong:
        raise ValueError(f"no cursor: {text!r}") from wrong
