"""What is drawn for a training step and what is minimised, one technique per file."""
