"""The command `runner`: parses, prints, maps errors to exit codes. A room is imported only when its command runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from runner import renting_options as options
from runner.errors import EXIT_INTERRUPTED, EXIT_OK, ArmatureError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Armature: launch the arms of an ablation study, go to sleep, read a comparison you can trust.",
)

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where everything is kept (default $RUNNER_HOME or ./runs).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
ArmFiles = Annotated[list[Path], typer.Argument(help="Arm files, for example arms/*.yaml.", show_default=False)]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value: change a dotted key in every arm.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="0-5 or 0,2,4: instead of the arms' own seeds.")]
Arms = Annotated[str | None, typer.Option("--arms", help="A,C: only these arms of the files.")]
Slots = Annotated[int | None, typer.Option("--slots", help="How many runs at once (default: as many as fit the host).")]
ProviderOption = Annotated[str, typer.Option("--provider", help="Where to run: local, ssh or vast.")]
Allow = Annotated[
    list[str] | None, typer.Option("--allow", help="RULE=reason: accept a fairness error; the report says why.")
]

Yes = Annotated[bool, typer.Option("--yes", help="Rent without asking (free slots need no confirmation).")]
HostsOption = Annotated[
    str | None, typer.Option("--hosts", help="With --provider ssh: the list of your machines (hosts.yaml).")
]
ShareGpus = Annotated[
    bool, typer.Option("--share-gpus", help="Start on GPUs that somebody else computes on, in what memory is left.")
]


@app.command()
def launch(
    arm_files: ArmFiles,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and touch nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the launch is accepted.")] = False,
    provider: ProviderOption = "local",
    slots: Slots = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
    yes: Yes = False,
    sets: Sets = None,
    seeds: Seeds = None,
    arms: Arms = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run again what has run already, as a new generation.")
    ] = False,
    amend: Annotated[bool, typer.Option("--amend", help="Replace the stored study-level keys.")] = False,
    allow: Allow = None,
    priority: Annotated[
        int, typer.Option("--priority", help="Higher goes first among what waits; nothing that runs makes way.")
    ] = 0,
    share_gpus: ShareGpus = False,
    hosts: HostsOption = None,
    accept_new: Annotated[
        bool, typer.Option("--accept-new", help="Trust the keys of hosts that are met for the first time.")
    ] = False,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", help="Most that a study may cost: budget.study.max_usd.")
    ] = None,
    gpu: options.GpuNames = None,
    max_usd_per_h: options.MaxUsdPerHour = None,
    hours: options.Hours = None,
    disk: options.Disk = None,
    up: options.TrafficUp = None,
    down: options.TrafficDown = None,
    reliability: options.Reliability = None,
    cuda: options.Cuda = None,
    inet_down: options.InetDown = None,
    inet_up: options.InetUp = None,
    image: Annotated[str | None, typer.Option("--image", help="Docker image of a rented machine; needs sshd.")] = None,
    unverified: options.Unverified = False,
    datacenter: options.Datacenter = False,
    interruptible: options.Interruptible = False,
    bid: options.Bid = None,
    allow_upload: Annotated[
        list[str] | None, typer.Option("--allow-upload", help="A file that looks like a secret and is none.")
    ] = None,
) -> None:
    """Train the arms: one run for each arm and seed, one slot for each run."""
    from runner.commands import launch as launch_command
    from runner.launching import Options

    allowed = tuple(allow or ())
    wanted = {
        "gpu_names": gpu, "max_usd_per_h": max_usd_per_h, "hours": hours, "disk_gb": disk, "traffic_up_gb": up,
        "traffic_down_gb": down, "min_reliability": reliability, "min_cuda": cuda,
        "min_inet_down_mbit_per_s": inet_down, "min_inet_up_mbit_per_s": inet_up, "image": image,
        "is_verified": False if unverified else None, "is_datacenter": datacenter or None,
        "is_interruptible": interruptible or None, "bid_usd_per_h": bid,
    }  # fmt: skip
    chosen = Options(
        tuple(sets or ()), seeds, arms, slots, provider, fresh, amend, allowed, priority, share_gpus, hosts,
        lambda _place, _fingerprint: accept_new and not dry_run,
        {name: value for name, value in wanted.items() if value is not None}, tuple(allow_upload or ()), max_usd,
    )  # fmt: skip
    raise typer.Exit(
        launch_command.launch(arm_files, chosen, home, dry_run=dry_run, detach=detach, as_json=as_json, yes=yes)
    )


@app.command()
def check(
    arm_files: ArmFiles,
    resolve: Annotated[bool, typer.Option("--resolve", help="Print the resolved configuration of each run.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings of the fairness lint end in exit code 1.")] = False,
    provider: ProviderOption = "local",
    slots: Slots = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
    sets: Sets = None,
    seeds: Seeds = None,
    arms: Arms = None,
    amend: Annotated[bool, typer.Option("--amend", help="Plan as `launch --amend` would.")] = False,
    allow: Allow = None,
    hosts: HostsOption = None,
) -> None:
    """Say what a launch would do and whether the comparison is fair. Touches nothing."""
    from runner.commands import check as check_command
    from runner.launching import Options

    allowed = tuple(allow or ())
    chosen = Options(tuple(sets or ()), seeds, arms, slots, provider, False, amend, allowed, hosts=hosts)
    raise typer.Exit(check_command.check(arm_files, chosen, home, resolve=resolve, strict=strict, as_json=as_json))


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="Only this study.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and refresh until every run has ended.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the runs: state, health, progress, primary metric."""
    from runner.commands import person as person_commands

    raise typer.Exit(person_commands.status(home, study, watch=watch, as_json=as_json))


@app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run: id, unique prefix, or study/arm-s0.", show_default=False)],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Stay until the run has ended.")] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="This attempt instead of the latest: 1, 2, …", show_default=False)
    ] = None,
    home: HomeOption = None,
) -> None:
    """Print what an attempt of a run, the latest one by default, wrote to stdout and stderr."""
    from runner.commands import person as person_commands

    raise typer.Exit(person_commands.logs(home, run, follow=follow, attempt=attempt))


@app.command()
def stop(
    name: Annotated[str | None, typer.Argument(help="A run or a study.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run of this home.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the runs have ended.")] = False,
    home: HomeOption = None,
) -> None:
    """Stop runs; a trainer writes a checkpoint first, and `resume` continues from it."""
    from runner.commands import person as person_commands

    raise typer.Exit(person_commands.stop(home, name, everything=everything, wait=wait))


@app.command()
def resume(
    run: Annotated[
        str | None, typer.Argument(help="A run; without one, adopt what is running.", show_default=False)
    ] = None,
    start: Annotated[str, typer.Option("--from", help="best or last: which checkpoint to continue from.")] = "last",
    yes: Yes = False,
    home: HomeOption = None,
) -> None:
    """Start the controller again and go on; with RUN, a new attempt of it."""
    from runner.commands import person as person_commands

    raise typer.Exit(person_commands.resume(home, run, start, yes=yes))


@app.command()
def extend(
    run: Annotated[str, typer.Argument(help="A run: id, unique prefix, or study/arm-s0.", show_default=False)],
    steps: Annotated[int, typer.Option("--steps", help="Its new budget in steps, in all.", show_default=False)],
    yes: Yes = False,
    home: HomeOption = None,
) -> None:
    """Give a run more steps; a training goes on from its last checkpoint with the new schedule."""
    from runner.commands import extend as extend_command

    raise typer.Exit(extend_command.extend(home, run, steps, yes=yes))


@app.command()
def autopsy(
    run: Annotated[str, typer.Argument(help="An ended run of our trainer.", show_default=False)],
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is accepted.")] = False,
    yes: Yes = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a run's best checkpoint with its last one: weights, averaging, guidance, routing - what became worse?"""
    from runner.commands import autopsy as autopsy_command

    raise typer.Exit(autopsy_command.autopsy(home, run, detach=detach, as_json=as_json, yes=yes))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="A run: id, unique prefix, or study/arm-s0.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The run to compare it with.", show_default=False)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two runs: configuration, code, environment, outcome."""
    from runner.commands import diff as diff_command

    raise typer.Exit(diff_command.diff(home, a, b, as_json=as_json))


@app.command()
def export(
    study: Annotated[str, typer.Argument(help="A study.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write (default: export/ in the study's folder).")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write a study's tables as CSV: runs, attempts, points, events, verdicts."""
    from runner.commands import export as export_command

    raise typer.Exit(export_command.export(home, study, out))


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="A study.", show_default=False)],
    home: HomeOption = None,
) -> None:
    """Write a study's report: Markdown, figures and CSV."""
    from runner.commands import report as report_command

    raise typer.Exit(report_command.report(home, study))


@app.command()
def backtest(
    curves: Annotated[str, typer.Argument(help="A file of recorded curves, or a study.", show_default=False)],
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="armed (every detector may stop; the default for a file), own (that of a study; its default), default "
            "(of arms that say nothing), a YAML file with a policy block, or DETECTOR=severity,…",
        ),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option("--scale-thresholds", help="X: all levels times X; NAME=X: one of them. May be repeated."),
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option("--usd-per-hour", min=0.0, help="What an hour costs: prints the money saved.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded curves: what would have been stopped when, and what that would have saved."""
    from runner.commands import backtest as backtest_command

    raise typer.Exit(backtest_command.backtest(home, curves, policy, tuple(scale or ()), usd_per_hour, as_json=as_json))


@app.command()
def offers(
    gpu: options.GpuNames = None,
    gpus: options.GpuCount = None,
    vram: options.Vram = None,
    max_usd: options.MaxUsdPerHour = None,
    hours: options.Hours = None,
    disk: options.Disk = None,
    up: options.TrafficUp = None,
    down: options.TrafficDown = None,
    reliability: options.Reliability = None,
    cuda: options.Cuda = None,
    inet_down: options.InetDown = None,
    inet_up: options.InetUp = None,
    unverified: options.Unverified = False,
    datacenter: options.Datacenter = False,
    interruptible: options.Interruptible = False,
    bid: options.Bid = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most so many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show what could be rented at Vast.ai now and what your plan would cost there. Rents nothing."""
    from runner.commands import offers as offers_command
    from runner.renting.offered import wanted_of

    wanted = wanted_of(
        {
            "gpu_names": gpu or None, "gpus": gpus, "min_vram_gib": vram, "max_usd_per_h": max_usd, "hours": hours,
            "disk_gb": disk, "traffic_up_gb": up, "traffic_down_gb": down, "min_reliability": reliability,
            "min_cuda": cuda, "min_inet_down_mbit_per_s": inet_down, "min_inet_up_mbit_per_s": inet_up,
            "is_verified": not unverified, "is_datacenter": datacenter, "is_interruptible": interruptible,
            "bid_usd_per_h": bid,
        }
    )  # fmt: skip
    raise typer.Exit(offers_command.offers(wanted, os.environ, as_json=as_json, limit=limit))


@app.command()
def gc(
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give back rented machines that this home made and no longer owns; others in the account are only listed."""
    from runner.commands import gc as gc_command

    raise typer.Exit(gc_command.gc(home, as_json=as_json))


@app.command()
def doctor(
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine and the home: what is wrong, and what to do about it."""
    from runner.commands import doctor as doctor_command

    raise typer.Exit(doctor_command.doctor(home, as_json=as_json))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the new arm.", show_default=False)] = Path("my-study"),
) -> None:
    """Write a commented arm for your own training script."""
    from runner import starter

    raise typer.Exit(_print_started(starter.init(folder)))


def _print_started(written: Any) -> int:
    for path in written:
        typer.echo(f"wrote {path}")
    first = next(path for path in written if str(path).endswith(".yaml"))
    typer.echo(f"next: runner check {first}")
    return EXIT_OK


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `runner status | head` must not end in a traceback
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    try:
        app(arguments, prog_name="runner")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_OK
    except ArmatureError as error:
        from runner.screen import printable

        print(f"runner: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    main()
