"""A home with a quick trainer arm, rounds of a controller in this process, and a judge that says what a test wants."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from provisioning.local import LocalProvider
from runner.controller import Controller
from runner.detach import SUPERVISOR
from runner.home import Home
from runner.launching import Options, commit, prepare
from runner.records import ENDED, Finding, Health, Severity, Verdict
from runner.store import requests, tables
from runner.store.database import reading
from runner.store.session import Session
from tests.fakes.lab import Lab
from tests.fakes.quick_trainer import quick_python
from tests.test_runner_waves import Quick, _Done

DEADLINE_S = 60.0
HEALTHY = Verdict(Health.OK, "none")


def verdict(action: str, rule: str = "regress", probe_every_steps: int | None = None) -> Verdict:
    """What the judge might say."""
    health = Health.WARNED if action == "warn" else Health.DIVERGED
    finding = Finding(rule, Severity.WARN if action == "warn" else Severity.ABORT, 3, "it got worse")
    return Verdict(health, action, rule, "it got worse", (finding,), {}, probe_every_steps)


class Acting:
    """One home and one controller after another; `says` is the judge's verdict from now on."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.lab = Lab(folder, draws_reports=False)
        self.home = Home(self.lab.home)
        self.says = HEALTHY
        self.controller: Controller | None = None
        patch.setattr("runner.follow.judge", lambda *_args, **_keys: self.says)

    def arm(
        self, name: str = "T", *, steps: int = 100_000, policy: Mapping[str, Any] | None = None, **keys: Any
    ) -> Path:
        """Write a trainer arm that the quick trainer runs, and return its file."""
        document = {
            "study": "lab",
            "arm": name,
            "seeds": [0],
            "primary": {"metric": "val/recon_rmse"},
            "policy": policy or {},
            "resources": {"gpus": 0},
            "environment": {"python": str(quick_python(self.lab.folder))},
            "trainer": {"steps": steps, "device": "cpu", "data": {"size": 16}},
            **keys,
        }
        path = self.lab.folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        return path

    def launch(self, *arms: Path, **options: Any) -> None:
        commit(prepare(self.home, arms, Options(**options)))
        if self.controller is None:
            self.start()

    def start(self, provider: type[LocalProvider] = LocalProvider) -> Controller:
        """Another controller, as after the death of the one before."""
        if self.controller is not None:
            self.controller.close()
        session = Session(self.home.database, pid=os.getpid(), now=time.time())
        report: Callable[..., Any] = lambda *_: _Done()  # noqa: E731 - the report is not what is tested
        made = {"local": provider(str(SUPERVISOR), os.environ)}
        self.controller = Controller(self.home, session, made, Quick(), dict(os.environ), report)
        return self.controller

    def rounds(self, until: Callable[[], Any]) -> None:
        """Rounds until something holds."""
        assert self.controller is not None
        end = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < end, (self.run(), self.events())
            self.controller.step()
            time.sleep(0.01)

    def until(self, state: str, name: str = "T-s0") -> dict[str, Any]:
        """Rounds until a run is in a state."""
        self.rounds(lambda: self.run(name)["state"] == state)
        return self.run(name)

    def ask(self, kind: str, name: str = "T-s0", **payload: Any) -> requests.Answer:
        """A request of a person about one run, and the answer."""
        number = requests.ask(self.home, kind, {"run": self.run(name)["run_dir"], **payload})
        self.rounds(lambda: self.answer(number) is not None)
        answer = self.answer(number)
        assert answer is not None
        return answer

    def answer(self, number: int) -> requests.Answer | None:
        with reading(self.home) as connection:
            return requests.read_answer(connection, number)

    def stop(self, name: str = "T-s0") -> None:
        """A person's stop."""
        requests.ask(self.home, "stop", {"runs": [self.run(name)["run_dir"]], "reason": "stopped by a person"})

    def run(self, name: str = "T-s0") -> dict[str, Any]:
        return self.lab.status().get(name) or {"state": "", "step": 0}

    def folder(self, name: str = "T-s0") -> Path:
        return self.lab.home / str(self.run(name)["run_dir"])

    def control(self, name: str = "T-s0") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder(name) / "control.json").read_bytes())
        return found

    def calls(self, name: str = "T-s0") -> list[str]:
        """The commands of the trainer that were run, without their paths."""
        path = self.folder(name) / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [" ".join(word for word in line.split() if not word.startswith("/")) for line in lines]

    def events(self, *names: str) -> list[tuple[str, str]]:
        with reading(self.home) as connection:
            rows = connection.execute(select(tables.events).order_by(tables.events.c.id)).all()
        return [(row.what, row.reason) for row in rows if not names or row.what in names]

    def kinds(self, name: str = "T-s0") -> list[str]:
        """The kinds of the attempts of a run."""
        query = select(tables.attempts.c.kind).where(tables.attempts.c.run == self.run(name)["run_dir"])
        with reading(self.home) as connection:
            return list(connection.execute(query.order_by(tables.attempts.c.attempt)).scalars())

    def clean_up(self) -> None:
        for gate in self.lab.home.glob("*/*/wait-*"):
            gate.unlink()
        if self.controller is not None:
            names = [name for name, run in self.lab.status().items() if run["state"].split("(")[0] not in ENDED]
            for name in names:
                self.stop(name)
            self.rounds(lambda: self.controller is not None and not self.controller.step().open)
            self.controller.close()
        self.lab.clean_up()
