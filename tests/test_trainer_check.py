"""`check`: answers without torch, in order, and counts parameters exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.trainer_parts import tiny
from trainer import size
from trainer.check import check
from trainer.data.shapes import StreamShapes, stream_shapes
from trainer.document import parse_config
from trainer.model.nanodit import NanoDiT
from trainer.objective.repa import Projector

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "plain": {},
    "tread and muon": {"tread": {"enabled": True}, "optimizer": {"name": "muon"}},
    "repa mlp": {"repa": {"enabled": True}},
    "repa linear": {"repa": {"enabled": True, "projector": "linear"}},
    "repa conv": {"repa": {"enabled": True, "projector": "conv"}},
    "text only": {"streams": {"cls": "off", "patches": "off", "pose": "off"}},
    "pose only": {"streams": {"cls": "off", "patches": "off", "text": "off"}},
    "wide": {"model": {"width": 48, "depth": 3, "heads": 3, "patch": 4, "mlp_ratio": 2.5}},
}


def ask(questions: Any, *python_options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python_options, "-m", "trainer", "check", "--json"]
    return subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_protocol_good_and_bad_in_order() -> None:
    questions = [
        {"id": "good", "config": tiny()},
        {"id": "bad key", "config": tiny(tred={"enabled": True})},
        {"id": "bad value", "config": tiny(batch=0)},
        {"id": 4, "config": None},
        {"id": "good again", "config": tiny(repa={"enabled": True})},
    ]
    asked = ask(questions)
    assert asked.returncode == 0, asked.stderr
    answers = json.loads(asked.stdout)
    assert [answer["id"] for answer in answers] == ["good", "bad key", "bad value", 4, "good again"]
    assert [answer["ok"] for answer in answers] == [True, False, False, False, True]
    assert answers[0]["steps_total"] == 8
    assert answers[0]["errors"] == []
    assert answers[0]["config"]["ema"]["half_lives"] == [0.05, 0.2]
    error = answers[1]["errors"][0]
    assert (error["path"], error["nearest"]) == ("tred", "tread")
    assert "optimizer" in error["allowed"]
    for answer in answers:
        assert {"parameters", "flops_per_sample", "memory_mib", "notes"} <= set(answer)


def test_no_torch_is_imported() -> None:
    program = (
        "import sys, json, io; sys.stdin = io.StringIO(json.dumps([{'id': 1, 'config': {'steps': 1}}]));"
        "from trainer.__main__ import main; code = main(['check', '--json']);"
        "heavy = {'torch', 'numpy', 'scipy', 'PIL', 'tensorboard', 'safetensors'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["ok"]


@pytest.mark.parametrize("text", ["", "{}", "[3]", '[{"id": 1}]'])
def test_a_malformed_question_is_a_usage_error(text: str) -> None:
    command = [sys.executable, "-m", "trainer", "check", "--json"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "stdin" in done.stderr


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_parameters_are_those_of_the_model_on_the_meta_device(changes: dict[str, Any]) -> None:
    config = parse_config({"steps": 10, **changes})
    streams = stream_shapes(config)
    with torch.device("meta"):
        modules = [NanoDiT(config.model, streams)]
        if config.repa.enabled:
            modules.append(Projector(config.repa.projector, config.model.width, streams.patch_width))
    counted = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert check("a", {"steps": 10, **changes})["parameters"] == counted


def test_the_large_model_has_the_known_size() -> None:
    model = {"width": 768, "depth": 18, "heads": 12, "patch": 16}
    repa = {"enabled": True, "projector": "linear", "after_block": 9}
    config = parse_config({"steps": 10, "data": {"size": 1024}, "model": model, "repa": repa})
    streams = StreamShapes(text_width=1024, text_length=512, cls_width=1024, patch_width=1024, pose_joints=133)
    assert size.parameters(config, streams) / 1e6 == pytest.approx(272.6, abs=0.2)
    # 13.7 TFLOP are published for forward and backward with one recomputed forward pass, that is for 4 forward passes.
    assert size.flops_per_sample(config, streams) * 4 / 3 == pytest.approx(13.7e12, rel=0.05)


def test_routing_saves_operations_and_its_dense_tail_saves_less() -> None:
    def flops(**tread: Any) -> float:
        return check("a", tiny(tread=tread))["flops_per_sample"]

    assert flops(enabled=True, ratio=0.75) < flops(enabled=True) < flops(enabled=True, dense_tail=0.5) < flops()


def test_more_averages_and_larger_batches_need_more_memory() -> None:
    def memory(**changes: Any) -> float:
        return check("a", {"steps": 10, **changes})["memory_mib"]

    one = {"half_lives": [0.05]}
    assert memory(batch=64) > memory() > memory(ema=one) > memory(ema=one, optimizer={"name": "muon"})


def test_a_person_gets_a_page_and_an_exit_code(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    command = [sys.executable, "-m", "trainer", "check", str(config)]
    config.write_text("seed: 0\ntrainer: {steps: 10}")
    good = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (good.returncode, "parameters" in good.stdout) == (0, True)
    config.write_text("seed: 0\ntrainer: {stepz: 10}")
    bad = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (bad.returncode, "did you mean 'steps'?" in bad.stderr) == (78, True)


def test_a_configuration_is_asked_about_for_so_many_processes() -> None:
    (one, three) = json.loads(
        ask([{"id": n, "config": {"steps": 10, "batch": 6}, "processes": n} for n in (1, 3)]).stdout
    )
    assert one["ok"]
    (error,) = three["errors"]
    assert error["path"] == "accumulation"
    assert "batch 2 x accumulation 3" in error["allowed"]
