"""Which micro-batch, recomputation and compilation make the training step of a configuration fastest here."""
