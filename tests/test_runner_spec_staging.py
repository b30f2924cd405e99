"""`environment.setup` and `data` in arm files: what is accepted, what is refused at its line, what makes a new run."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import SpecError
from runner.spec.identity import identity
from runner.spec.models import ResolvedArm, document, from_json, to_json
from runner.spec.resolve import resolve
from runner.spec.yaml12 import parse
from runner.staging import data
from tests.fakes.arms import COMMAND_ARM, command_arm

TRAINER_ARM = "study: trial\narm: A\nseeds: [0]\nresources: {gpus: 0}\ntrainer:\n  steps: 5\n"
DATA = "data: {faces: 'https://example.org/faces.tar', old-ones: /data/old}\n"


def resolved(text: str) -> ResolvedArm:
    return resolve([parse(text.encode(), "arm.yaml")], ["/lab/arm.yaml"])


def refused(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        resolved(text)
    return caught.value


def test_both_reach_the_arm_its_document_and_what_is_stored() -> None:
    arm = resolved(COMMAND_ARM + "environment: {setup: pip install x}\n" + DATA)
    assert arm.environment == {"python": None, "setup": "pip install x"}
    assert arm.data == {"faces": "https://example.org/faces.tar", "old-ones": "/data/old"}
    assert document(arm, 0)["data"] == arm.data
    assert from_json(to_json(arm)) == arm
    before = {key: value for key, value in to_json(command_arm()).items() if key != "data"}
    assert from_json(before) == command_arm()


def test_a_later_layer_adds_to_the_map() -> None:
    base = parse(b"data: {a: /one, b: /two}\n", "base.yaml")
    arm = resolve(
        [base, parse(f"{COMMAND_ARM}data: {{b: /three}}\n".encode(), "arm.yaml")], ["/lab/base.yaml", "/lab/arm.yaml"]
    )
    assert arm.data == {"a": "/one", "b": "/three"}
    assert arm.where("data.b").line == 8


def test_both_make_another_run_and_old_runs_keep_their_names() -> None:
    plain = command_arm()
    # As it was computed before an arm could have data.
    assert identity(plain, 0, "code") == "cda2e1ee0617e2b25869f4381d9bcf2597e80833e3a1bb12b1e65837a72dce22"
    for change in ({"data": {"a": "/x"}}, {"environment": {"python": None, "setup": "pip install x"}}):
        assert identity(dataclasses.replace(plain, **change), 0, "code") != identity(plain, 0, "code")
    one, other = (dataclasses.replace(plain, data={"a": text}) for text in ("/x", "/y"))
    assert identity(one, 0, "code") != identity(other, 0, "code")


def test_the_interpreter_that_a_set_up_makes_is_not_asked_here() -> None:
    made = resolved(COMMAND_ARM + "environment: {setup: pip install x, python: '{environment}/bin/python3'}\n")
    assert made.environment["python"] == "{environment}/bin/python3"  # and not made absolute
    assert made.python == sys.executable
    assert resolved(COMMAND_ARM + "environment: {python: env/bin/python}\n").python == "/lab/env/bin/python"


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("environment: {setup: '  '}", "environment.setup", "no command"),
        ("environment: {setup: 5}", "environment.setup", "not allowed"),
        (f"environment: {{setup: '{'x' * 9000}'}}", "environment.setup", "no command"),
        ("environment: {setup: 'pip install git+https://u:hunter2hunter@h/x'}", "environment.setup", "secret"),
        ("environment: {setup: 'HF_TOKEN=hf_abcdefghijABCDEFGHIJ0123456789abcd x'}", "environment.setup", "secret"),
        ("environment: {python: '{environment}/bin/python'}", "environment.python", "no environment.setup"),
        ("environment: {setup: x, python: '{enviroment}/bin/python'}", "environment.python", "{enviroment}"),
        ("data: {9a: /x}", "data.9a", "no name"),
        ("data: {a b: /x}", "data.a b", "no name"),
        ("data: {a-b: /x, a.B: /y}", "data.a.B", "RUNNER_DATA_A_B"),
        ("data: {a: 5}", "data.a", "not allowed"),
        ("data: {a: ''}", "data.a", "not allowed"),
        ("data: {a: relative/path}", "data.a", "relative path"),
        ("data: {a: 'https://me:hunter2@host/x'}", "data.a", "password"),
        ("data: {a: 'https://host/x?token=abc'}", "data.a", "signed"),
        ("data: {a: 'https://host/x?q=hf_abcdefghijABCDEFGHIJ0123456789abcd'}", "data.a", "secret"),
        ("data: [a]", "data", "not allowed"),
    ],
)
def test_a_mistake_is_named_at_its_line(text: str, key: str, said: str) -> None:
    error = refused(COMMAND_ARM + text + "\n")
    assert (error.where.key, error.where.line) == (key, 8)
    assert said in str(error)
    assert error.allowed
    for secret in ("hunter2", "abcdefghij", "token=abc"):
        assert secret not in str(error)


def test_a_command_names_its_data() -> None:
    command = "command: [python3, x.py, '--images={data:faces}/train', '{{data:none}}']"
    arm = resolved(COMMAND_ARM.replace("command: [python3, -c, \"print('step 1 loss=2')\"]", command) + DATA)
    assert arm.command is not None
    assert arm.command[2] == "--images={data:faces}/train"


@pytest.mark.parametrize(
    "argument", ["{data:facse}", "{data:}", "{data}", "{data:faces!r}", "{data:faces", "{dat:faces}"]
)
def test_a_command_that_names_other_data_is_refused(argument: str) -> None:
    command = f"command: [python3, x.py, '{argument}']"
    error = refused(COMMAND_ARM.replace("command: [python3, -c, \"print('step 1 loss=2')\"]", command) + DATA)
    assert (error.where.key, error.where.line) == ("command[2]", 4)
    assert error.allowed


def test_a_misspelt_name_has_a_nearest() -> None:
    command = "command: [python3, x.py, '{data:facse}']"
    error = refused(COMMAND_ARM.replace("command: [python3, -c, \"print('step 1 loss=2')\"]", command) + DATA)
    assert error.nearest == "faces"


def test_the_trainer_names_it_in_front_of_its_path_and_nowhere_else() -> None:
    folder = "  data: {source: folder, path: '{data:faces}/train'}\n"
    arm = resolved(TRAINER_ARM + folder + DATA)
    assert arm.trainer is not None
    assert arm.trainer["data"]["path"] == "{data:faces}/train"
    unknown = refused(TRAINER_ARM + folder)
    assert (unknown.where.key, unknown.where.line) == ("trainer.data.path", 7)
    for path in ("x/{data:faces}", "{data:faces}x", "{data:faces}/{data:faces}", "{data:faces"):
        assert "{data:" in refused(TRAINER_ARM + f"  data: {{source: folder, path: '{path}'}}\n" + DATA).problem
    elsewhere = refused(TRAINER_ARM + "  device: '{data:faces}'\n" + DATA)
    assert (elsewhere.where.key, elsewhere.where.line) == ("trainer.device", 7)


@given(st.text(max_size=30))
def test_no_reference_ends_in_anything_but_an_arm_or_a_mistake(text: str) -> None:
    quoted = "data: {a: " + '"' + "".join(f"\\U{ord(sign):08x}" for sign in text) + '"}\n'
    problem = problem_of(text)
    if problem is None:
        assert resolved(COMMAND_ARM + quoted).data == {"a": text}
    else:
        assert problem in refused(COMMAND_ARM + quoted).problem


def problem_of(text: str) -> str | None:
    try:
        data.parse(text)
    except data.BadReference as error:
        return str(error) if text else ""
    return None
