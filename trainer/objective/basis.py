"""The basis of AsymFlow: the directions in which the patches of the training images vary most, and its file.

Shapes: M patches, F = C p p numbers of a patch in the order (C, p, p), R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.data.rejection import RejectedSample
from trainer.data.sample import Source, to_unit_range
from trainer.errors import ConfigError, DataError, Issue
from trainer.model.patches import to_patches
from trainer.randomness import generator

ENOUGH_PATCHES = 100_000
FILE = "basis.safetensors"


def fit_basis(chunks: Iterable[Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` directions of largest variance of patches (M, F): basis (F, R) float32, all variances (F,) falling.

    Eigenvectors of the centred covariance, in double precision; the largest entry of each is positive, so that the
    same patches give the same basis. Raises DataError when there are not more patches than numbers in a patch.
    """
    count, total_F, products_FF = 0, torch.zeros(0), torch.zeros(0)
    for chunk_MF in chunks:
        exact_MF = chunk_MF.double()
        count += len(exact_MF)
        total_F = exact_MF.sum(dim=0) + (total_F if total_F.numel() else 0.0)
        products_FF = exact_MF.T @ exact_MF + (products_FF if products_FF.numel() else 0.0)
    if count <= len(total_F) or not count:
        raise DataError(f"{count} patches cannot tell {len(total_F)} directions apart: more training images are needed")
    mean_F = total_F / count
    covariance_FF = (products_FF - count * torch.outer(mean_F, mean_F)) / (count - 1)
    variance_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    basis_FR = vectors_FF.flip(1)[:, :rank]
    signs_R = basis_FR.gather(0, basis_FR.abs().argmax(dim=0, keepdim=True))[0].sign()
    return (basis_FR * signs_R).float().contiguous(), variance_F.flip(0).clamp(min=0.0)


def training_patches(config: TrainerConfig, source: Source) -> Iterator[Tensor]:
    """Patches in [-1, 1] of training images in a fixed random order, image by image, until there are enough."""
    order = torch.randperm(len(source.train_ids), generator=generator(0, "basis")).tolist()
    count = 0
    for index in order:
        if count >= max(ENOUGH_PATCHES, 4 * config.patch_features):
            return
        try:
            pixels_HWC = torch.from_numpy(source.load(source.train_ids[index]).pixels_HWC)
        except RejectedSample:
            continue  # training counts and names it when it comes by
        patches_MF = to_patches(to_unit_range(pixels_HWC.permute(2, 0, 1)[None]), config.model.patch)[0]
        count += len(patches_MF)
        yield patches_MF


def basis_of_run(config: TrainerConfig, source: Source, run_dir: Path) -> Tensor | None:
    """The basis that a run trains with (F, R); None unless it trains AsymFlow.

    That of its file or else of its training images, fitted once and kept in the run directory. Raises ConfigError for
    a file that does not fit, DataError when there are too few images to fit one.
    """
    if config.asymflow is None:
        return None
    own = run_dir / FILE
    if own.exists():
        return read_basis(own, config)
    if config.asymflow.basis is not None:
        basis_FR = read_basis(Path(config.asymflow.basis), config)
    else:
        basis_FR, _ = fit_basis(training_patches(config, source), config.asymflow.rank)
    write_basis(own, basis_FR)
    return basis_FR


def write_basis(path: Path, basis_FR: Tensor) -> None:
    """Write a basis with its hash, in one step."""
    unfinished = path.with_name(f".{path.name}.part")
    save_file({"basis": basis_FR}, unfinished, metadata={"hash": basis_hash(basis_FR)})
    unfinished.replace(path)


def read_basis(path: Path, config: TrainerConfig) -> Tensor:
    """The first `rank` directions of a file: (F, R). Raises ConfigError for a damaged one or one of other patches."""
    asymflow = config.asymflow
    assert asymflow is not None, "only AsymFlow has a basis"
    try:
        with safe_open(path, framework="pt") as file:
            basis_FR: Tensor = file.get_tensor("basis")
            said = (file.metadata() or {}).get("hash")
    except (OSError, SafetensorError) as error:
        raise _unusable(f"{path} cannot be read: {error}") from error
    if said != basis_hash(basis_FR):
        raise _unusable(f"{path} is damaged: its numbers do not have the hash it names")
    if basis_FR.shape[0] != config.patch_features or basis_FR.shape[1] < asymflow.rank:
        has, needs = tuple(basis_FR.shape), (config.patch_features, asymflow.rank)
        raise _unusable(f"{path} has {has[1]} directions of {has[0]} numbers; this run needs {needs[1]} of {needs[0]}")
    return basis_FR[:, : asymflow.rank].contiguous()


def basis_hash(basis_FR: Tensor) -> str:
    """What identifies a basis: 16 hex digits of the SHA-256 of its shape and float32 bytes."""
    digest = hashlib.sha256(str(tuple(basis_FR.shape)).encode())
    digest.update(basis_FR.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _unusable(message: str) -> ConfigError:
    return ConfigError([Issue("objective.asymflow.basis", message, "a file of `python -m trainer fit-basis`, or null")])
