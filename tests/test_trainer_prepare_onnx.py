"""ONNX networks: what is refused and by what name, what really computes them, what their revision covers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from trainer.errors import DataError, UsageError
from trainer.prepare.onnx_session import CPU, CUDA, OnnxFile, opened, revision
from trainer.prepare.tiny.onnx_graph import OnnxGraph
from trainer.prepare.tiny.onnx_models import pose_folder

REMEDY = "download small.onnx from somewhere"


def network(path: Path, batch: int | str = "N", side: int = 4) -> OnnxFile:
    """Doubles its input."""
    graph = OnnxGraph("pixels", (batch, 3, side, side))
    doubled = graph.add("Mul", graph.input, np.full((1, 3, side, side), 2.0))
    graph.save(path, {"twice": (doubled, (batch, 3, side, side))})
    return OnnxFile(path, (3, 4, 4), ((3, 4, 4),), REMEDY)


def test_the_provider_that_computes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = network(tmp_path / "small.onnx")
    x_BCHW = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
    with opened(file, "auto") as model:
        assert model.provider == CPU
        assert model.takes_batches
        (twice_BCHW,) = model(x_BCHW)
    np.testing.assert_array_equal(twice_BCHW, 2 * x_BCHW)
    assert capsys.readouterr().err == "small.onnx runs on CPUExecutionProvider\n"


def test_a_fixed_batch_of_one_is_asked_one_by_one(tmp_path: Path) -> None:
    x_BCHW = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    with opened(network(tmp_path / "small.onnx", batch=1), "cpu") as model:
        assert not model.takes_batches
        (twice_BCHW,) = model(x_BCHW)
    np.testing.assert_array_equal(twice_BCHW, 2 * x_BCHW)


@pytest.mark.parametrize("threads", ["2", "3,1", "many", ""])
def test_threads_are_those_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    with opened(network(tmp_path / "small.onnx"), "cpu") as model:
        options = model._session.get_session_options()
        assert options.intra_op_num_threads == {"2": 2, "3,1": 3}.get(threads, 1)


def test_cuda_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = network(tmp_path / "small.onnx")
    with pytest.raises(DataError, match=r"--device cuda: this onnxruntime has .*prepare-gpu"), opened(file, "cuda"):
        pytest.fail("opened")


def test_cuda_that_is_listed_and_does_not_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPU build lists CUDA wherever it is installed and falls back to the CPU without an error."""
    whole = onnxruntime.InferenceSession

    def falling_back(path: str, settings: object, providers: list[object]) -> object:
        assert providers[0][0] == CUDA
        return whole(path, settings, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", falling_back)
    file = network(tmp_path / "small.onnx")
    with pytest.raises(DataError, match=r"small\.onnx was opened on CPUExecutionProvider"), opened(file, "cuda"):
        pytest.fail("opened")
    with opened(file, "auto") as model:
        assert model.provider == CPU
    assert "CUDAExecutionProvider is installed and did not start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"side": 5}, r"takes pixels tensor\(float\) \(N, 3, 5, 5\).*needed: .*\(B, 3, 4, 4\)"),
        ({"batch": 2}, r"takes pixels tensor\(float\) \(2, 3, 4, 4\).*B being 1 or open"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path: Path, changes: dict[str, int], named: str) -> None:
    file = network(tmp_path / "small.onnx", **changes)
    with pytest.raises(DataError, match=named) as error, opened(file, "cpu"):
        pytest.fail("opened")
    assert str(file.path) in str(error.value)
    assert REMEDY in str(error.value)


def test_other_outputs_are_refused_by_name(tmp_path: Path) -> None:
    path = network(tmp_path / "small.onnx").path
    for needed in (((3, 4, 5),), ((3, 4),), ((3, 4, 4), (3, 4, 4))):
        with (
            pytest.raises(DataError, match=r"gives twice tensor\(float\) \(N, 3, 4, 4\)"),
            opened(OnnxFile(path, (3, 4, 4), needed, REMEDY), "cpu"),
        ):
            pytest.fail("opened")


def test_an_answer_that_was_left_open_is_checked_when_it_comes(tmp_path: Path) -> None:
    """How many channels come out depends on the brightest pixel: no file can promise that."""
    graph = OnnxGraph("pixels", ("N", 3, 4, 4))
    brightest = graph.add("Reshape", graph.add("ReduceMax", graph.input, keepdims=1), np.asarray([1]))
    channels = graph.add("Cast", brightest, to=onnx.TensorProto.INT64)
    some = graph.add("Slice", graph.input, np.asarray([0]), channels, np.asarray([1]))
    graph.save(tmp_path / "open.onnx", {"some": (some, ("N", "C", "H", "W"))})
    with opened(OnnxFile(tmp_path / "open.onnx", (3, 4, 4), ((2, None, None),), REMEDY), "cpu") as model:
        assert model(np.full((2, 3, 4, 4), 2.0, dtype=np.float32))[0].shape == (2, 2, 4, 4)
        with pytest.raises(DataError, match=r"gave \(2, 1, 4, 4\) for 2 images; needed: \(B, 2, \?, \?\)"):
            model(np.ones((2, 3, 4, 4), dtype=np.float32))


def test_missing_and_broken_files_say_what_to_download(tmp_path: Path) -> None:
    missing = OnnxFile(tmp_path / "none.onnx", (3, 4, 4), (), REMEDY)
    broken = OnnxFile(tmp_path / "broken.onnx", (3, 4, 4), (), REMEDY)
    whole = network(tmp_path / "small.onnx").path.read_bytes()
    broken.path.write_bytes(whole[: len(whole) // 2])
    for file in (missing, broken):
        with pytest.raises(DataError, match=f"{file.path}.*{REMEDY}"):
            revision(file)
        with pytest.raises(DataError, match=f"(?s){file.path}.*{REMEDY}"), opened(file, "cpu"):
            pytest.fail("opened")


def test_a_revision_covers_weights_in_files_of_their_own(tmp_path: Path) -> None:
    file = network(tmp_path / "small.onnx")
    alone = revision(file)
    assert alone == revision(file)
    assert len(alone) == 64
    model = onnx.load(file.path)
    onnx.save(model, file.path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = revision(file)
    weights = tmp_path / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    assert revision(file) not in (alone, before)
    weights.unlink()
    with pytest.raises(DataError, match=r"weights\.bin cannot be read"):
        revision(file)


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_a_missing_package_is_named_with_its_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    file = network(tmp_path / "small.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"package {package}: pip install 'armature\[prepare\]'.*prepare-gpu"):
        revision(file)


def test_stand_ins_that_cannot_be_built_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnx", None)
        with pytest.raises(UsageError, match="package onnx: pip install"):
            pose_folder()
    (tmp_path / "armature").touch()
    with pytest.raises(DataError, match="tiny-dwpose-1 cannot be made"):
        pose_folder()
    (tmp_path / "armature").unlink()
    folder = pose_folder()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    assert pose_folder() == folder
