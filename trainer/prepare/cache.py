"""Where models that were built or fetched are kept. No torch."""

from trainer.cache import cache_folder

__all__ = ["cache_folder"]
