"""A file that cannot be used."""

from __future__ import annotations


class Unusable(ValueError):
    """Why one file is rejected; the message is what the manifest holds beside its path."""
