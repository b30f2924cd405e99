"""The fake by hand: an account on loopback, whose instances are real machines with sshd, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import errno
import random
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.bill import bill, spent_usd, status
from tests.fakes.vast.clock import FollowingClock
from tests.fakes.vast.fake import Fake
from tests.fakes.vast.faults import FaultPlan, Rates
from tests.fakes.vast.instances import Instances
from tests.fakes.vast.market import Offer
from tests.fakes.vast.server import Server

LOOK_S = 0.2
BOOT_MAX_S = 3.0
FAULTS = {
    "off": Rates(boot_max_s=BOOT_MAX_S),
    "mild": Rates(
        boot_max_s=20.0, too_many=0.03, server_error=0.02, drop=0.01, slow=0.05, latency_max_s=3.0, list_lag_max_s=5.0,
        null_max_s=3.0, offer_gone=0.1, boot_trouble=0.1, has_hosts=True,
    ),
    "rough": Rates(
        boot_max_s=60.0, too_many=0.1, server_error=0.08, drop=0.06, malformed=0.03, destroy_false=0.2,
        destroy_404=0.1, slow=0.1, latency_max_s=20.0, list_lag_max_s=10.0, null_max_s=8.0, offer_gone=0.3,
        boot_trouble=0.3, has_hosts=True, offline=0.15, outbid=0.3, exit=0.1, event_max_s=3600.0,
    ),
}  # fmt: skip


def offers(gpus: int, seed: int) -> list[Offer]:
    """What is for rent: two machines with so many GPUs, whole and one by one, and five with one; prices vary."""
    draw, found = random.Random(f"prices/{seed}"), []
    for machine in range(1, 8):
        price = round(draw.uniform(0.3, 0.5), 3)
        size = gpus if machine <= 2 else 1
        cuts = [tuple(range(size)), *([(gpu,) for gpu in range(size)] if size > 1 else [])]
        found += [
            Offer(
                ask_id=1000 * machine + place, machine_id=machine, gpu_ids=cut, machine_gpus=size,
                gpu_usd_per_h=price * len(cut), min_bid_usd_per_h=price * len(cut) / 2,
                cpu_cores_effective=16.0 * len(cut),
            )
            for place, cut in enumerate(cuts)
        ]  # fmt: skip
    return found


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends with code 2 for one that is not allowed."""
    parser = argparse.ArgumentParser(
        prog="armature-fake-vast", description="A fake Vast.ai on loopback whose instances are real. Nothing is rented."
    )
    parser.add_argument("--port", type=int, default=8798, help="0 takes a free one (default: 8798)")
    parser.add_argument("--factor", type=_positive, default=1.0, help="how fast the provider's clock runs (default: 1)")
    parser.add_argument("--gpus", type=_count, default=4, help="GPUs of the two largest machines (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of prices, faults and the forms of answers")
    parser.add_argument("--faults", choices=FAULTS, default="off")
    parser.add_argument("--state-folder", type=Path, help="where the machines' files lie (default: a temporary one)")
    given = parser.parse_args(arguments)
    if given.state_folder and given.state_folder.exists() and any(given.state_folder.iterdir()):
        # Numbers of instances begin anew, and a new one must not find what an old one left.
        parser.error(f"--state-folder {given.state_folder} must be empty or not exist yet")
    return given


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 16:
        raise argparse.ArgumentTypeError(f"must be from 1 to 16, not {text}")
    return number


def _ends(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted: the account's state whenever something changes, and the bill at the end."""
    given = parsed(arguments)
    signal.signal(signal.SIGTERM, _ends)
    clock = FollowingClock(given.factor)
    plan = FaultPlan(given.seed, FAULTS[given.faults])
    fake = Fake(offers(given.gpus, given.seed), seed=given.seed, plan=plan, start_s=clock())
    try:
        with Server(fake, clock, given.port, 1 / given.factor) as server, Instances(fake, given.state_folder):
            print(f"export VAST_URL={server.url} VAST_API_KEY={shlex.quote(FULL_KEY)}", flush=True)
            _watch(fake, clock, server)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        print(f"port {given.port} is taken; choose another one with --port (0 takes a free one)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the machines have ended
        fake.advance_to(clock())
        print(*bill(fake), sep="\n", flush=True)
    return 0


def _watch(fake: Fake, clock: FollowingClock, server: Server) -> None:
    shown = ""
    while not server.closing.wait(LOOK_S):
        with fake.lock:
            fake.advance_to(clock())
            now, usd = status(fake), spent_usd(fake)
        if now != shown:
            shown = now
            print(f"{now}; {usd:.4f} USD so far", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
