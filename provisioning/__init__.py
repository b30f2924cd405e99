"""Places where a process can run. A new one is a new file and one more line in this table.

Each value makes a provider from the path of the supervisor's source on this machine and the environment that the
program was started with (for masks of visible GPUs, and names of credentials). Importing this loads no driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from provisioning.base import Provider
from provisioning.local import LocalProvider

PROVIDERS: Mapping[str, Callable[[str, Mapping[str, str]], Provider]] = {
    "local": LocalProvider,
}
