"""What a person may ask of a machine that is rented, as options of a command line: `offers` shows, `launch` rents."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

from runner.errors import UsageError

GpuNames = Annotated[list[str] | None, typer.Option("--gpu", help="GPU name, for example 'RTX 4090'. Repeatable.")]
GpuCount = Annotated[int | None, typer.Option("--gpus", help="GPUs on one machine (default 1).")]
Vram = Annotated[float | None, typer.Option("--vram-gib", help="Memory of each GPU in GiB, at least.")]
MaxUsdPerHour = Annotated[
    float | None, typer.Option("--max-usd-per-h", help="Most for an hour of the machine and its disk.")
]
Hours = Annotated[float | None, typer.Option("--hours", help="Planned use: offers are ranked by its cost.")]
Disk = Annotated[float | None, typer.Option("--disk-gb", help="Disk in GB, fixed for the machine's life.")]
TrafficUp = Annotated[float | None, typer.Option("--traffic-up-gb", help="GB that come home.")]
TrafficDown = Annotated[float | None, typer.Option("--traffic-down-gb", help="GB that go there.")]
Reliability = Annotated[float | None, typer.Option("--reliability", help="At least, 0 to 1.")]
Cuda = Annotated[float | None, typer.Option("--cuda", help="The driver's CUDA version, at least.")]
InetDown = Annotated[float | None, typer.Option("--inet-down-mbit", help="Download in Mbit/s, at least.")]
InetUp = Annotated[float | None, typer.Option("--inet-up-mbit", help="Upload in Mbit/s, at least.")]
Unverified = Annotated[bool, typer.Option("--unverified", help="Also machines that nobody has verified.")]
Datacenter = Annotated[bool, typer.Option("--datacenter", help="Only machines in data centres.")]
Interruptible = Annotated[bool, typer.Option("--interruptible", help="By a bid: cheaper; a higher bid pauses it.")]
Bid = Annotated[
    float | None, typer.Option("--bid-usd-per-h", help="The bid for the machine (default: each least bid).")
]

NAMES = {
    "gpu_names": "--gpu", "max_usd_per_h": "--max-usd-per-h", "hours": "--hours", "disk_gb": "--disk-gb",
    "traffic_up_gb": "--traffic-up-gb", "traffic_down_gb": "--traffic-down-gb", "min_reliability": "--reliability",
    "min_cuda": "--cuda", "min_inet_down_mbit_per_s": "--inet-down-mbit", "min_inet_up_mbit_per_s": "--inet-up-mbit",
    "image": "--image", "is_verified": "--unverified", "is_datacenter": "--datacenter",
    "is_interruptible": "--interruptible", "bid_usd_per_h": "--bid-usd-per-h",
}  # fmt: skip
"""The option of `launch` for each field of what is asked of a machine."""


def refuse_ignored(
    provider: str, rented: Collection[str], hosts: str | None, wanted: Collection[str], allow_upload: Collection[str]
) -> None:
    """Raises UsageError for options of another place of runs than `provider`, where they would be ignored, and for a
    missing list of hosts. `rented` are the places where machines are rented, `wanted` the fields that are asked for."""
    if provider == "ssh" and hosts is None:
        raise UsageError("--provider ssh needs --hosts FILE, a list of your machines; see docs/elsewhere.md")
    if provider != "ssh" and hosts is not None:
        raise UsageError(f"--hosts FILE needs --provider ssh, and this is --provider {provider}; see docs/elsewhere.md")
    ignored = [*(NAMES[one] for one in wanted), *(["--allow-upload"] if allow_upload else [])]
    if ignored and provider not in rented:
        raise UsageError(
            f"{', '.join(ignored)}: only for a rented machine, which needs --provider {' or '.join(sorted(rented))}; "
            f"this is --provider {provider} (nothing was started)"
        )
