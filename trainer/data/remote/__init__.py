"""Sets of shards that are elsewhere: where they are, what is in them, and how they get here. No torch."""
