"""Files of curves that others wrote: two layouts, and a sentence for everything that cannot be replayed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge.backtest import Label, replay_study
from runner.judge.recorded import CurveMistake, arms_from_jsonl, read_curves_file
from runner.records import DeclaredEvent, Primary

LINE = {"study": 0, "arm": 3, "steps_total": 5000, "val_steps": [500, 1000], "val_metric": [1.0, 0.9]}


def line(**changes: Any) -> str:
    return json.dumps({**LINE, **changes})


def checkpoints(*points: dict[str, Any], **changes: Any) -> str:
    return json.dumps({"A": {"checkpoints": list(points), **changes}})


def test_everything_a_line_may_say_arrives() -> None:
    said = line(
        events=[[1250, "repa_off"]], log_steps=[10, 20, 30], train_loss=[1, None, "inf"], grad_norm=[1, "-inf", "nan"],
        direction="max", label={"sick": True, "onset": 700.4}, hours=[1.5, None],
    )  # fmt: skip
    (arm,) = read_curves_file(said, "file")
    assert (arm.study, arm.arm, arm.as_written, arm.steps_total) == ("0", "3", (0, 3), 5000)
    assert arm.primary == Primary("val/metric", "max")
    assert arm.series["val/metric"].values == (1.0, 0.9)
    assert arm.series["train/loss"].steps == (10, 20, 30)
    assert arm.series["train/loss"].values[0] == 1.0
    assert math.isnan(arm.series["train/loss"].values[1])
    assert arm.series["train/loss"].values[2] == math.inf
    assert arm.events == (DeclaredEvent(1250, "repa_off"),)
    assert arm.label == Label(True, 700)
    assert arm.hours == {500: 1.5}


def test_what_a_line_need_not_say() -> None:
    (arm,) = read_curves_file(line(events=None, label=None, hours=None, extra={"more": 1}), "file")
    assert (arm.events, arm.label, arm.hours, arm.primary) == ((), None, {}, Primary("val/metric"))
    (loss,) = read_curves_file(line(val_metric=None, log_steps=[1], train_loss=[2.0]), "file")
    assert loss.primary is None
    assert set(loss.series) == {"train/loss"}


def test_the_published_layout_arrives() -> None:
    points = (
        {"step": 500, "recon_lpips": 0.9, "text_lpips": 0.8, "train_loss": 0.1, "elapsed_hours": 7.5, "lr": 1e-4},
        {"step": 1000, "recon_lpips": None, "train_loss": 0.05, "elapsed_hours": None},
    )
    (arm,) = read_curves_file(checkpoints(*points, label="A_baseline", start_time="2026"), "file")
    assert (arm.study, arm.arm, arm.steps_total, arm.primary) == ("file", "A", 1000, Primary("val/recon_lpips"))
    assert arm.series["val/text_lpips"].steps == (500,)
    assert math.isnan(arm.series["val/recon_lpips"].values[1])
    assert (arm.hours, arm.label, arm.as_written) == ({500: 7.5}, None, None)
    (longer,) = read_curves_file(checkpoints(*points, steps_total=9000, label={"sick": False}), "file")
    assert (longer.steps_total, longer.label) == (9000, Label(False, None))
    (rmse,) = read_curves_file(checkpoints({"step": 5, "recon_rmse": 1.0}), "file")
    assert rmse.primary == Primary("val/recon_rmse")
    (loss,) = read_curves_file(checkpoints({"step": 5, "train_loss": 1.0}), "file")
    assert loss.primary is None


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n  \n"])
def test_any_ends_of_lines_and_a_name_with_any_character(end: str) -> None:
    odd = json.dumps({**LINE, "arm": "a\u2028b\u0085c"}, ensure_ascii=False)
    arms = read_curves_file(end.join([line(), odd, ""]), "file")
    assert [one.arm for one in arms] == ["3", "a\u2028b\u0085c"]


def test_one_line_is_a_file_of_one_arm_and_a_document_may_have_many_lines() -> None:
    assert len(read_curves_file(line(), "file")) == 1
    pretty = json.dumps(json.loads(checkpoints({"step": 5, "recon_lpips": 1.0})), indent=2)
    assert len(read_curves_file(pretty, "file")) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        (" \r\n\t", "the file is empty"),
        ("{}", "the file holds no arm"),
        ("arm: A", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("null", "line 1: None is no object"),
        ("3", "line 1: 3 is no object"),
        ("[]", "line 1: \\[\\] is no object"),
        (line() + "\n{", "line 2: no JSON"),
        (line() + "\n\n" + line(), "line 3: study 0 has an arm 3 already"),
        (line() + "\n" + line(study="0", arm="3"), "line 2: study 0 has an arm 3 already"),
        ('{"A": {}, "A": {}}', "'A' stands there twice"),
        (line()[:-1] + ', "arm": 4}', "'arm' stands there twice"),
        (json.dumps({key: value for key, value in LINE.items() if key != "study"}), "line 1: study is missing"),
        (json.dumps({key: value for key, value in LINE.items() if key != "arm"}), "line 1: arm is missing"),
        (line().replace('"steps_total": 5000, ', ""), "line 1: steps_total is missing"),
        (line(study=None), "study None; allowed: a name or a number"),
        (line(study=""), "study ''"),
        (line(arm=[1]), "arm \\[1\\]"),
        (line(arm=True), "arm True"),
        (line(arm=1.5), "arm 1.5"),
        *((line(steps_total=bad), "no number of steps above 0") for bad in (None, 0, -5, True, "5", 5.0, 2**60, [5])),
        (line(direction="down"), "direction 'down'; allowed: min, max"),
        (line(direction=None), "allowed: min, max"),
        (line(val_metric=[1.0]), "line 1: val_metric: as many values as steps"),
        (line(val_steps=None), "as many values as steps"),
        (line(val_metric="12"), "as many values as steps"),
        (line(val_steps=[1000, 500]), "steps must rise"),
        (line(val_steps=[500, 500]), "steps must rise"),
        (line(val_steps=[-1, 500]), "whole numbers from 0"),
        (line(val_steps=[True, 500]), "whole numbers from 0"),
        (line(val_steps=[0.5, 500]), "whole numbers from 0"),
        (line(val_steps=[1, 10**400]), "whole numbers from 0"),
        (line(val_metric=[True, 1.0]), "True is no number"),
        (line(val_metric=["1.0", 1.0]), "'1.0' is no number"),
        (line(val_metric=["Infinity", 1.0]), "is no number"),
        (line(val_metric=[[1], 1.0]), "is no number"),
        (line(val_metric=[10**400, 1.0]), "too large for a number"),
        (line(val_metric=[], val_steps=[]), "no point at all"),
        (line(val_metric=None), "no point at all"),
        *((line(events=bad), "events") for bad in ({"a": 1}, "ab", 5, 0, [5], [[1]], [["a", 1]], [[True, "a"]])),
        *((line(label=bad), "label") for bad in (3, "sick", {}, {"sick": 1}, [True], {"onset": 5})),
        *((line(label={"sick": True, "onset": bad}), "onset") for bad in ("5", True, [5], math.nan, math.inf)),
        (line(hours=[1.0]), "hours: one for each of val_steps"),
        (line(hours=5), "hours: one for each of val_steps"),
        (line(hours=[1.0, "x"]), "is no number"),
        (line(hours=[1.0, "nan"]), "is no time"),
        (line(hours=[1.0, -2.0]), "is no time"),
        (line(hours=[1.0, 2.0], val_metric=None, val_steps=[[1], 2], log_steps=[1], train_loss=[1]), "whole numbers"),
        ('{"A": 3}', "arm A: no checkpoints"),
        ('{"A": {"checkpoints": []}}', "arm A: no checkpoints"),
        ('{"A": {"checkpoints": {"step": 1}}}', "arm A: no checkpoints"),
        (checkpoints({"recon_lpips": 1.0}), "a checkpoint without a step"),
        (checkpoints({"step": "5", "recon_lpips": 1.0}), "a checkpoint without a step"),
        (checkpoints({"step": 5}), "none of its checkpoints holds"),
        (checkpoints({"step": 0, "recon_lpips": 1.0}), "steps_total 0 is no number of steps"),
        (checkpoints({"step": 5, "recon_lpips": 1.0}, steps_total="5"), "steps_total '5'"),
        (checkpoints({"step": 5, "recon_lpips": 1.0}, label={"sick": "yes"}), "arm A: label"),
        (checkpoints({"step": 5, "recon_lpips": "low"}), "arm A: recon_lpips: 'low' is no number"),
        (checkpoints({"step": 5, "recon_lpips": 1.0, "elapsed_hours": "long"}), "'long' is no number"),
        (checkpoints({"step": 5, "recon_lpips": 1.0}, {"step": 5, "recon_lpips": 2.0}), "steps must rise"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(CurveMistake, match=said) as raised:
        read_curves_file(text, "file")
    assert len(str(raised.value)) < 400


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
KEYS = (
    "study", "arm", "steps_total", "events", "val_steps", "val_metric", "log_steps", "train_loss", "grad_norm",
    "direction", "label", "hours",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), anything, max_size=4))
def test_whatever_a_key_holds_there_is_an_arm_or_a_mistake(changes: dict[str, Any]) -> None:
    try:
        arms = read_curves_file(line(**changes), "file")
    except CurveMistake:
        return
    assert len(replay_study(arms)) == 1


@given(anything)
def test_any_json_is_arms_or_a_mistake(document: Any) -> None:
    for text in (json.dumps(document), json.dumps({"A": {"checkpoints": [document]}})):
        try:
            arms = read_curves_file(text, "file")
        except CurveMistake:
            continue
        assert len(replay_study(arms)) == len(arms) > 0


@given(st.text(max_size=80))
def test_any_text_is_a_mistake(text: str) -> None:
    with pytest.raises(CurveMistake):
        read_curves_file(text, "file")


def test_arms_of_many_studies_keep_their_order() -> None:
    text = "\n".join(line(study=study, arm=arm) for arm in range(3) for study in ("x", "y"))
    assert [(one.study, one.arm) for one in arms_from_jsonl(text)] == [
        (study, str(arm)) for arm in range(3) for study in ("x", "y")
    ]
