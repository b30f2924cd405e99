"""Poses: where joints were planted they are found, through letterbox, box, crop, bins and back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.planted_people import (
    PlantedPerson,
    confidences,
    planted_person,
    write_seeing_detector,
    write_seeing_pose_model,
)
from trainer.data.buckets import BUCKETS
from trainer.errors import DataError
from trainer.prepare.dwpose.model_files import DETECTOR, POSE_MODEL
from trainer.prepare.dwpose.pose_pass import pose_pass
from trainer.prepare.options import Options
from trainer.prepare.passes import Encode, Failed, Inputs, Made
from trainer.prepare.run import checked
from trainer.prepare.tiny.onnx_graph import OnnxGraph

SIDES = (256, 1024)
HALF_A_BIN = 0.5
OF_A_CENTRE = 0.05  # in bins: what sampling does to the centre of a dot
HALF_PRECISION = 2.0**-12  # of numbers in [-1, 1], at most


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("seeing")
    write_seeing_detector(folder / "detector.onnx")
    write_seeing_pose_model(folder / "joints.onnx")
    return Options(detector=folder / "detector.onnx", pose_model=folder / "joints.onnx", device="cpu")


@pytest.fixture(scope="module")
def encode(seeing: Options) -> Iterator[Encode]:
    with pose_pass(seeing).open() as encode:
        yield encode


def asked(*images_CHW: np.ndarray) -> list[Inputs]:
    return [Inputs(f"{index:016x}", Path("photo.jpg"), image_CHW) for index, image_CHW in enumerate(images_CHW)]


def pose_of(made: Made | Failed) -> np.ndarray:
    assert isinstance(made, Made), made
    return np.asarray(made.files["pose.npy"])


def in_pixels(pose_J3: np.ndarray, image_CHW: np.ndarray) -> np.ndarray:
    """Places in pixels of the image from its corner, by what pose.npy promises."""
    return (pose_J3[:, :2].astype(np.float64) + 1) / 2 * (image_CHW.shape[2], image_CHW.shape[1])


def least_certain(person: PlantedPerson) -> float:
    """How far off a joint may be, in pixels, because of the bins and of what a file can hold."""
    rounded = HALF_PRECISION * max(person.image_CHW.shape) / 2
    return (HALF_A_BIN + OF_A_CENTRE) * person.pixels_per_bin + rounded


def check_joints(made: Made | Failed, person: PlantedPerson) -> None:
    """Every joint that is in the image comes back to half a bin, and on the whole to no side of it."""
    pose_J3 = pose_of(made)
    assert pose_J3.shape == (133, 3)
    assert pose_J3.dtype == np.float16
    seen = ~np.isnan(person.joint_J2[:, 0])
    assert (pose_J3[~seen] == 0).all()
    np.testing.assert_allclose(pose_J3[seen, 2], confidences()[seen], atol=1e-3)
    off_J2 = (in_pixels(pose_J3, person.image_CHW) - person.joint_J2)[seen]
    assert np.abs(off_J2).max() < least_certain(person)
    assert np.abs(off_J2).max() < 1.0
    assert np.abs(off_J2.mean(axis=0)).max() < 0.1 * person.pixels_per_bin, "all of them are shifted"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: bucket.name)
def test_planted_joints_come_back_in_every_bucket(encode: Encode, bucket, side: int) -> None:
    height, width = bucket.scaled(side)
    across, down = min(0.6 * width, 700 * side / 1024), min(0.85 * height, 920 * side / 1024)
    left, top = 0.3 * (width - across), 0.6 * (height - down)
    person = planted_person((width, height), (int(left), int(top), int(left + across), int(top + down)), seed=side)
    assert not np.isnan(person.joint_J2).any()
    (made,) = encode(asked(person.image_CHW))
    check_joints(made, person)
    assert made.facts == {"detected": True, "persons": 1, "detector_score": made.facts["detector_score"]}


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((256, 256), (-40, -50, 150, 200)),  # cut by the left and the upper edge
        ((192, 320), (60, 150, 260, 420)),  # by the right and the lower one
        ((1216, 832), (700, 300, 1300, 1000)),
        ((704, 1344), (0, 0, 704, 920)),  # touching three edges, cut by none
    ],
)
def test_people_at_the_border_keep_the_joints_that_are_in_the_image(
    encode: Encode, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    person = planted_person(size, box)
    unseen = np.isnan(person.joint_J2[:, 0])
    assert np.count_nonzero(~unseen) > 20
    assert unseen.any() == (box[0] < 0 or box[2] > size[0])
    (made,) = encode(asked(person.image_CHW))
    check_joints(made, person)


def test_a_full_frame_is_as_exact_as_the_bins_allow(encode: Encode) -> None:
    person = planted_person((1344, 704), (0, 0, 1344, 704))
    (made,) = encode(asked(person.image_CHW))
    off_J2 = in_pixels(pose_of(made), person.image_CHW) - person.joint_J2
    assert np.nanmax(np.abs(off_J2)) < least_certain(person)


def test_an_image_gets_the_same_pose_alone_and_among_others(encode: Encode) -> None:
    images = [planted_person((256, 256), (30 + 9 * k, 20, 180 + 9 * k, 230), seed=k).image_CHW for k in range(2)]
    images.insert(1, np.full((3, 256, 256), 180, dtype=np.uint8))
    together = encode(asked(*images))
    assert [made.facts["detected"] for made in together] == [True, False, True]
    for image_CHW, made in zip(images, together, strict=True):
        (alone,) = encode(asked(image_CHW))
        np.testing.assert_array_equal(pose_of(alone), pose_of(made))
        assert alone.facts == made.facts


def test_where_there_is_nobody_no_joint_is_certain(encode: Encode) -> None:
    (made,) = encode(asked(np.full((3, 176, 336), 128, dtype=np.uint8)))
    assert not pose_of(made).any()
    assert made.facts == {"detected": False, "persons": 0, "detector_score": 0.0}


def test_joints_that_are_not_finite_fail_and_are_not_written(seeing: Options, tmp_path: Path) -> None:
    graph = OnnxGraph("input", ("N", 3, 384, 288))
    nothing = graph.add("Mul", graph.add("ReduceMean", graph.input, axes=[1, 2, 3], keepdims=1), 0.0)
    nothing = graph.add("Reshape", graph.add("Div", nothing, nothing), np.asarray([0, 1, 1]))
    outputs = {
        name: (graph.add("Add", nothing, np.zeros((1, 133, bins))), ("N", 133, bins))
        for name, bins in (("x", 576), ("y", 768))
    }
    graph.save(tmp_path / "nan.onnx", outputs)
    person = planted_person((256, 256), (30, 20, 200, 230))
    with pose_pass(Options(detector=seeing.detector, pose_model=tmp_path / "nan.onnx")).open() as encode:
        (made,) = encode(asked(person.image_CHW))
    assert made == Failed("the network of joints gave numbers that are not finite")


def test_recipes_follow_the_content_of_both_networks(seeing: Options, tmp_path: Path) -> None:
    work = pose_pass(seeing)
    assert (work.artefact, work.files, work.needs) == ("pose", ("pose.npy",), ("image",))
    swapped = tmp_path / "another_name.onnx"
    swapped.write_bytes(seeing.detector.read_bytes())
    moved = pose_pass(Options(detector=swapped, pose_model=seeing.pose_model)).recipe
    assert moved == work.recipe, "a name and a place say nothing"
    assert work.recipe.label == ""
    changed = swapped.read_bytes().replace(b"network", b"another")
    assert changed != swapped.read_bytes()
    swapped.write_bytes(changed)
    assert pose_pass(Options(detector=swapped, pose_model=seeing.pose_model)).recipe.hash != work.recipe.hash


def test_stand_ins_find_a_person_and_say_that_they_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    work = pose_pass(Options(tiny=True, device="cpu"))
    assert work.recipe.model == "tiny-dwpose"
    assert "random stand-in" in work.recipe.label
    assert work.recipe.hash == pose_pass(Options(tiny=True)).recipe.hash
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (3, *bucket.scaled(256)), dtype=np.uint8) for bucket in BUCKETS]
    with work.open() as encode:
        poses = []
        for image_CHW in images:
            (made,) = encode(asked(image_CHW))
            assert checked(work, made) is made
            assert made.facts["detected"]
            poses.append(pose_of(made))
        (nobody,) = encode(asked(np.full((3, 256, 256), 114, dtype=np.uint8)))
    assert not nobody.facts["detected"]
    assert all((pose_J3[:, 2] > 0).sum() > 66 for pose_J3 in poses)
    assert len({pose_J3.tobytes() for pose_J3 in poses}) == len(poses)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert pose_pass(Options(tiny=True)).recipe.hash == work.recipe.hash, "they are the same wherever they are built"


def test_networks_that_are_not_named_come_from_the_cache_of_the_hub(
    seeing: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"yolox_l\.onnx is not here and cannot be fetched .* with --detector"):
        _ = pose_pass(Options()).recipe
    with pytest.raises(DataError, match=r"dw-ll_ucoco_384\.onnx .* with --pose-model"):
        _ = pose_pass(Options(detector=seeing.detector)).recipe
    repository = tmp_path / "models--yzd-v--DWPose"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    (snapshot / DETECTOR).write_bytes(seeing.detector.read_bytes())
    (snapshot / POSE_MODEL).write_bytes(seeing.pose_model.read_bytes())
    assert pose_pass(Options()).recipe == pose_pass(seeing).recipe


class Refusing(BaseHTTPRequestHandler):
    """A hub that has no such repository."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_hub_that_has_it_not_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as hub:
        serving = threading.Thread(target=hub.serve_forever)
        serving.start()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        with pytest.raises(DataError, match=r"(?s)404.*https://huggingface.co/yzd-v/DWPose and name .* --detector"):
            _ = pose_pass(Options()).recipe
        hub.shutdown()
        serving.join()


def test_a_file_that_is_not_there_is_missed_before_the_hub_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lost\.onnx is not there; .* --pose-model"):
        _ = pose_pass(Options(pose_model=tmp_path / "lost.onnx")).recipe
