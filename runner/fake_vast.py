"""The command `armature-fake-vast`: a fake provider on loopback, to try renting without an account.

The fake lies among the tests, so only a checkout has it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

COMMAND = "tests.fakes.vast.command"


def main() -> int:
    """Run the fake of the checkout that this package lies in; the exit code, 2 where there is none."""
    checkout = Path(__file__).resolve().parent.parent
    if not checkout.joinpath(*COMMAND.split(".")).with_suffix(".py").is_file():
        print(
            f"armature-fake-vast needs a checkout: there is no tests/fakes/vast beside {Path(__file__).parent}; "
            "install with `pip install -e .` in a clone",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(checkout))
    code: int = importlib.import_module(COMMAND).main()
    return code


if __name__ == "__main__":
    sys.exit(main())
