"""`runner gc`: give back every rented machine that this home created and no longer owns; the rest is only listed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from provisioning.vast.account import vast_account
from runner.errors import EXIT_INFRASTRUCTURE, EXIT_OK, UsageError
from runner.home import find_home
from runner.launching import ready_database, wait_for_answer
from runner.screen import printable
from runner.store import requests
from runner.store.queries import require_home


def gc(home_path: Path | None, *, as_json: bool) -> int:
    """Ask the controller, which alone knows what it owns, and say what came of it; 3 while something is not proven.
    Raises UsageError without a key."""
    home = find_home(home_path)
    require_home(home)
    try:
        vast_account(os.environ)
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    ready_database(home)
    answer = wait_for_answer(home, requests.ask(home, "gc", {}))
    if as_json:
        print(json.dumps({"accepted": answer.accepted, "message": answer.message}))
    else:
        print(printable(answer.message))
    return EXIT_OK if answer.accepted else EXIT_INFRASTRUCTURE
