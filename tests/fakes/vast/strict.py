"""What a careful client never does. Every breach is kept in words, so that a test can fail on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.fakes.vast.routes import NOT_MODELLED, Route, find

IMAGE_MAX, LABEL_MAX, COMMANDS_MAX, VALUE_MAX, ENVIRONMENT_MAX = 1024, 256, 4096, 256, 32768


def breaches(
    route: Route | None, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], document: Any
) -> list[str]:
    """Everything wrong with the form of one request; header names in lower case, `document` the body or None."""
    place, found = f"{method} {path}", []
    if route is None:
        found.append(_no_route(method, path))
    if not headers.get("authorization", "").startswith("Bearer "):
        found.append(f"{place}: no Authorization header with Bearer")
    found += [f"{place}: a key in the URL ({name})" for name in query if name in ("api_key", "key", "token")]
    if method in ("POST", "PUT", "DELETE") and not isinstance(document, dict):
        found.append(f"{place}: the body is no JSON object")
    if route is not None:
        found += [f"{place}: {text}" for text in _of_verb(route.verb, query, document)]
    return found


def _no_route(method: str, path: str) -> str:
    if find(method, f"{path}/"):
        return f"{method} {path}: the trailing slash is missing"
    if path.startswith(NOT_MODELLED):
        return f"{method} {path}: exists, but is not modelled here"
    return f"{method} {path}: no such path"


def _of_verb(verb: str, query: Mapping[str, str], document: Any) -> list[str]:
    if verb == "search":
        return underscored(document)
    if verb == "search_put":
        return underscored(document.get("q") if isinstance(document, dict) else None)
    if verb == "search_get":
        try:
            return underscored(json.loads(query.get("q", "{}")))
        except ValueError:
            return ["q is no JSON"]
    return oversize(document) if verb in ("create", "manage") and isinstance(document, dict) else []


def underscored(filters: Any) -> list[str]:
    """GPU names with an underscore: stored names have a space, such a filter finds nothing."""
    conditions = filters.get("gpu_name") if isinstance(filters, dict) else None
    if not isinstance(conditions, dict):
        return []
    names = [name for wanted in conditions.values() for name in (wanted if isinstance(wanted, list) else [wanted])]
    return [f"GPU name {name!r} with an underscore" for name in names if "_" in str(name)]


def oversize(document: Mapping[str, Any]) -> list[str]:
    """Fields of a create or manage beyond the published sizes, and an env that is no object."""
    found = []
    arguments = document.get("args") or []
    commands = len(document.get("onstart") or "") + sum(len(str(part)) for part in arguments)
    for name, size, limit in [
        ("image", len(document.get("image") or ""), IMAGE_MAX),
        ("label", len(document.get("label") or ""), LABEL_MAX),
        ("onstart + args", commands, COMMANDS_MAX),
    ]:
        if size > limit:
            found.append(f"{name} has {size} characters, at most {limit} are allowed")
    environment = document.get("env")
    if environment is None:
        return found
    if not isinstance(environment, dict):
        return [*found, f"env is no object but {type(environment).__name__}"]
    too_long = [name for name, value in environment.items() if len(str(value)) > VALUE_MAX]
    found += [f"env {name!r} has over {VALUE_MAX} characters" for name in too_long]
    if sum(len(str(name)) + len(str(value)) for name, value in environment.items()) > ENVIRONMENT_MAX:
        found.append(f"env has over {ENVIRONMENT_MAX} characters together")
    return found
