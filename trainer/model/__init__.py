"""The pixel-space diffusion transformer, one part per file."""
