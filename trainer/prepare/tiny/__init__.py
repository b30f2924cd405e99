"""Small random stand-ins for the encoders, with the real shapes of inputs and outputs."""
