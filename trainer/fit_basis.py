"""`python -m trainer fit-basis CONFIG --out F`: the basis of AsymFlow from the training images of a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.config import AsymFlowConfig
from trainer.data import open_source
from trainer.device import cap_threads
from trainer.document import load_document
from trainer.errors import EXIT_DONE, UsageError
from trainer.objective.basis import basis_hash, fit_basis, training_patches, write_basis


def main(argv: list[str]) -> int:
    """Fit, write, and say how much of the variance the directions hold."""
    parser = argparse.ArgumentParser(prog="python -m trainer fit-basis", description=__doc__.split(": ")[1])
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a resolved configuration: its data and its patch")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="file to write (.safetensors)")
    parser.add_argument("--rank", type=int, help="directions (default: those of the configuration, or 8)")
    arguments = parser.parse_args(argv)
    cap_threads()
    document = load_document(arguments.config)
    config = document.config
    rank = arguments.rank or (config.asymflow or AsymFlowConfig()).rank
    if not 1 <= rank <= config.patch_features:
        raise UsageError(f"--rank {rank}: a patch has {config.patch_features} numbers; allowed: 1 to that")
    if not arguments.out.parent.is_dir():
        raise UsageError(f"--out {arguments.out}: {arguments.out.parent} is no folder")
    basis_FR, variance_F = fit_basis(training_patches(config, open_source(config, document.seed)), rank)
    write_basis(arguments.out, basis_FR)
    share = float(variance_F[:rank].sum() / variance_F.sum())
    held = f"{rank} directions of {len(variance_F)} hold {share:.1%} of the variance"
    print(f"{arguments.out}: {held}; hash {basis_hash(basis_FR)}")
    return EXIT_DONE
