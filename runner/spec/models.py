"""The resolved arm: one frozen value that everything behind the arm files works with, and its plain documents."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.errors import SpecError, Where
from runner.judge import DETECTORS
from runner.records import Policy, Primary, Rescue, Resources
from runner.spec.notices import address_problem
from runner.suspicion import RULE_NAMES

TRAINER = "trainer"
COMMAND = "command"

DETECTOR_NAMES = (*DETECTORS, *RULE_NAMES)
DEFAULT_DETECTORS: Mapping[str, str] = dict.fromkeys(("non_finite", "explosion", "regress"), "abort")
DEFAULT_LIMIT: Mapping[str, Any] = {"max_hours": None, "max_usd": None}
DEFAULT_BUDGET: Mapping[str, Any] = {"run": DEFAULT_LIMIT, "study": DEFAULT_LIMIT, "reserve": 0.05}
DEFAULT_RETRIES = 2
DEFAULT_TRAINER_PRIMARY = Primary(metric="val/recon_lpips")


@dataclass(frozen=True, slots=True)
class TrainerCheck:
    """What the trainer says of one configuration; None where it does not know. Sizes are MiB."""

    steps_total: int
    parameters: int | None = None
    flops_per_sample: float | None = None
    memory_mib: float | None = None
    checkpoint_mib: float | None = None
    samples_per_step: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedArm:
    """One arm with everything its base, its changes and the command line said.

    `path`, `folder` and `sources` (the arm file, then its bases) are absolute; `file` is the path as it was given, for
    messages. `kind` is trainer or command.
    `trainer` is the whole training configuration, complete once `check` is there; `rescue_trainer` the same with the
    changes of `policy.rescue`, None where nothing would change. `steps` is the step budget of a run.
    `command` holds placeholders still. `metrics`, `environment`, `env`, `code`, `budget` are as in the file, defaults
    filled in; `data` maps names to references. A value of `env`, and `notify.webhook`, is text or {"from": NAME};
    `notify` is None for nobody. `changes` are the arm's own and those of --set, in order.
    `origins` maps a dotted key to the file and line (None: no line) that had the last word on it.
    """

    file: str
    path: str
    folder: str
    sources: tuple[str, ...]
    study: str
    arm: str
    title: str
    hypothesis: str
    baseline: str | None
    seeds: tuple[int, ...]
    kind: str
    trainer: Mapping[str, Any] | None
    command: tuple[str, ...] | None
    metrics: Mapping[str, Any] | None
    steps: int
    primary: Primary | None
    resources: Resources
    policy: Policy
    environment: Mapping[str, Any]
    env: Mapping[str, Any]
    code: Mapping[str, Any]
    budget: Mapping[str, Any] = field(default_factory=lambda: DEFAULT_BUDGET)
    retries: int = DEFAULT_RETRIES
    notify: Mapping[str, Any] | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    origins: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    check: TrainerCheck | None = None
    rescue_trainer: Mapping[str, Any] | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it: study/arm."""
        return f"{self.study}/{self.arm}"

    @property
    def python(self) -> str:
        """The interpreter that answers for it on this machine: environment.python, else the one that runs us.

        Its runs use the same unless `environment.setup` makes one on their host, which cannot be asked beforehand.
        """
        made_there = self.environment["setup"] is not None
        return sys.executable if made_there else self.environment["python"] or sys.executable

    def where(self, key: str) -> Where:
        """The place that decided about a dotted key: that of the key itself, else of the block it would stand in."""
        part = key
        while part:
            if part in self.origins:
                return Where(*self.origins[part], key)
            part = part[: max(part.rfind("."), part.rfind("["), 0)]
        return Where(self.file, None, key)


def document(arm: ResolvedArm, seed: int, run_id: str | None = None) -> dict[str, Any]:
    """What is written as a run's config.yaml and shown by `--resolve`: plain values, secrets by name only."""
    head = {
        "study": arm.study,
        "arm": arm.arm,
        "title": arm.title,
        "hypothesis": arm.hypothesis,
        "baseline": arm.baseline,
        "seed": seed,
        "run": run_id,
    }
    values: dict[str, Any] = _plain({**head, **_work(arm), **_terms(arm)})
    return values


def study_document(arm: ResolvedArm) -> dict[str, Any]:
    """The keys that must be alike in all arms of a study."""
    terms = _terms(arm)
    values: dict[str, Any] = _plain(
        {
            "study": arm.study,
            "primary": terms["primary"],
            "policy": terms["policy"],
            "budget": {"study": arm.budget["study"]},
            "resources": {"colocate": arm.resources.colocate},
        }
    )
    return values


def to_json(arm: ResolvedArm) -> dict[str, Any]:
    """The arm as JSON values; `from_json` reads it back as an equal arm."""
    values: dict[str, Any] = _plain(arm)
    return values


def from_json(values: Mapping[str, Any]) -> ResolvedArm:
    """The arm that `to_json` wrote."""
    check = values["check"]
    return ResolvedArm(
        **{
            **values,
            "sources": tuple(values["sources"]),
            "seeds": tuple(values["seeds"]),
            "command": None if values["command"] is None else tuple(values["command"]),
            "primary": None if values["primary"] is None else Primary(**values["primary"]),
            "resources": Resources(**values["resources"]),
            "policy": _policy(values["policy"]),
            "changes": tuple((key, value) for key, value in values["changes"]),
            "origins": {key: (file, line) for key, (file, line) in values["origins"].items()},
            "check": None if check is None else TrainerCheck(**{**check, "notes": tuple(check["notes"])}),
        }
    )


def _policy(values: Mapping[str, Any]) -> Policy:
    """A stored policy; one that was stored before there were rescues has none of their keys."""
    rescue = values.get("rescue")
    return Policy(**{**values, "rescue": Rescue() if rescue is None else Rescue(**rescue)})


def environment_values(arm: ResolvedArm, variables: Mapping[str, str]) -> dict[str, str]:
    """The arm's `env` with every {from: NAME} looked up in `variables`. Raises SpecError for a NAME that is not set.

    The result may hold secrets: it belongs into a process, never onto a disk.
    """
    values = {}
    for name, value in arm.env.items():
        if isinstance(value, str):
            values[name] = value
        elif value["from"] in variables:
            values[name] = variables[value["from"]]
        else:
            source = value["from"]
            problem = f"the variable {source} is not set in this shell"
            raise SpecError(arm.where(f"env.{name}"), problem, next_command=f"export {source}=…")
    return values


def check_webhook(arm: ResolvedArm, variables: Mapping[str, str]) -> None:
    """Raises SpecError when the webhook's {from: NAME} is not set in `variables`, or is no address that may be used."""
    webhook = None if arm.notify is None else arm.notify["webhook"]
    if webhook is None or isinstance(webhook, str):
        return
    name, where = webhook["from"], arm.where("notify.webhook")
    if name not in variables:
        raise SpecError(where, f"the variable {name} is not set in this shell", next_command=f"export {name}=…")
    if problem := address_problem(variables[name]):
        raise SpecError(where, f"the address in {name} {problem}", allowed="https://…, or http:// to this machine")


def _work(arm: ResolvedArm) -> dict[str, Any]:
    if arm.kind == TRAINER:
        return {"trainer": arm.trainer}
    return {"command": arm.command, "metrics": arm.metrics, "steps": arm.steps}


def _terms(arm: ResolvedArm) -> dict[str, Any]:
    return {
        "primary": arm.primary,
        "resources": arm.resources,
        "budget": arm.budget,
        "policy": {
            "detectors": arm.policy.detectors,
            "rescue": {
                "from": arm.policy.rescue.start,
                "changes": arm.policy.rescue.changes,
                "max": arm.policy.rescue.max,
            },
            "tail": arm.policy.tail,
            "autopsy_s": arm.policy.autopsy_s,
        },
        "environment": arm.environment,
        "env": arm.env,
        "data": arm.data,
        "code": arm.code,
        "retries": arm.retries,
        "notify": arm.notify,
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
