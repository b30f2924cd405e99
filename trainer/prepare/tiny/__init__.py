"""Small random stand-ins for every encoder, with the inputs and outputs of the real ones: `prepare --encoders tiny`."""
