"""Networks in ONNX files: what they are, whether they fit, and what really computes them. No torch.

Shapes: B images; the rest is the network's own.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trainer.errors import DataError, UsageError
from trainer.prepare.pipeline import threads_of_machine

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_ONLY_ERRORS = 3
_CHUNK = 1 << 24

Shape = tuple[int | None, ...]
"""Sides of an array without the batch; None is any size."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A network that is needed: where it is, the shapes of its one input and of its outputs, each behind a batch.

    `remedy` tells a person what to download, and where to put it, if it is not there or is another one.
    """

    path: Path
    input: Shape
    outputs: tuple[Shape, ...]
    remedy: str


@dataclass(frozen=True, slots=True)
class _Declared:
    """What a file says of one input or output, as onnxruntime tells it of an open network."""

    name: str
    type: str
    shape: Sequence[int | str | None] | None


class OnnxModel:
    """An open network. `provider` is what really computes it."""

    def __init__(self, file: OnnxFile, session: Any) -> None:
        self._file = file
        self._session = session
        self.provider: str = session.get_providers()[0]
        given = session.get_inputs()
        _refuse_other_shapes(file, given, session.get_outputs())
        self._name: str = given[0].name
        self._float = _FLOATS[given[0].type]
        self.takes_batches = given[0].shape[0] != 1

    def __call__(self, x_B: np.ndarray) -> list[np.ndarray]:
        """All outputs for a batch, as float32; one image at a time if the network takes no more.

        Raises DataError if it cannot compute, or answers in another shape than it promised.
        """
        if self.takes_batches or len(x_B) == 1:
            return self._run(x_B)
        each = [self._run(x_B[index : index + 1]) for index in range(len(x_B))]
        return [np.concatenate(same) for same in zip(*each, strict=True)]

    def _run(self, x_B: np.ndarray) -> list[np.ndarray]:
        try:
            found = self._session.run(None, {self._name: x_B.astype(self._float, copy=False)})
        except _failures() as error:
            raise DataError(
                f"{self._file.path} failed on {self.provider} with a batch of {len(x_B)}: {error}; a smaller --batch "
                "needs less memory"
            ) from error
        for array, needed in zip(found, self._file.outputs, strict=True):
            if len(array) != len(x_B) or not _fits(array.shape[1:], needed):
                raise DataError(
                    f"{self._file.path} gave {_text(array.shape)} for {len(x_B)} images; needed: "
                    f"{_text(('B', *needed))}; {self._file.remedy}"
                )
        return [array.astype(np.float32, copy=False) for array in found]

    def close(self) -> None:
        """Free the network and its memory."""
        self._session = None
        gc.collect()


@contextmanager
def opened(file: OnnxFile, device: str) -> Iterator[OnnxModel]:
    """The network on `device` (auto, cpu or cuda), and a line on stderr that says what it runs on.

    One thread, or as many as OMP_NUM_THREADS says. Raises DataError if the file is missing or broken, is another
    network, or if cuda is asked for and not to be had; UsageError if a package is missing.
    """
    onnxruntime = needed_package("onnxruntime")
    _refuse_missing(file)
    chosen = _providers(onnxruntime, device)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = _threads()
    settings.inter_op_num_threads = 1
    settings.use_deterministic_compute = True
    settings.log_severity_level = _ONLY_ERRORS
    try:
        session = onnxruntime.InferenceSession(str(file.path), settings, providers=chosen)
    except _failures() as error:
        raise DataError(f"{file.path} cannot be opened: {error}; {file.remedy}") from error
    model = OnnxModel(file, session)
    del session
    try:
        if device == "cuda" and model.provider != CUDA:
            raise DataError(_no_cuda(f"{file.path.name} was opened on {model.provider} instead"))
        fell_back = len(chosen) > 1 and model.provider == CPU
        note = f" ({CUDA} is installed and did not start)" if fell_back else ""
        print(f"{file.path.name} runs on {model.provider}{note}", file=sys.stderr, flush=True)
        yield model
    finally:
        model.close()


def revision(file: OnnxFile) -> str:
    """SHA-256 in hex of the file and of the files that it keeps weights in, if any.

    Raises DataError if one of them is missing or it is no network or another one, UsageError if a package is missing.
    """
    needed_package("onnxruntime")  # what will be needed is missed now, before anything is made
    onnx = needed_package("onnx")
    from google.protobuf.message import DecodeError

    _refuse_missing(file)
    try:
        graph = onnx.load(file.path, load_external_data=False).graph
        weights = {tensor.name for tensor in graph.initializer}
        given = [_declared(value) for value in graph.input if value.name not in weights]
        promised = [_declared(value) for value in graph.output]
        if all(one.shape is not None for one in (*given, *promised)):  # else they are known when it is opened
            _refuse_other_shapes(file, given, promised)
        outside = sorted(
            {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
        )
        digest = hashlib.sha256()
        for path in (file.path, *(file.path.parent / name for name in outside)):
            with path.open("rb") as content:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
    except DecodeError as error:
        raise DataError(f"{file.path} is no ONNX network: {error}; {file.remedy}") from error
    except OSError as error:
        raise DataError(f"{error.filename or file.path} cannot be read: {error.strerror}; {file.remedy}") from error
    return digest.hexdigest()


def _declared(value: Any) -> _Declared:
    """`value` is a ValueInfoProto; a side without a number is open."""
    kind = value.type.tensor_type
    types = {1: "tensor(float)", 10: "tensor(float16)"}
    sides = [side.dim_value if side.HasField("dim_value") else side.dim_param or None for side in kind.shape.dim]
    return _Declared(value.name, types.get(kind.elem_type, "no floats"), sides if kind.HasField("shape") else None)


def needed_package(name: str) -> ModuleType:
    """A package of the extras. Raises UsageError with what to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"poses and part maps need the package {name}: pip install 'armature[prepare]', on a machine with a GPU "
            "'armature[prepare-gpu]', never both"
        ) from error


def _providers(onnxruntime: ModuleType, device: str) -> list[Any]:
    available = onnxruntime.get_available_providers()
    if device == "cuda" and CUDA not in available:
        raise DataError(_no_cuda(f"this onnxruntime has {', '.join(available)}"))
    if device == "cpu" or CUDA not in available:
        return [CPU]
    onnxruntime.preload_dlls()  # CUDA's libraries lie in packages of their own, where no loader looks
    # An exhaustive search may choose another algorithm every time, TF32 rounds: the same image would get other bytes.
    return [(CUDA, {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}), CPU]


def runs_at_once(device: str) -> int:
    """How many batches are worth running at once: one on a GPU, one for each core on the CPU."""
    available = needed_package("onnxruntime").get_available_providers()
    return threads_of_machine() if device == "cpu" or CUDA not in available else 1


def _no_cuda(found: str) -> str:
    return (
        f"--device cuda: {found}; needed: 'armature[prepare-gpu]' without the plain onnxruntime beside it, and the "
        "versions of CUDA and cuDNN that it wants; or say --device cpu"
    )


def _threads() -> int:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


def _failures() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its exceptions have no common root of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.EngineError,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


def _refuse_missing(file: OnnxFile) -> None:
    if not file.path.is_file():
        raise DataError(f"{file.path} is not there; {file.remedy}")


def _refuse_other_shapes(file: OnnxFile, given: Sequence[Any], promised: Sequence[Any]) -> None:
    """What a file promises may leave sizes open; those are checked with every answer, and so is the answer's batch."""
    fits = (
        len(given) == 1
        and given[0].type in _FLOATS
        and (given[0].shape[:1] == [1] or not isinstance(given[0].shape[0], int))
        and _fits(given[0].shape[1:], file.input)
        and len(promised) == len(file.outputs)
        and all(_fits(output.shape[1:], needed) for output, needed in zip(promised, file.outputs, strict=True))
    )
    if not fits:
        found = [[f"{one.name} {one.type} {_text(one.shape)}" for one in side] for side in (given, promised)]
        raise DataError(
            f"{file.path} is another network: it takes {', '.join(found[0])} and gives {', '.join(found[1])}; needed: "
            f"one input of floats {_text(('B', *file.input))}, B being 1 or open, and "
            f"{' and '.join(_text(('B', *needed)) for needed in file.outputs)}; {file.remedy}"
        )


def _fits(found: Sequence[Any], needed: Shape) -> bool:
    return len(found) == len(needed) and all(
        want is None or not isinstance(side, int) or side == want for side, want in zip(found, needed, strict=True)
    )


def _text(shape: Sequence[Any]) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"
