"""Asking a trained run for images it has never seen: words, a reference image, a pose, as the run was conditioned."""
