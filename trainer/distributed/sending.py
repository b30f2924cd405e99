"""Nested containers of tensors from one process to another, tensor by tensor and on the device of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class _Place(NamedTuple):
    """Stands where a tensor was."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_on_host: bool


def send(content: Any, to: int) -> None:
    """Send dictionaries, lists and tuples of tensors and plain values to another process, which must `receive`."""
    tensors: list[Tensor] = []
    dist.send_object_list([_taken_apart(content, tensors)], to)
    for tensor in tensors:
        dist.send(tensor.detach().contiguous(), to)


def receive(source: int, device: torch.device) -> Any:
    """What process `source` sends; tensors that were on a device there come to `device`."""
    skeleton: list[Any] = [None]
    dist.recv_object_list(skeleton, source)
    return _put_together(skeleton[0], source, device)


def _taken_apart(content: Any, tensors: list[Tensor]) -> Any:
    if isinstance(content, Tensor):
        tensors.append(content)
        return _Place(tuple(content.shape), content.dtype, content.device.type == "cpu")
    if isinstance(content, dict):
        return {key: _taken_apart(value, tensors) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(_taken_apart(value, tensors) for value in content)
    return content


def _put_together(skeleton: Any, source: int, device: torch.device) -> Any:
    """Receives in the order in which `_taken_apart` walked."""
    if isinstance(skeleton, _Place):
        tensor = torch.empty(skeleton.shape, dtype=skeleton.dtype, device="cpu" if skeleton.is_on_host else device)
        dist.recv(tensor, source)
        return tensor
    if isinstance(skeleton, dict):
        return {key: _put_together(value, source, device) for key, value in skeleton.items()}
    if type(skeleton) in (list, tuple):
        return type(skeleton)(_put_together(value, source, device) for value in skeleton)
    return skeleton
