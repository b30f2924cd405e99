"""One training process for a pixel-space diffusion transformer. Runs alone too: `python -m trainer --help`."""
