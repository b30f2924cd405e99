"""What a person may ask of a machine that is rented, as options of a command line: `offers` shows, `launch` rents."""

from __future__ import annotations

from typing import Annotated

import typer

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
