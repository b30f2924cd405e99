"""Where the two networks of DWPose come from: files that were named, the hub, or stand-ins. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.data.shapes import POSE_JOINTS
from trainer.errors import DataError, UsageError
from trainer.prepare.dwpose.crop import HEIGHT, WIDTH
from trainer.prepare.dwpose.simcc import BINS_PER_PIXEL
from trainer.prepare.dwpose.yolox import ANCHORS, FEATURES, SIDE
from trainer.prepare.onnx_session import OnnxFile
from trainer.prepare.options import Options

REPOSITORY = "yzd-v/DWPose"
DETECTOR, POSE_MODEL = "yolox_l.onnx", "dw-ll_ucoco_384.onnx"


@dataclass(frozen=True, slots=True)
class Networks:
    """The detector and the network of joints; `name` and `label` are those of the recipe."""

    name: str
    label: str
    detector: OnnxFile
    joints: OnnxFile


def networks(options: Options) -> Networks:
    """Raises DataError if the hub has to be asked and cannot be reached, UsageError if a package is missing."""
    if options.tiny:
        from trainer.prepare.tiny.onnx_models import LABEL, pose_folder

        folder = pose_folder()
        detector, joints, name = folder / DETECTOR, folder / POSE_MODEL, "tiny-dwpose"
        remedy = f"remove the folder {folder}, and it is built again"
        return Networks(name, LABEL, _detector(detector, remedy), _joints(joints, remedy))
    for given, name in ((options.detector, DETECTOR), (options.pose_model, POSE_MODEL)):
        if given is not None and not given.is_file():  # before minutes go by with the other one
            raise DataError(f"{given} is not there; {_remedy(name)}")
    return Networks(
        name="DWPose",
        label="",
        detector=_detector(options.detector or _from_hub(DETECTOR), _remedy(DETECTOR)),
        joints=_joints(options.pose_model or _from_hub(POSE_MODEL), _remedy(POSE_MODEL)),
    )


def _detector(path: Path, remedy: str) -> OnnxFile:
    return OnnxFile(path, (3, SIDE, SIDE), ((ANCHORS, FEATURES),), remedy)


def _joints(path: Path, remedy: str) -> OnnxFile:
    bins = ((POSE_JOINTS, WIDTH * BINS_PER_PIXEL), (POSE_JOINTS, HEIGHT * BINS_PER_PIXEL))
    return OnnxFile(path, (3, HEIGHT, WIDTH), bins, remedy)


def _remedy(name: str) -> str:
    option = {DETECTOR: "--detector", POSE_MODEL: "--pose-model"}[name]
    return f"download {name} from https://huggingface.co/{REPOSITORY} and name the file with {option}"


def _from_hub(name: str) -> Path:
    """The file in the hub's cache on this machine; if it is not there, it is fetched."""
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name} is not named and huggingface_hub, which could fetch it, is not installed: pip install "
            f"'armature[prepare]', or {_remedy(name)}"
        ) from error
    try:
        return Path(hf_hub_download(REPOSITORY, name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        # Only the way through the snapshot asks once and quietly; the other one tries for half a minute, in public.
        return Path(snapshot_download(REPOSITORY, allow_patterns=name)) / name
    except (OSError, EntryNotFoundError, HTTPError) as error:  # that of the HTTP client which the hub's package uses
        said = str(error.__cause__ or error).strip()  # around the cause it says that the file is in no cache either
        cause = said.splitlines()[0] if said else type(error).__name__
        raise DataError(f"{name} is not here and cannot be fetched ({cause}): {_remedy(name)}") from error
