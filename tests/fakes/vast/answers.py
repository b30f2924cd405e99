"""What a request is answered with, and the shapes of it that differ between sources and are chosen by the seed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}
HTML = {"Content-Type": "text/html; charset=utf-8"}


@dataclass(frozen=True)
class Answer:
    """One answer. `latency_s` is how long it takes; `dropped` means the connection is cut instead of answering."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    latency_s: float = 0.0
    dropped: bool = False

    def document(self) -> Any:
        """The body as JSON. Raises ValueError when it is none."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Shapes:
    """Where sources disagree, or a record was seen in two forms: which one this account sees."""

    ask_gone_status: int = 404  # or 410: not published which one a used offer answers with
    destroyed_error: str = "no_such_instance"  # or not_found
    empty_list: list[Any] | None = field(default_factory=list)  # or null
    short_bid_status: int = 400  # or 410; the body carries new_contract in both
    expired_status: int = 401  # or 404, "Session expired"
    unauthorized_is_empty: bool = False  # 401 without any JSON
    address_suffix: str = ""  # whitespace behind public_ipaddr
    absent_ports: bool = False  # ports left out instead of null
    key_in_create: bool = True  # whether instance_api_key comes with the answer to a create
    message_name: str = "msg"  # or message

    @classmethod
    def of_seed(cls, seed: int) -> Shapes:
        """The shapes of one seed: the same seed gives the same."""
        draw = random.Random(f"shapes/{seed}")
        return cls(
            ask_gone_status=draw.choice([404, 410]),
            destroyed_error=draw.choice(["no_such_instance", "not_found"]),
            empty_list=draw.choice([[], None]),
            short_bid_status=draw.choice([400, 410]),
            expired_status=draw.choice([401, 404]),
            unauthorized_is_empty=draw.random() < 0.5,
            address_suffix=draw.choice(["", "\n", "  "]),
            absent_ports=draw.random() < 0.5,
            key_in_create=draw.random() < 0.5,
            message_name=draw.choice(["msg", "message"]),
        )


def said(document: Mapping[str, Any], status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(status, JSON, json.dumps(document).encode())


def refused(status: int, error: str, message: str, shapes: Shapes | None = None, **more: Any) -> Answer:
    """`success: false` with its two texts; the second one has the name that this account sees."""
    name = shapes.message_name if shapes else "msg"
    return said({"success": False, "error": error, name: message, **more}, status)


def too_many(threshold_s: float | None, as_text: bool) -> Answer:
    """A 429. Neither form has a Retry-After header; the plain text may name the endpoint's threshold."""
    if as_text:
        text = "API requests too frequent" + (f": endpoint threshold={threshold_s}" if threshold_s else "")
        return Answer(429, TEXT, text.encode())
    return said({"detail": f"API requests too frequent: endpoint threshold={threshold_s}"}, 429)
