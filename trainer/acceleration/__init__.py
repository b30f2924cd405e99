"""How a training step is made to fit and to run fast without changing what is learned."""
