"""Why a run went bad: which of weights, averaging, guidance and routing does it, between two of its checkpoints."""
