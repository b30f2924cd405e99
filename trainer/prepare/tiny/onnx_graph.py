"""Writing small ONNX networks by hand: operator after operator, with a name made up for every result. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

OPSET, IR_VERSION = 17, 8
"""Old enough for every onnxruntime that is still in use."""


class OnnxGraph:
    """A network of one float32 input. `input` and what `add` and `constant` return are names of results."""

    def __init__(self, input: str, shape: tuple[int | str, ...]) -> None:
        self.input = input
        self._shape = shape
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}

    def add(self, operator: str, *inputs: str | np.ndarray | float, **attributes: Any) -> str:
        """The result of an operator of ONNX; arrays and numbers among its inputs become constants."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, count: int, *inputs: str | np.ndarray | float, **attributes: Any) -> list[str]:
        """The results of an operator that has `count` of them."""
        from onnx import helper

        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        outputs = [f"{operator.lower()}_{len(self._nodes)}_{index}" for index in range(count)]
        self._nodes.append(helper.make_node(operator, names, outputs, **attributes))
        return outputs

    def constant(self, value: np.ndarray | float) -> str:
        """A value that is part of the network: whole numbers as int64, all others as float32."""
        array = np.asarray(value)
        name = f"constant_{len(self._constants)}"
        self._constants[name] = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        return name

    def save(self, path: Path, outputs: Mapping[str, tuple[str, tuple[int | str, ...]]]) -> None:
        """Write the network; `outputs` maps the name of each to the result that it is, and its shape."""
        from onnx import TensorProto, helper, numpy_helper, save

        nodes = [*self._nodes, *(helper.make_node("Identity", [made], [name]) for name, (made, _) in outputs.items())]
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info(self.input, TensorProto.FLOAT, self._shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        opset = [helper.make_opsetid("", OPSET)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
