"""One admitted request, as a verb sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.vast.account import ApiKey
from tests.fakes.vast.routes import Route


@dataclass(frozen=True)
class Call:
    """The route, the numbers in its path, the query, the body as JSON (None: there is none), and whose key it was."""

    route: Route
    numbers: tuple[int, ...]
    query: Mapping[str, str]
    document: Any
    key: ApiKey | None

    @property
    def fields(self) -> dict[str, Any]:
        """The body when it is an object, otherwise an empty one."""
        return self.document if isinstance(self.document, dict) else {}

    def parameter(self, name: str, default: Any) -> Any:
        """A query value in JSON. Raises ValueError when it is none."""
        return json.loads(self.query[name]) if self.query.get(name) else default


def document_of(body: bytes) -> Any:
    """The body as JSON, None when it is empty or no JSON."""
    try:
        return json.loads(body)
    except ValueError:
        return None
