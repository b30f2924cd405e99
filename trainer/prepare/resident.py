"""A model in memory: on which device, in which precision, loaded from where, and gone when its pass ends."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from trainer.device import cap_threads
from trainer.errors import DataError
from trainer.evaluate.perceptual import ensure_torchvision
from trainer.prepare.passes import Encode, Failed, Inputs, Made
from trainer.prepare.pretrained import Kind, Source, content_hash


def choose_device(asked: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`. Raises DataError for cuda where there is none."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise DataError("--device cuda: this process sees no CUDA device; allowed here: auto, cpu")
    return torch.device("cuda" if available and asked != "cpu" else "cpu")


def precision_on(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else float32. Never float16, in which large activations overflow."""
    in_hardware = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if in_hardware else torch.float32


@contextmanager
def resident(load: Callable[[], Encode], device: torch.device) -> Iterator[Encode]:
    """What `load` makes, for as long as the context lasts: whoever keeps what is yielded keeps no model.

    While it lasts, memory that runs out on a GPU is a DataError that says what to do.
    """
    if device.type == "cpu":
        cap_threads()
    loaded = [load()]

    def encode(inputs: Sequence[Inputs]) -> Sequence[Made | Failed]:
        assert loaded, "a model is asked only before its pass ends"
        try:
            return loaded[0](inputs)
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"the GPU's memory does not suffice for {len(inputs)} images at once: give --batch "
                f"{max(1, len(inputs) // 2)} or --device cpu; what was made is kept"
            ) from error

    try:
        yield encode
    finally:
        loaded.clear()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def load_model(class_name: str, source: Source, kind: Kind, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of transformers, frozen, with all its weights, from files alone.

    Raises DataError if the files are broken, do not fit each other, or have changed since they were looked up.
    """
    transformers = import_transformers()
    is_folder_of_a_person = source.revision != source.folder.name  # a snapshot of the hub is named by its revision
    if is_folder_of_a_person and content_hash(source.folder, kind) != source.revision:
        raise DataError(f"{kind.option}: {source.folder} has changed while this ran; give the same command again")
    try:
        model, found = getattr(transformers, class_name).from_pretrained(
            source.folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, _strict_error()) as error:
        raise DataError(f"{kind.option}: {source.folder} cannot be loaded: {error}") from error
    # What a file lacks would silently be drawn at random. Nothing here masks patches.
    lacking = sorted(name for name in found["missing_keys"] if not name.endswith("mask_token"))
    if lacking:
        raise DataError(
            f"{kind.option}: {source.folder} holds no weights {lacking[0]!r}: they are not those of its config.json"
        )
    return model.requires_grad_(False).eval().to(device)


def import_transformers() -> Any:
    """The package, without its progress bars and its remarks on weights that this model does not use."""
    ensure_torchvision()  # transformers fails to import beside a torchvision that cannot load its operators
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def _strict_error() -> type[Exception]:
    """What a configuration with a value of the wrong type raises."""
    from huggingface_hub.errors import StrictDataclassError

    return StrictDataclassError
