"""Small random encoders with the shapes of the real ones, for where there are no weights and no network."""
