"""Extra validations that a warning asks for: through the attempt's row into control.json, and gone when it clears."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.acting import HEALTHY, Acting, verdict


class Killed(BaseException):
    """Stands for a kill -9: nothing may catch it."""


@pytest.fixture
def acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Acting]:
    found = Acting(tmp_path, monkeypatch)
    yield found
    found.clean_up()


def test_a_warning_asks_for_probes_and_its_end_relaxes_them(acting: Acting) -> None:
    acting.launch(acting.arm())
    acting.rounds(lambda: acting.run()["step"] > 2)
    acting.says = verdict("warn", probe_every_steps=25)
    acting.rounds(lambda: acting.control()["probe_every_steps"] == 25)
    assert acting.control() == {"attempt": 1, "seq": 2, "probe_every_steps": 25, "stop": None}
    assert acting.run()["verdict"]["probe_every_steps"] == 25
    acting.rounds(lambda: len(acting.events("control_ack")) == 2)
    acting.says = HEALTHY
    acting.rounds(lambda: acting.control()["probe_every_steps"] is None)
    assert [reason.split(":")[0] for _, reason in acting.events("probe")] == ["asked", "relaxed"]
    assert "every 25 steps; it got worse" in acting.events("probe")[0][1]


def test_a_kill_between_the_decision_and_control_json_forgets_nothing(
    acting: Acting, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting.launch(acting.arm())
    acting.rounds(lambda: acting.run()["step"] > 2)

    def die(*_arguments: object, **_keys: object) -> None:
        raise Killed

    acting.says = verdict("warn", probe_every_steps=7)
    with monkeypatch.context() as patch:
        patch.setattr("runner.perform.write_control", die)
        with pytest.raises(Killed):
            acting.rounds(lambda: False)
    assert (len(acting.events("probe")), acting.control()["probe_every_steps"]) == (1, None)
    acting.start()
    acting.rounds(lambda: acting.control()["probe_every_steps"] == 7)
    assert acting.control()["seq"] == 2
    acting.start()  # one that finds it written leaves it as it is
    step = acting.run()["step"]
    acting.rounds(lambda: acting.run()["step"] > step + 5)
    assert acting.control()["seq"] == 2
    assert len(acting.events("probe")) == 1


def test_a_stop_ends_the_probes_and_the_next_attempt_is_asked_again(acting: Acting) -> None:
    acting.launch(acting.arm())
    acting.says = verdict("warn", probe_every_steps=9)
    acting.rounds(lambda: acting.run()["step"] > 2 and acting.control()["probe_every_steps"] == 9)
    acting.stop()
    acting.until("cancelled")
    assert acting.control() == {"attempt": 1, "seq": 3, "probe_every_steps": None, "stop": "checkpoint"}
    assert acting.ask("resume", **{"from": "last"}).accepted
    acting.rounds(lambda: acting.control()["attempt"] == 2 and acting.control()["probe_every_steps"] == 9)
    assert acting.control()["stop"] is None


def test_a_person_who_overrides_a_rule_does_not_end_its_probes(acting: Acting) -> None:
    acting.launch(acting.arm(policy={"autopsy_s": 0}))
    acting.rounds(lambda: acting.run()["step"] > 2)
    acting.says = verdict("abort")
    acting.until("aborted(regress)")
    acting.says = verdict("warn", probe_every_steps=4)  # what the judge makes of a rule that was overruled
    assert acting.ask("resume", **{"from": "last"}).accepted
    acting.rounds(lambda: acting.control()["probe_every_steps"] == 4)
    assert acting.control()["attempt"] == 3


def test_a_command_is_asked_for_nothing(acting: Acting) -> None:
    acting.launch(acting.lab.arm("C", steps=400))
    acting.says = verdict("warn", probe_every_steps=5)
    acting.until("finished", "C-s0")
    assert acting.run("C-s0")["verdict"]["probe_every_steps"] == 5
    assert acting.control("C-s0") == {"attempt": 1, "seq": 1, "probe_every_steps": None, "stop": None}
    assert acting.events("probe") == []
