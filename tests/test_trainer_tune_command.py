"""`tune` on this machine: real steps in real processes, one of which is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.fakes.trainer_parts import tiny_config
from trainer.control import StopRequest
from trainer.data import open_source
from trainer.data.batches import open_batches
from trainer.document import Document, load_document
from trainer.errors import ConfigError, DataError
from trainer.step import Learner
from trainer.tuning import command, trial
from trainer.tuning.candidate import Candidate, own_candidate
from trainer.tuning.noise import NoiseData
from trainer.tuning.process import measure
from trainer.tuning.request import Request

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CONFIG = """# tuned here
seed: 3
trainer:
  steps: 12     # few
  batch: 8
  device: cpu
  data: {size: 8, samples: 64, held_out: 4}
  model: {width: 16, depth: 3, heads: 2, patch: 2}
  optimizer: {name: muon, lr: 0.01, warmup_steps: 1}
  tread: {enabled: true, first: 1, last: -1}
  repa: {enabled: true}
  validation: {every: 6, samples: 4, sampler_steps: 2}
"""
DEADLINE_S = 300.0


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Begin to tune the configuration of a folder, with another folder for what is temporary."""
    (folder / "temporary").mkdir(parents=True)
    (folder / "here").mkdir()
    (folder / "here" / "config.yaml").write_text(CONFIG)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "temporary"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "tune", "config.yaml", "--seconds", "0.1", *options],
        cwd=folder / "here",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_trial(tuner: subprocess.Popen[str]) -> psutil.Process:
    """The process that measures the first candidate, as soon as it is there."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for child in psutil.Process(tuner.pid).children():
            try:
                if "trainer.tuning.trial" in child.cmdline():
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.01)
    raise AssertionError("no candidate was ever tried")


def losses(path: Path) -> list[float]:
    """The losses of the first steps of a configuration."""
    loaded = load_document(path)
    source = open_source(loaded.config, loaded.seed)
    learner = Learner(loaded.config, source.streams, loaded.seed, CPU)
    batches = open_batches(loaded.config, source, loaded.seed)
    results = [learner.step(batches, step, StopRequest()) for step in range(4)]
    return [float(result.losses_L[0]) for result in results if result is not None]


def request(folder: Path, config: Any, **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "config": config.model_dump_json(),
        "seed": 1,
        "run": "r",
        "run_dir": str(folder / "run"),
        "answer": str(folder / "trial.jsonl"),
        "attempt": 1,
        "synthetic": False,
        "warm_up": 2,
        "seconds": 0.0,
        "steps": None,
        "best_s": None,
        "limit_mib": 100_000.0,
    }
    return Request(**{**fields, **changes})


def measured(folder: Path, config: Any, source: Any, **changes: Any) -> dict[str, Any]:
    """What a trial measures, in this process."""
    (folder / "run" / "checkpoints").mkdir(parents=True)
    return trial._measured(request(folder, config, **changes), Document(config, 1, "r"), source, CPU)


# ---- from beginning to end -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_is_killed_and_the_others_decide_without_changing_what_is_learned(tmp_path: Path) -> None:
    options = ("--micro-batches", "4", "--checkpointing", "none,full", "--compile", "off", "--repeats", "1")
    tuner = start(tmp_path, *options, "--json", "--out", "out.yaml")
    first_trial(tuner).kill()  # the configuration as it is
    output, said = tuner.communicate(timeout=DEADLINE_S)
    assert tuner.returncode == 0, said
    found = json.loads(output)
    kinds = [(each["batch"], each["activation_checkpointing"], each["outcome"]) for each in found["candidates"]]
    assert kinds == [(8, "none", "out_of_memory"), (4, "full", "measured"), (4, "none", "measured")]
    assert "SIGKILL" in found["candidates"][0]["why"]
    assert found["complete"] is True
    assert (found["device"], found["samples_per_step"], found["written"]) == ("cpu", 8, "out.yaml")
    for each in found["candidates"][1:]:
        assert each["batch"] * each["accumulation"] == 8
        assert each["steps_timed"] >= 3
        assert 100 < each["peak_mib"] < found["limit_mib"]
        assert each["images_per_s"] == pytest.approx(8 / each["step_s"], rel=1e-4)
    chosen = found["chosen"]
    assert chosen in found["candidates"][1:]
    assert found["speedup"] is None  # of what nobody measured
    own, new = tmp_path / "here" / "config.yaml", tmp_path / "here" / "out.yaml"
    before, after = load_document(own), load_document(new)
    assert after.config.samples_per_step == before.config.samples_per_step == 8
    assert own_candidate(after.config) == Candidate(4, 2, chosen["activation_checkpointing"], False, "fp32")
    assert set(CONFIG.splitlines()) - set(new.read_text().splitlines()) == {"  batch: 8"}
    assert losses(new) == pytest.approx(losses(own), rel=1e-4)
    assert "3 of 3" in said
    assert "left" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "here", "out.yaml", "temporary"]
    assert own.read_text() == CONFIG


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_prints_what_there_is_and_leaves_no_process(tmp_path: Path, number: int) -> None:
    tuner = start(tmp_path, "--json", "--out", "out.yaml")
    current = first_trial(tuner)
    tuner.send_signal(number)
    output, said = tuner.communicate(timeout=DEADLINE_S)
    assert tuner.returncode == 130, said
    found = json.loads(output)
    assert (found["complete"], found["candidates"], found["chosen"], found["written"]) == (False, [], None, None)
    current.wait(DEADLINE_S)  # a trial that had only just begun ends by itself, with its pipe
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "here", "temporary"]


# ---- what one process measures ---------------------------------------------------------------------------------------


def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that trials in this process make from now on."""
    made: list[int] = []
    advance = trial.advance

    def noted(session: Any, step: int) -> Any:
        made.append(step)
        return advance(session, step)

    monkeypatch.setattr(trial, "advance", noted)
    return made


def test_a_trial_makes_real_steps_and_a_dense_last_one_for_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = steps_made(monkeypatch)
    config = tiny_config(
        accumulation=2, tread={"enabled": True, "dense_tail": 0.25}, steps=9, ema={"half_lives": [0.5]}
    )
    found = measured(tmp_path, config, open_source(config), steps=4)
    assert made == [0, 1, 2, 3, 4, 5, 8]
    assert len(found["step_s"]) == 4
    assert len(found["losses"]) == 6
    assert all(seconds > 0 for seconds in found["step_s"])
    lines = (tmp_path / "run" / "attempt-1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 9]  # metrics are part of what is measured
    assert all("train/loss" in json.loads(line) for line in lines)


def test_compiled_blocks_rehearse_what_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = steps_made(monkeypatch)
    monkeypatch.setattr("trainer.acceleration.network.compile_block", lambda *_: None)  # when, not what, is compiled
    config = tiny_config(steps=40, compile={"enabled": True, "backend": "aot_eager"})
    found = measured(tmp_path, config, open_source(config), steps=4, warm_up=1)
    assert made == [0, 1, 2, 3, 4, 1, 2, 3, 4]
    assert (len(found["step_s"]), len(found["losses"])) == (4, 5)


def test_a_trial_gives_up_on_what_is_much_slower_and_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = steps_made(monkeypatch)
    config = tiny_config(steps=40)
    assert len(measured(tmp_path / "slow", config, open_source(config), steps=9, best_s=1e-9)["step_s"]) == 3
    made.clear()
    config = tiny_config(steps=4)
    assert len(measured(tmp_path / "short", config, open_source(config), steps=9)["step_s"]) == 2
    assert made == [0, 1, 2, 3]


def test_noise_has_the_shapes_of_data_that_is_not_here(tmp_path: Path) -> None:
    config = tiny_config(
        data={"source": "shards", "path": str(tmp_path / "nowhere"), "size": 64, "workers": 0, "flip": 0.5},
        model={"width": 16, "depth": 1, "heads": 2, "patch": 16},
        batch=2,
    )
    source = NoiseData(config)
    sample = source.load(source.train_ids[0])
    assert sample.text_TD is not None
    assert sample.patches_PD is not None
    assert (sample.text_TD.shape, sample.patches_PD.shape, sample.patch_grid) == ((512, 1024), (4096, 1024), (64, 64))
    assert sample.pixels_HWC.shape == (64, 64, 3)
    assert len(measured(tmp_path, config, source, steps=1, warm_up=1)["step_s"]) == 1


def test_a_trial_of_a_run_that_begins_with_smaller_images_measures_the_largest(tmp_path: Path) -> None:
    plain, staged = (tiny_config(resolution=stages) for stages in ([], [{"until": 0.5, "size": 4}]))
    found = [measured(tmp_path / name, config, open_source(config), steps=1)["losses"] for name, config in
             (("plain", plain), ("staged", staged))]  # fmt: skip
    assert found[0] == found[1]
    measured(tmp_path / "noise", staged, NoiseData(staged), steps=1)


def test_losses_of_a_trial_are_those_of_the_configuration_in_any_cut(tmp_path: Path) -> None:
    found = []
    for name, changes in (("a", {"batch": 8}), ("b", {"batch": 2, "accumulation": 4})):
        config = tiny_config(tread={"enabled": True}, repa={"enabled": True}, **changes)
        found.append(measured(tmp_path / name, config, open_source(config), steps=3)["losses"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# ---- what cannot be ----------------------------------------------------------------------------------------------


def answered(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[dict[str, Any]]:
    """The answers of a trial that does not get beyond opening its data."""
    config = tiny_config(**changes)
    monkeypatch.setattr(sys, "stdin", io.StringIO(request(folder, config).line()))
    assert trial.main() == 0
    return [json.loads(line) for line in (folder / "trial.jsonl").read_text().splitlines()]


def test_missing_data_ends_the_tuning_and_not_one_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"source": "folder", "path": str(tmp_path / "nowhere"), "size": 8}
    answers = answered(tmp_path, monkeypatch, data=data)
    assert [each["what"] for each in answers] == ["refused"]
    # The same answers, as the process that started the trial takes them.
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: _Ended())
    with pytest.raises(DataError, match="nowhere") as raised:
        measure(own_candidate(tiny_config()), request(tmp_path, tiny_config()), 1.0)
    assert raised.value.exit_code == 65


def test_what_the_machine_lacks_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for name in ("cap_threads", "keep_freed_memory", "_watch"):  # which are for a process of one's own
        monkeypatch.setattr(trial, name, lambda *_: None)
    answers = answered(tmp_path, monkeypatch, compile={"enabled": True}, device="cpu")
    assert [each["what"] for each in answers] == ["opened", "impossible"]
    assert "C++ compiler" in answers[1]["message"]


class _Ended:
    """A process that has ended well."""

    pid, returncode = 2**22 + 1, 0

    def __init__(self) -> None:
        self.stdin = io.BytesIO()

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def poll(self) -> int:
        return 0


def test_no_memory_for_anybody_names_the_least_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("there was nothing to measure"))
    with pytest.raises(
        ConfigError, match=r"no candidate fits in 100 MiB; the smallest need is about 3\d\d MiB"
    ) as raised:
        command.main([str(path), "--budget-mib", "100", "--json", "--out", str(tmp_path / "out.yaml")])
    assert raised.value.exit_code == 78
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] is None
    assert {each["outcome"] for each in found["candidates"]} == {"skipped"}
    assert not (tmp_path / "out.yaml").exists()


def test_a_process_that_takes_more_than_the_limit_is_ended_and_says_so(tmp_path: Path) -> None:
    config = tiny_config(steps=4, device="cpu")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    outcome, place = measure(own_candidate(config), request(tmp_path, config, limit_mib=50.0), DEADLINE_S)
    assert outcome.kind == "out_of_memory", outcome
    assert "there are 50" in outcome.why
    assert place is not None
    assert place.device == "cpu"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--out", "nowhere/out.yaml"), "is no folder"),
        (("--out", "."), "is a folder"),
        (("--micro-batches", "3"), "allowed: 1, 2, 4, 8"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    options: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(Exception, match=says) as raised:
        command.main(["config.yaml", *options])
    assert getattr(raised.value, "exit_code", None) == 2


@pytest.mark.parametrize(
    "options", [("--seconds", "0"), ("--checkpointing", "some"), ("--micro-batches", "x"), ("--repeats", "0")]
)
def test_nonsense_on_the_command_line_is_a_usage_error(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        command.main(["config.yaml", *options])
    assert raised.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_sizes_that_come_later_count_for_memory() -> None:
    config = tiny_config(steps=40, resolution=[{"until": 0.5, "size": 4}])
    assert trial._larger_steps(config, 2) == [39]
    assert trial._larger_steps(tiny_config(steps=40), 2) == []
