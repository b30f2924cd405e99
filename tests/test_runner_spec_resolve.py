"""Bases, changes and the command line become one arm; every key knows who had the last word."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import SpecError, UsageError
from runner.records import Primary
from runner.spec.models import (
    DEFAULT_DETECTORS,
    DETECTOR_NAMES,
    ResolvedArm,
    check_webhook,
    document,
    from_json,
    study_document,
    to_json,
)
from runner.spec.resolve import parse_sets, resolve
from runner.spec.schema import ArmBlock, allowed_keys
from runner.spec.yaml12 import parse
from tests.fakes.arms import COMMAND_ARM

TRAINER_ARM = "study: s\narm: A\nseeds: [0]\nresources: {gpus: 0}\ntrainer:\n  steps: 10\n  optimizer: {lr: 1e-3}\n"


def resolved(*texts: str, sets: tuple[str, ...] = (), seeds: tuple[int, ...] | None = None) -> ResolvedArm:
    """The arm of these files, the base first."""
    names = [f"file{number}.yaml" for number in range(len(texts))]
    documents = [parse(text.encode(), name) for text, name in zip(texts, names, strict=True)]
    return resolve(documents, [f"/lab/{name}" for name in names], parse_sets(sets), seeds)


def refused(*texts: str, sets: tuple[str, ...] = ()) -> SpecError:
    with pytest.raises(SpecError) as caught:
        resolved(*texts, sets=sets)
    error = caught.value
    assert "\n" not in str(error)
    assert str(error.next_command).startswith("runner check ")
    return error


def test_a_minimal_arm_has_every_default() -> None:
    arm = resolved(TRAINER_ARM)
    assert (arm.study, arm.arm, arm.title, arm.hypothesis, arm.baseline) == ("s", "A", "A", "", None)
    assert (arm.kind, arm.seeds, arm.folder, arm.path) == ("trainer", (0,), "/lab", "/lab/file0.yaml")
    assert arm.primary == Primary("val/recon_lpips", "min", "last")
    assert dict(arm.policy.detectors) == DEFAULT_DETECTORS
    assert (arm.policy.tail, arm.resources.cpus, arm.resources.colocate) == (0.04, 1, "prefer")
    assert (arm.retries, arm.notify, arm.env, arm.changes) == (2, None, {}, ())
    assert document(arm, 0)["policy"]["autopsy_s"] == 900


def test_maps_merge_and_everything_else_replaces() -> None:
    base = (
        "seeds: [0, 1]\ntitle: base\ntrainer: {steps: 10, optimizer: {lr: 1.0, clip: 2.0}, ema: {half_lives: [1, 2]}}\n"
    )
    arm = resolved(base, "study: s\narm: A\nseeds: [5]\ntrainer: {optimizer: {clip: null}, ema: {half_lives: [0.3]}}\n")
    assert arm.seeds == (5,)
    assert arm.title == "base"
    trainer = dict(arm.trainer or {})
    assert trainer["optimizer"] == {"lr": 1.0, "clip": None}
    assert trainer["ema"] == {"half_lives": [0.3]}


def test_changes_come_after_all_files_and_sets_after_them() -> None:
    base = "changes: {trainer.steps: 20, trainer.optimizer.lr: 2.0}\n" + TRAINER_ARM
    arm = resolved(
        base, "arm: B\ntrainer: {steps: 30}\nchanges: {trainer.optimizer.lr: 3.0}\n", sets=("trainer.batch=8",)
    )
    trainer = dict(arm.trainer or {})
    assert (trainer["steps"], trainer["optimizer"]["lr"], trainer["batch"]) == (20, 3.0, 8)
    assert arm.changes == (("trainer.steps", 20), ("trainer.optimizer.lr", 3.0), ("trainer.batch", 8))


def test_a_change_of_a_block_merges_into_it() -> None:
    arm = resolved(TRAINER_ARM + "changes:\n  trainer.optimizer: {clip: 1.0}\n")
    assert dict(arm.trainer or {})["optimizer"] == {"lr": 0.001, "clip": 1.0}


def test_a_null_on_top_means_not_given() -> None:
    assert resolved(TRAINER_ARM, COMMAND_ARM + "trainer: null\n").kind == "command"


def test_origins_say_who_had_the_last_word() -> None:
    arm = resolved(
        TRAINER_ARM, "arm: B\nchanges:\n  trainer.optimizer.lr: 2.0\ntrainer:\n  batch: 4\n", sets=("title=x",)
    )
    assert arm.origins["trainer.steps"] == ("file0.yaml", 6)
    assert arm.origins["trainer.batch"] == ("file1.yaml", 5)
    assert arm.origins["trainer.optimizer.lr"] == ("file1.yaml", 3)
    assert arm.origins["title"] == ("--set", None)
    assert str(arm.where("trainer.optimizer.beta1")) == "file0.yaml:7: trainer.optimizer.beta1"
    assert str(arm.where("policy.tail")) == "file1.yaml: policy.tail"


def test_seeds_of_the_command_line_replace_missing_ones() -> None:
    assert resolved(COMMAND_ARM.replace("seeds: [0]\n", ""), seeds=(3, 4)).seeds == (3, 4)


def test_the_baseline_may_name_itself() -> None:
    assert resolved(COMMAND_ARM + "baseline: A\n").baseline is None
    assert resolved(COMMAND_ARM + "baseline: Z\n").baseline == "Z"


def test_detectors_merge_with_their_defaults() -> None:
    arm = resolved(COMMAND_ARM + "policy: {detectors: {regress: shadow}}\n")
    assert dict(arm.policy.detectors) == {**DEFAULT_DETECTORS, "regress": "shadow"}


def test_best_is_filled_from_the_primary_unless_given() -> None:
    arm = resolved(TRAINER_ARM + "primary: {metric: val/loss, direction: max}\n")
    assert dict(arm.trainer or {})["checkpoint"] == {"keep": {"best": {"metric": "val/loss", "direction": "max"}}}
    own = resolved(TRAINER_ARM + "  checkpoint: {keep: {last: 1, best: {metric: val/x, direction: min}}}\n")
    assert dict(own.trainer or {})["checkpoint"]["keep"]["best"] == {"metric": "val/x", "direction": "min"}


def test_paths_are_relative_to_the_file_that_names_them() -> None:
    arm = resolved(TRAINER_ARM + "  data: {source: folder, path: ../images}\nenvironment: {python: venv/bin/python}\n")
    assert dict(arm.trainer or {})["data"]["path"] == "/images"
    assert arm.environment["python"] == "/lab/venv/bin/python"
    assert resolved(TRAINER_ARM + "environment: {python: python3.12}\n").python == "python3.12"
    assert "absolute" in refused(TRAINER_ARM, sets=("trainer.data.path=images",)).allowed


@pytest.mark.parametrize("text", [TRAINER_ARM, COMMAND_ARM, COMMAND_ARM + "env: {A: 'x', B: {from: HOME}}\n"])
def test_an_arm_survives_json(text: str) -> None:
    arm = resolved(text, sets=("title=é",))
    assert from_json(json.loads(json.dumps(to_json(arm)))) == arm


def test_the_document_names_secrets_and_says_what_runs() -> None:
    arm = resolved(COMMAND_ARM + "env: {TOKEN: {from: MY_TOKEN}, MODE: fast}\n")
    shown = document(arm, 7, "0a1b2c3d")
    assert (shown["study"], shown["arm"], shown["seed"], shown["run"]) == ("trial", "A", 7, "0a1b2c3d")
    assert shown["env"] == {"TOKEN": {"from": "MY_TOKEN"}, "MODE": "fast"}
    assert (shown["command"][0], shown["steps"]) == ("python3", 5)
    assert "trainer" not in shown
    assert "command" not in document(resolved(TRAINER_ARM), 0)


def test_study_level_keys() -> None:
    keys = study_document(resolved(TRAINER_ARM))
    assert list(keys) == ["study", "primary", "policy", "budget", "resources"]
    assert keys["budget"] == {"study": {"max_hours": None, "max_usd": None}}
    assert keys["resources"] == {"colocate": "prefer"}


WRONG = [
    ("tial: x\n", "tial", 8, "title"),
    ("primary: {metric: loss, direktion: min}\n", "primary.direktion", 8, "direction"),
    ("policy: {detectors: {explode: warn}}\n", "policy.detectors.explode", 8, "explosion"),
    ("policy: {detectors: {regress: abrot}}\n", "policy.detectors.regress", 8, "abort"),
    ("changes: {policy.tial: 0.1}\n", "policy.tial", 8, "tail"),
    ("changes: {polcy.tail: 0.1}\n", "polcy.tail", 8, "policy"),
    ("changes: {resources.gpu: 1}\n", "resources.gpu", 8, "gpus"),
    ("changes: {extends: x}\n", "extends", 8, "seeds"),
    ("changes: {title.x: 1}\ntitle: t\n", "title.x", 8, None),
    ("changes: {resources..gpus: 1}\n", "resources..gpus", 8, None),
    ("changes: [a]\n", "changes", 8, None),
    ("changes: {trainer.steps: 5}\n", "trainer.steps", 8, None),
    ("title: 3\n", "title", 8, None),
    ("baseline: a/b\n", "baseline", 8, None),
    ("primary: loss\n", "primary", 8, None),
    ("primary: {direction: min}\n", "primary.metric", 8, None),
    ("primary: {metric: val_probe/x}\n", "primary.metric", 8, None),
    ("policy: {tail: 1.0}\n", "policy.tail", 8, None),
    ("policy: {tail: -0.1}\n", "policy.tail", 8, None),
    ("budget: {run: {max_hours: -1}}\n", "budget.run.max_hours", 8, None),
    ("budget: {study: {max_usd: .nan}}\n", "budget.study.max_usd", 8, None),
    ("budget: {study: {max_usd: .inf}}\n", "budget.study.max_usd", 8, None),
    ("budget: {reserve: '0.05'}\n", "budget.reserve", 8, None),
    ("retries: 2.0\n", "retries", 8, None),
    ("retries: true\n", "retries", 8, None),
    ("retries: -1\n", "retries", 8, None),
    ("env: {A: 1}\n", "env.A", 8, None),
    ("env: {1A: x}\n", "env.1A", 8, None),
    ("env: {A: {form: B}}\n", "env.A", 8, None),
    ("env: {A: {from: B, else: C}}\n", "env.A", 8, None),
    ("env: {A: {from: 'B C'}}\n", "env.A", 8, None),
    ("env: {RUNNER_SEED: '1'}\n", "env.RUNNER_SEED", 8, None),
    ("env: {CUDA_VISIBLE_DEVICES: '1'}\n", "env.CUDA_VISIBLE_DEVICES", 8, None),
    ("env: {HF_TOKEN: abc}\n", "env.HF_TOKEN", 8, None),
    ("env: {X: hf_abcdefghijklmnopqrst}\n", "env.X", 8, None),
    ("code: {include: x}\n", "code.include", 8, None),
    ("environment: {python: ''}\n", "environment.python", 8, None),
]


@pytest.mark.parametrize(("text", "key", "line", "close"), WRONG, ids=[case[0].strip() for case in WRONG])
def test_a_mistake_is_named_with_its_place(text: str, key: str, line: int, close: str | None) -> None:
    assert COMMAND_ARM.count("\n") == 7
    arm = COMMAND_ARM.replace("resources: {gpus: 0}\n", "# nothing here\n")
    error = refused(arm + text)
    assert (error.where.key, error.where.line, error.nearest) == (key, line, close)
    assert error.allowed


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("study: trial\n", "", "study"),
        ("arm: A\n", "", "arm"),
        ("seeds: [0]\n", "", "seeds"),
        ("seeds: [0]", "seeds: []", "seeds"),
        ("seeds: [0]", "seeds: [0, 1, 0]", "seeds[2]"),
        ("seeds: [0]", "seeds: [-1]", "seeds[0]"),
        ("seeds: [0]", "seeds: [1.0]", "seeds[0]"),
        ("seeds: [0]", "seeds: 0", "seeds"),
        ("study: trial", "study: a/b", "study"),
        ("study: trial", "study: ..", "study"),
        ("study: trial", "study: Runner.db", "study"),
        ("arm: A", "arm: ../A", "arm"),
        ("arm: A", "arm: .", "arm"),
        ("arm: A", "arm: 'A\n\n  B'", "arm"),
        ("arm: A", "arm: " + "a" * 65, "arm"),
        ("arm: A", "arm: 1", "arm"),
        ("steps: 5\n", "", "steps"),
        ("steps: 5", "steps: 0", "steps"),
        ("metrics:", "# metrics:", "metrics"),
        ("(?P<step>", "(?P<stop>", "metrics.pattern"),
        ("(?P<loss>", "(", "metrics.pattern"),
        ("(?P<loss>", "((?P<loss>", "metrics.pattern"),
        ("source: regex", "source: regexp", "metrics.source"),
        ("source: regex", "source: csv", "metrics.pattern"),
        ("source: regex", "source: regex, path: x", "metrics.path"),
        ("{source: regex, pattern", "{source: csv, path: ../x} #", "metrics.path"),
        ("{source: regex, pattern", "{source: csv} #", "metrics.path"),
        ("[python3,", "[python3, 0.5,", "command[1]"),
        ("[python3,", "['',", "command[0]"),
        ("[python3,", "[python3, '{sed}',", "command[1]"),
        ("[python3,", "[python3, '{seed:d}',", "command[1]"),
        ("[python3,", "[python3, '{',", "command[1]"),
        ("[python3,", "[python3, hf_abcdefghijklmnopqrst,", "command[1]"),
        ("command: [python3", "command: [] # ", "command"),
        ("command: [python3", "command: python3 x # ", "command"),
    ],
)
def test_what_a_command_arm_must_be(old: str, new: str, key: str) -> None:
    assert old in COMMAND_ARM
    assert refused(COMMAND_ARM.replace(old, new)).where.key == key


def test_a_command_may_take_its_steps() -> None:
    arm = resolved(COMMAND_ARM.replace("[python3,", "[python3, '--steps={steps}',"))
    assert arm.command is not None
    assert arm.command[1] == "--steps={steps}", "it is filled in when an attempt starts"
    allowed = refused(COMMAND_ARM.replace("[python3,", "[python3, '{step}',")).allowed
    assert "{steps}" in allowed


def test_exactly_one_of_trainer_and_command() -> None:
    assert "neither" in refused("study: s\narm: A\nseeds: [0]\n").problem
    both = refused(COMMAND_ARM + "trainer: {steps: 1}\n")
    assert (both.where.key, both.where.line) == ("command", 4)
    assert refused(TRAINER_ARM + "steps: 5\n").nearest == "trainer.steps"
    assert refused(TRAINER_ARM + "code: {root: x}\n").where.key == "code.root"
    assert refused(TRAINER_ARM, sets=("command=[x]",)).where.key == "command"
    assert refused(COMMAND_ARM, sets=("trainer.steps=1",)).where.key == "trainer.steps"


def test_a_trainer_arm_ranks_by_a_validation_metric_and_fits_its_slot() -> None:
    error = refused(TRAINER_ARM + "primary: {metric: recon_rmse}\n")
    assert (error.where.key, error.nearest) == ("primary.metric", "val/recon_rmse")
    assert refused(TRAINER_ARM + "  device: cuda\n").where.key == "trainer.device"
    for arm in (TRAINER_ARM, COMMAND_ARM):
        assert resolved(arm, sets=("resources.gpus=2",)).resources.gpus == 2


def test_budgets_retries_and_waves_reach_the_arm() -> None:
    budget = "budget: {run: {max_hours: 1.5}, study: {max_usd: 20}, reserve: 0.1}\n"
    arm = resolved(COMMAND_ARM + "retries: 5\n" + budget, sets=("resources.colocate=off",))
    assert arm.budget == {
        "run": {"max_hours": 1.5, "max_usd": None},
        "study": {"max_hours": None, "max_usd": 20},
        "reserve": 0.1,
    }
    assert (arm.retries, arm.resources.colocate) == (5, "off")
    assert study_document(arm)["budget"] == {"study": {"max_hours": None, "max_usd": 20}}
    assert document(arm, 0)["budget"] == arm.budget


def test_a_notice_has_receivers_words_and_a_time_limit() -> None:
    arm = resolved(COMMAND_ARM + "notify: {webhook: {from: LAB_HOOK}, command: [./tell.sh, --loud]}\n")
    assert arm.notify == {
        "command": ["/lab/tell.sh", "--loud"],
        "webhook": {"from": "LAB_HOOK"},
        "on": ["failed", "aborted", "lost", "hung", "study_ended"],
        "timeout_s": 10.0,
    }
    assert from_json(json.loads(json.dumps(to_json(arm)))) == arm
    assert document(arm, 0)["notify"] == arm.notify
    own = resolved(COMMAND_ARM + "notify: {command: [mail, me], on: [finished, warned], timeout_s: 3}\n")
    assert own.notify == {"command": ["mail", "me"], "webhook": None, "on": ["finished", "warned"], "timeout_s": 3}
    assert resolved(COMMAND_ARM, sets=("notify.command=[mail]",)).notify is not None


def test_the_variable_of_a_webhook_must_hold_an_address() -> None:
    arm = resolved(COMMAND_ARM + "notify: {webhook: {from: LAB_HOOK}}\n")
    check_webhook(arm, {"LAB_HOOK": "https://example.com/0a1b2c3d4e5f6a7b8c9d"})
    check_webhook(resolved(COMMAND_ARM + "notify: {webhook: 'https://example.com/lab'}\n"), {})
    check_webhook(resolved(COMMAND_ARM), {})
    for variables, said in (({}, "not set in this shell"), ({"LAB_HOOK": "http://example.com/0a1b"}, "unencrypted")):
        with pytest.raises(SpecError, match=said) as caught:
            check_webhook(arm, variables)
        assert str(caught.value.where) == "file0.yaml:8: notify.webhook"
        assert "0a1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("notify: [mail]", "notify", "a block of keys"),
        ("notify: {}", "notify", "tells nobody"),
        ("notify: {comand: [mail]}", "notify.comand", "command"),
        ("notify: {command: mail}", "notify.command", "a list"),
        ("notify: {command: []}", "notify.command", "at least one"),
        ("notify: {command: ['']}", "notify.command[0]", "a program"),
        ("notify: {command: [curl, 'ghp_0123456789abcdefghij']}", "notify.command[1]", "secret"),
        ("notify: {command: [mail], on: []}", "notify.on", "at least one"),
        ("notify: {command: [mail], on: [faild]}", "notify.on[0]", "failed"),
        ("notify: {command: [mail], timeout_s: 0}", "notify.timeout_s", "above 0"),
        ("notify: {command: [mail], timeout_s: 3600}", "notify.timeout_s", "up to 300"),
        ("notify: {webhook: 'http://example.com/x'}", "notify.webhook", "unencrypted"),
        ("notify: {webhook: {from: 'a b'}}", "notify.webhook", "{from: NAME}"),
        ("notify: {webhook: {form: HOOK}}", "notify.webhook", "{from: NAME}"),
        ("notify: {webhook: 7}", "notify.webhook", "an address"),
        ("notify: {webhook: 'https://x.example.com/hooks/0a1b2c3d4e5f6a7b8c9d'}", "notify.webhook", "{from: NAME}"),
    ],
)
def test_a_notice_that_reaches_nobody_is_refused(text: str, key: str, said: str) -> None:
    error = refused(COMMAND_ARM + text + "\n")
    assert (error.where.key, error.where.line) == (key, 8)
    assert said in str(error)
    assert "0a1b2c3d" not in str(error)
    assert "ghp_" not in str(error)


def test_defaults_may_be_written_out() -> None:
    written = (
        "budget: {run: {max_hours: null, max_usd: null}, study: {max_hours: null, max_usd: null}, reserve: 0.05}\n"
        "policy: {rescue: {from: best, changes: {}, max: 1}, tail: 0.04, autopsy_s: 900}\n"
        "environment: {python: null, setup: null}\nenv: {}\ncode: {root: null, include: []}\nretries: 2\nnotify: null\n"
    )
    plain, full = resolved(COMMAND_ARM), resolved(COMMAND_ARM + written)
    assert document(plain, 0) == document(full, 0)


@pytest.mark.parametrize("text", ["x", "=1", "  = 2"])
def test_a_set_is_key_and_value(text: str) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_sets([text])


def test_sets_are_yaml_values() -> None:
    assert parse_sets(["a=2e-3", "b=off", "c=[1, x]", "d=", "e=a=b", "f={g: 1}"]) == (
        ("a", 0.002), ("b", "off"), ("c", [1, "x"]), ("d", None), ("e", "a=b"), ("f", {"g": 1}),
    )  # fmt: skip


def test_the_schema_knows_its_own_keys() -> None:
    assert {*ArmBlock.model_fields, "extends", "changes"} == set(allowed_keys((), ArmBlock))
    assert allowed_keys(("budget", "study"), ArmBlock) == ("max_hours", "max_usd")
    assert allowed_keys(("policy", "rescue"), ArmBlock) == ("from", "changes", "max")
    assert allowed_keys(("env",), ArmBlock) == ()
    assert set(DEFAULT_DETECTORS) <= set(DETECTOR_NAMES)


keys = st.sampled_from(["a", "b", "c"])
blocks: st.SearchStrategy[Any] = st.recursive(
    st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


def plainly_merged(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return {
            key: plainly_merged(under[key], over[key]) if key in under and key in over else {**under, **over}[key]
            for key in {**under, **over}
        }
    return over


@given(st.lists(st.dictionaries(keys, blocks, max_size=3), min_size=1, max_size=3))
def test_merging_follows_its_rule_for_any_blocks(layers: list[dict[str, Any]]) -> None:
    heads = ["study: s\narm: A\nseeds: [0]\nresources: {gpus: 0}\n", *[""] * (len(layers) - 1)]
    texts = [f"{head}trainer: {json.dumps(layer)}\n" for head, layer in zip(heads, layers, strict=True)]
    expected: Any = {}
    for layer in layers:
        expected = plainly_merged(expected, layer)
    trainer = dict(resolved(*texts).trainer or {})
    trainer.pop("checkpoint")
    assert trainer == expected


@given(st.lists(keys, min_size=1, max_size=3).map(".".join), st.integers(0, 9))
def test_a_change_sets_exactly_its_key(key: str, value: int) -> None:
    arm = resolved(TRAINER_ARM, sets=(f"trainer.new.{key}={value}",))
    inner: Any = arm.trainer
    for part in f"new.{key}".split("."):
        inner = inner[part]
    assert inner == value
    assert dict(arm.trainer or {})["steps"] == 10


@pytest.mark.parametrize("address", ["hub:some/faces@v1", "https://example.org/shards"])
def test_the_address_of_a_set_is_no_relative_path(address: str) -> None:
    arm = resolved(TRAINER_ARM, sets=(f"trainer.data.path={address}",))
    assert arm.trainer is not None
    assert arm.trainer["data"]["path"] == address
