"""Lines of `make accept` about runs on other machines. The hosts are real sshd processes on loopback, the service is
the fake that the repository ships; nothing is rented."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.accept_bench import QUICKSTART, SHORT, Bench, require
from tests.fakes.sshd import Sshd

OUTAGE_S = 600.0


@contextmanager
def fake_vast(bench: Bench, *arguments: str) -> Iterator[dict[str, str]]:
    """The fake service started by hand, as the README says; yields its variables, and leaves its bill in the notes."""
    log = bench.clone.parent / "fake.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [".venv/bin/armature-fake-vast", "--port", "0", *arguments], cwd=bench.clone, stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        said = bench.until(
            lambda: re.search(r"export (VAST_URL=\S+) (VAST_API_KEY=\S+)", log.read_text()), "the fake", 60
        )
        yield dict(one.split("=", 1) for one in said.groups())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        bench.notes["bill"] = log.read_text().splitlines()[-8:]


def vast_demo(bench: Bench) -> None:
    """The quickstart on one rented machine: slots pinned 0 to 3, everything home, the bill is ours, nothing is left."""
    python = str(bench.clone / ".venv/bin/python")
    with fake_vast(bench, "--gpus", "4") as variables:
        os.environ.update(variables)
        bench.runner(
            "launch", *QUICKSTART, *SHORT, "--seeds", "0", "--provider", "vast", "--max-usd", "20", "--hours", "1",
            "--yes", "--set", f"environment.python={python}", home="rented",
        )  # fmt: skip
        document = _document(bench, "rented")
        runs = document["runs"]
        bench.notes["slots"] = sorted(run["slot"] for run in runs)
        require(len(runs) == 4 and all(run["state"] == "finished" for run in runs), "four finished runs")
        require(len({run["slot"].split(":")[0] for run in runs}) == 1, "on one machine")
        require(sorted(run["slot"].split(":")[1] for run in runs) == [f"gpu{n}" for n in range(4)], "slots 0 to 3")
        pinned = sorted(_gpus(bench.home("rented") / run["run_dir"]) for run in runs)
        require(pinned == [(0,), (1,), (2,), (3,)], f"each is pinned to one GPU: {pinned}")
        bench.until(lambda: all(run["sync"] == "done" for run in _document(bench, "rented")["runs"]), "all home", 120)
        for run in runs:
            kept = bench.home("rented") / run["run_dir"] / "checkpoints"
            require(any(kept.glob("step_*/model.safetensors")), f"a checkpoint of {run['arm']} is home")
        report = bench.home("rented") / "portrait-quickstart/report/report.md"
        require("## Cost" in report.read_text(), "the report says what it cost")
        bench.until(lambda: _document(bench, "rented")["machines"][0]["charged_usd"] is not None, "the charges", 240)
        (machine,) = _document(bench, "rented")["machines"]
        bench.notes["machine"] = {key: machine[key] for key in ("metered_usd", "charged_usd", "usd", "state")}
        require(machine["state"] == "released", "the machine is given back")
    for name in variables:
        del os.environ[name]
    bill = "\n".join(bench.notes["bill"])
    (billed,) = re.findall(r"together: 1 instances, ([\d.]+) USD", bill)
    require("left behind: 0 instances" in bill, "0 instances are left")
    require(
        abs(machine["usd"] - float(billed)) <= 0.01 * float(billed) + 5e-5, f"ledger {machine['usd']}, bill {billed}"
    )


def chaos(bench: Bench) -> None:
    """2,000 seeded schedules of everything that can go wrong: nothing left, nothing double, nobody else's touched."""
    out = bench.run(".venv/bin/python", "-m", "benchmarks.renting", "--seeds", "2000", limit_s=7200, code=None)
    result = json.loads((bench.clone / "benchmarks/results/renting.json").read_text())
    bench.notes["says"] = out.strip().splitlines()[-9:]
    bench.notes["failures"] = result["failures"]
    require(result["schedules"] >= 2000 and not result["failures"], "every schedule keeps its promises")
    require(result["ours"]["left_machines"] == 0 and result["ours"]["doubles"] == 0, "nothing left, nothing double")


def outage(bench: Bench) -> None:
    """Two ssh hosts, one of them cut off for ten minutes: its training goes on, the other's points come on time."""
    hosts = {name: Sshd(bench.clone.parent / name, name) for name in ("ada", "bob")}
    for sshd in hosts.values():
        sshd.start()
    try:
        _outage(bench, hosts)
    finally:
        for sshd in hosts.values():
            sshd.stop()


def _outage(bench: Bench, hosts: dict[str, Sshd]) -> None:
    blocks = {
        name: {"address": "127.0.0.1", "port": sshd.port, "keys": list(sshd.host.keys), "python": sshd.host.python}
        for name, sshd in hosts.items()
    }
    (bench.clone.parent / "hosts.yaml").write_text(json.dumps({"hosts": blocks}))
    steps = round(OUTAGE_S + 180)
    arm = bench.clone.parent / "arms"
    arm.mkdir()
    (arm / "train.py").write_text(
        "import time\n"
        f"for step in range(1, {steps} + 1):\n"
        f"    print(f'step {{step}}/{steps} loss={{1 / step:.9f}}', flush=True)\n"
        "    time.sleep(1)\n"
    )
    for name in "AB":
        document = {
            "study": "outage", "arm": name, "seeds": [0], "steps": steps, "resources": {"gpus": 0},
            "command": ["python3", "{arm_dir}/train.py", name],
            "metrics": {"source": "regex", "pattern": r"step (?P<step>\d+)/\d+ loss=(?P<loss>\S+)"},
        }  # fmt: skip
        (arm / f"{name}.yaml").write_text(json.dumps(document))
    bench.runner(
        "launch", str(arm / "A.yaml"), str(arm / "B.yaml"), "--provider", "ssh", "--hosts",
        str(bench.clone.parent / "hosts.yaml"), "--accept-new", "--slots", "1", "--detach", home="outage",
    )  # fmt: skip
    by_host = bench.until(lambda: _by_host(bench, hosts), "both to run", 120)
    cut, other = by_host["bob"], by_host["ada"]
    hosts["bob"].stop()
    began = time.monotonic()
    last, last_at, longest = bench.status("outage")[other]["step"], began, 0.0
    while time.monotonic() - began < OUTAGE_S:
        step = bench.status("outage")[other]["step"]
        if step != last:
            longest, last, last_at = max(longest, time.monotonic() - last_at), step, time.monotonic()
        time.sleep(0.2)
    during = bench.status("outage")
    bench.notes["during"] = {name: [run["state"], run["health"], run["step"]] for name, run in during.items()}
    bench.notes["longest_gap_of_the_other_s"] = round(longest, 1)
    require(during[cut]["state"] == "running" and during[cut]["health"] == "unknown", "the cut one is not accused")
    hosts["bob"].start()
    bench.runner("status", "outage", "--watch", home="outage", limit_s=600)
    runs = bench.status("outage")
    bench.notes["runs"] = {name: [run["state"], run["attempts"], run["points"]] for name, run in runs.items()}
    require(all(run["state"] == "finished" and run["attempts"] == 1 for run in runs.values()), "one attempt each")
    require(all(run["points"] == steps for run in runs.values()), "every point is here")
    require(longest <= 6.0, f"the other host's points came on time (longest gap {longest:.1f} s, a step takes 1 s)")


def _by_host(bench: Bench, hosts: dict[str, Sshd]) -> dict[str, str] | None:
    found = {
        run["slot"].split(":")[0]: name
        for name, run in bench.status("outage").items()
        if run["step"] > 5 and run["slot"]
    }
    return found if found.keys() == hosts.keys() else None


def _document(bench: Bench, home: str) -> dict[str, Any]:
    """The one study of a home as `status --json` has it."""
    command = [".venv/bin/runner", "status", "--json", "--home", str(bench.home(home))]
    done = subprocess.run(command, cwd=bench.clone, capture_output=True, text=True, check=True)
    study: dict[str, Any] = json.loads(done.stdout)["studies"][0]
    return study


def _gpus(run_dir: Path) -> tuple[int, ...]:
    """The numbers of the GPUs that a run was pinned to."""
    return tuple(json.loads((run_dir / "provenance.json").read_text())["slot"]["gpu_indices"])


def by_tests(*tests: str) -> Any:
    """A line that runs tests of the clone and names them."""

    def run(bench: Bench) -> None:
        out = bench.run(".venv/bin/python", "-m", "pytest", "-vv", "-m", "long or not long", *tests, limit_s=1800)
        passed = [
            line.split("::", 1)[1].split(" ")[0] for line in out.splitlines() if "::" in line and "PASSED" in line
        ]
        bench.notes["tests"] = passed
        require(passed, "some tests were run")

    return run


rented = by_tests("tests/test_runner_vast.py", "tests/test_runner_vast_bad_input.py")
hostile = by_tests("tests/test_runner_ssh_refusals.py", "-k", "harm or hostile")
secrets = by_tests("tests/test_runner_secrets.py")
offline = by_tests("tests/test_runner_vast_offline.py")
