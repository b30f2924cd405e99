"""Which account is rented with: address and key, out of the environment and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pydantic import SecretStr

from provisioning.vast.api import DEFAULT_URL
from provisioning.vast.models import Account
from provisioning.vast.wire import Timeouts, Wire, checked_origin

KEY_VARIABLE = "VAST_API_KEY"
URL_VARIABLE = "VAST_URL"
WHERE_KEYS_ARE_MADE = "https://cloud.vast.ai/manage-keys/"


def vast_account(environment: Mapping[str, str]) -> tuple[str, SecretStr]:
    """The origin of the service (without a trailing slash) and the key.

    VAST_URL may lead only to an https host of vast.ai or to this machine; without it the service's own address holds.
    White space around either is dropped. Raises ValueError that says what to do; no error ever holds the key.
    """
    said = environment.get(KEY_VARIABLE, "").strip()
    if not said:
        raise ValueError(
            f"{KEY_VARIABLE} is not set: renting at Vast.ai needs an API key; make one at {WHERE_KEYS_ARE_MADE}, "
            f"then: export {KEY_VARIABLE}=…"
        )
    key = SecretStr(said)
    url = checked_origin(environment.get(URL_VARIABLE, "").strip() or DEFAULT_URL)
    try:
        # What may be sent is the wire's to say; making one opens no connection.
        Wire(url, key, Timeouts(), time.monotonic)
    except ValueError as problem:
        raise ValueError(f"{problem}; copy it anew from {WHERE_KEYS_ARE_MADE}") from None
    return url, key


def money_left_usd(account: Account) -> float | None:
    """US dollars that can still be spent, or None when the account does not say.

    The service has two fields for it and its descriptions do not agree which one holds what was paid in; the other is
    0 then, so the larger one counts.
    """
    known = [one for one in (account.balance_usd, account.credit_usd) if one is not None]
    return max(known) if known else None
