"""The pass that makes captions: from a vision model if one is named, else from .txt files. No torch."""

from __future__ import annotations

from trainer.prepare.captions.address import key_of_environment
from trainer.prepare.captions.asking import PATIENCE, Patience
from trainer.prepare.captions.server_pass import ServerPass
from trainer.prepare.captions.sidecar import SidecarPass
from trainer.prepare.options import Options
from trainer.prepare.passes import Pass


def caption_pass(options: Options, patience: Patience = PATIENCE) -> Pass:
    """Captions as the options want them. Raises UsageError for an address or a key that cannot be used."""
    if options.captions is None:
        return SidecarPass()
    return ServerPass(options.captions, options.seed, key_of_environment(), patience)
