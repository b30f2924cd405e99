"""From files to upright sRGB crops: every photograph is decoded once, and every pass looks at that crop. No torch."""

from trainer.prepare.ingest.crop import image_recipe
from trainer.prepare.ingest.duplicates import near_duplicates
from trainer.prepare.ingest.gather import ingest

__all__ = ["image_recipe", "ingest", "near_duplicates"]
