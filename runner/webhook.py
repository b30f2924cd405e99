"""Posts one notice to one address: `python -m runner.webhook`, a short-lived child of the controller.

A process of its own, so that a server that answers drop by drop, or never, can be ended from outside, and so that the
controller does not load an HTTP library. stdin is a JSON object {"address", "timeout_s", "key", "body"}; the address
may be a secret, so no word that is printed repeats it. Exit code 0: told; 75: not now, try again; 1: never this way.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit

import requests

from runner.spec.notices import address_problem, is_this_machine

TOLD = 0
REFUSED = 1
TRY_AGAIN = 75
_PASSING = (408, 425, 429)


def post(order: dict[str, Any]) -> tuple[int, str]:
    """Send it: (exit code, what came of it, without the address). Redirects are not followed: they lead elsewhere."""
    address = str(order["address"])
    problem = address_problem(address)
    if problem is not None:
        return REFUSED, f"its address {problem}"
    with requests.Session() as session:
        # A proxy of the environment may carry what leaves this machine, and nothing else.
        session.trust_env = not is_this_machine(urlsplit(address).hostname or "")
        try:
            with session.post(
                address,
                data=json.dumps(order["body"]).encode(),
                headers={"Content-Type": "application/json", "Idempotency-Key": str(order["key"])},
                auth=_unchanged,
                timeout=order["timeout_s"],
                allow_redirects=False,
                stream=True,
            ) as answer:
                return _outcome(answer.status_code)
        except requests.exceptions.Timeout:
            return TRY_AGAIN, f"no answer within {order['timeout_s']:g} s"
        except requests.exceptions.SSLError:
            return TRY_AGAIN, "its certificate was not accepted"
        except requests.exceptions.ConnectionError:
            return TRY_AGAIN, "it cannot be reached"
        except requests.exceptions.RequestException as error:
            return REFUSED, type(error).__name__


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps credentials of ~/.netrc out: the address is all that a receiver may know us by."""
    return request


def _outcome(status: int) -> tuple[int, str]:
    if 200 <= status < 300:
        return TOLD, f"HTTP {status}"
    if 300 <= status < 400:
        return REFUSED, f"HTTP {status}: it leads to another address, and that is not followed"
    return TRY_AGAIN if status >= 500 or status in _PASSING else REFUSED, f"HTTP {status}"


if __name__ == "__main__":
    code, said = post(json.load(sys.stdin))
    print(said, file=sys.stderr)
    sys.exit(code)
