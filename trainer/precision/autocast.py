"""Networks compute in the format of the run, everything around them in fp32.

Weights stay fp32: autocast casts them for a product and forgets the copy. What a network hands back is fp32 again, and
so is the end of the model (head, output convolution, prediction): a clean image in bf16 would have 8 bits, an error
that the division by t multiplies by up to 20.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from trainer.config import PrecisionConfig

Given = ParamSpec("Given")
Result = TypeVar("Result")
DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ComputingModule(nn.Module):
    """A network that may be told to compute in another format than its weights have; None: in theirs."""

    compute_dtype: torch.dtype | None = None


Network = TypeVar("Network", bound=ComputingModule)


def computing_in(network: Network, precision: PrecisionConfig) -> Network:
    """`network`, told to compute in `precision.compute` wherever its methods are `in_compute_dtype`."""
    network.compute_dtype = DTYPES[precision.compute]
    return network


def in_compute_dtype(
    method: Callable[Concatenate[Network, Tensor, Given], Result],
) -> Callable[Concatenate[Network, Tensor, Given], Result]:
    """A method of a network that runs under autocast to the network's format; unchanged for fp32, or if never told.

    The first argument is a tensor on the device of the network.
    """

    @functools.wraps(method)
    def run(network: Network, first: Tensor, /, *rest: Given.args, **named: Given.kwargs) -> Result:
        dtype = network.compute_dtype
        if dtype is None:
            return method(network, first, *rest, **named)
        with torch.autocast(first.device.type, dtype=dtype):
            return method(network, first, *rest, **named)

    return run


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast is off. Tensors from outside are still what they are: call `.float()` on them."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
