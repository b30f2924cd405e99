"""From the recipes of a set to the passes that made it: the same models, or a refusal that says what is missing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from trainer.asking.trained_run import TrainedRun
from trainer.data.set_record import SetRecord
from trainer.errors import DataError, UsageError
from trainer.prepare.options import DINOV3, T5, Options
from trainer.prepare.passes import Pass
from trainer.prepare.recipe import Recipe, recipe_from_json
from trainer.prepare.table import chosen_passes

TINY = "tiny-"
"""What the model names of random stand-ins begin with."""
PRECISION = "precision"
"""The one option of a recipe that may differ: what computes at this moment need not be what prepared the set."""
_SHA256_DIGITS, _COMMIT_DIGITS = 64, 40
FOLDERS = {"t5": "--t5 FOLDER", "dinov3": "--dinov3 FOLDER", "pose": "--detector FILE and --pose-model FILE"}


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Where real models are, as `sample` and `evaluate` were told; None: where the recipe of the set says."""

    t5: str | None = None
    dinov3: str | None = None
    detector: Path | None = None
    pose_model: Path | None = None


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that say where real models are."""
    group = parser.add_argument_group("encoders of a run that was trained on shards (default: those of its shards)")
    group.add_argument("--t5", metavar="FOLDER", help="the text encoder: a folder or a hub id")
    group.add_argument("--dinov3", metavar="FOLDER", help="the image encoder: a folder or a hub id")
    group.add_argument("--detector", type=Path, metavar="ONNX", help="the YOLOX person detector")
    group.add_argument("--pose-model", type=Path, metavar="ONNX", help="DWPose's 133 joints")


def places_of(given: argparse.Namespace) -> ModelPlaces:
    """What those options say."""
    return ModelPlaces(given.t5, given.dinov3, given.detector, given.pose_model)


def require_record(run: TrainedRun) -> SetRecord:
    """What the shards of a run say of themselves. Raises UsageError if they say nothing of their encoders."""
    if run.record is None or run.record.missing:
        why = run.record.missing if run.record else f"the shards in {run.config.data.path} are not on this machine"
        raise UsageError(
            "this run was trained on text and image features stored in shards, and nothing says which encoders made "
            f"them: {why}, and the checkpoint of step {run.step} does not know either. Needed: the index.json that "
            "`python -m trainer prepare` writes beside the shards, in the folder that data.path names. Without it, "
            "look at RUN_DIR/validation/step_*/images for what the run draws"
        )
    return run.record


def recipe_of(record: SetRecord, artefact: str) -> Recipe:
    """What an artefact of the set was made with. Raises DataError if the set does not say, or in a way of its own."""
    content = record.recipes.get(artefact)
    if content is None:
        raise DataError(
            f"the shards of this run say nothing of how {artefact} was made; they name: {', '.join(record.recipes)}"
        )
    try:
        return recipe_from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the recipe of {artefact} in the shards of this run cannot be understood ({error!r}): it was written by "
            "another version; pack the set again with this one"
        ) from error


def pass_of(record: SetRecord, artefact: str, places: ModelPlaces, device: str) -> tuple[Pass, tuple[str, ...]]:
    """The pass that made an artefact of the set, ready to be opened, and what a person should know about it.

    No model is loaded yet. Where a GPU would compute in another precision than the set was made in, a CPU does it.
    Raises UsageError or DataError if the model is not here, or if what is here would make something else.
    """
    wanted = recipe_of(record, artefact)
    _refuse_places(artefact, wanted, places)
    found = _found(record, artefact, wanted, places, device)
    if _differing(wanted, found.recipe) == {PRECISION} and device != "cpu":
        found = _found(record, artefact, wanted, places, "cpu")
    _refuse_other(artefact, wanted, found.recipe)
    return found, _told(artefact, wanted, found.recipe)


def _found(record: SetRecord, artefact: str, wanted: Recipe, places: ModelPlaces, device: str) -> Pass:
    try:
        work = chosen_passes([artefact], _options(record, wanted, places, device))[0]
        work.recipe  # noqa: B018 - looks for the model
        return work
    except (DataError, UsageError) as error:
        raise type(error)(
            f"{error}\nThis run needs {artefact} by {wanted.model}, revision {wanted.revision}; name it with "
            f"{FOLDERS[artefact]}"
        ) from error


def _refuse_places(artefact: str, wanted: Recipe, places: ModelPlaces) -> None:
    """Raise UsageError where a place is named of a stand-in, which is built here, or is not of a model in a folder.

    A folder's name alone must not be taken for an id on the hub.
    """
    given = {"t5": places.t5, "dinov3": places.dinov3, "pose": places.detector or places.pose_model}[artefact]
    is_tiny = wanted.model.startswith(TINY)
    if given is not None and is_tiny:
        raise UsageError(
            f"{given}: {artefact} of this run was made by {wanted.model}, which is built on the fly; leave "
            f"{FOLDERS[artefact]} out"
        )
    if given is None and artefact != "pose" and not is_tiny and len(wanted.revision) == _SHA256_DIGITS:
        raise UsageError(
            f"{artefact} of this run was made by a model in a folder {wanted.model!r}, revision {wanted.revision}: "
            f"name that folder with {FOLDERS[artefact]}"
        )


def _options(record: SetRecord, wanted: Recipe, places: ModelPlaces, device: str) -> Options:
    is_tiny = wanted.model.startswith(TINY)
    return Options(
        side=record.side,
        tiny=is_tiny,
        device=device,
        t5=places.t5 or (T5 if is_tiny else wanted.model),
        dinov3=places.dinov3 or (DINOV3 if is_tiny else wanted.model),
        detector=places.detector,
        pose_model=places.pose_model,
    )


def _refuse_other(artefact: str, wanted: Recipe, found: Recipe) -> None:
    """Raise DataError unless both make the same of the same input; under which name a model lies does not matter."""
    if wanted.revision != found.revision:
        raise DataError(
            f"{artefact} of this run was made by {wanted.model}, revision {wanted.revision}; here is {found.model}, "
            f"revision {found.revision}: get the first one and name it with {FOLDERS[artefact]}{_of_a_hub(wanted)}"
        )
    if wanted.preprocessing != found.preprocessing:
        raise DataError(
            f"{artefact} of this run was prepared in another way (version {wanted.preprocessing}) than this version "
            f"does it (version {found.preprocessing}): prepare the set again and train on it, or ask the run with the "
            "version of this program that prepared it"
        )
    if keys := sorted(_differing(wanted, found) - {PRECISION}):
        listed = "; ".join(f"{key} was {wanted.options.get(key)!r}, is {found.options.get(key)!r}" for key in keys)
        raise DataError(f"{artefact} of this run was made with other options than it would be now: {listed}")


def _of_a_hub(wanted: Recipe) -> str:
    if len(wanted.revision) != _COMMIT_DIGITS:
        return ""
    return " (a commit of the hub: name its id there, not a folder, whose revision is a hash of its files)"


def _differing(wanted: Recipe, found: Recipe) -> set[str]:
    """Names of the options that differ."""
    keys = {*wanted.options, *found.options}
    return {key for key in keys if wanted.options.get(key) != found.options.get(key)}


def _told(artefact: str, wanted: Recipe, found: Recipe) -> tuple[str, ...]:
    told = f"{artefact} by {found.model}, revision {found.revision[:12]}" + (f": {found.label}" if found.label else "")
    if not _differing(wanted, found):
        return (told,)
    was, now = wanted.options.get(PRECISION), found.options.get(PRECISION)
    return (told, f"{artefact} of this run was computed in {was}, what you ask is in {now}: features differ slightly")
