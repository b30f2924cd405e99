"""How good a checkpoint is: the same samples, noise and masks for every arm and seed of a study."""
