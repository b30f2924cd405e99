"""How weights move: parameter groups, Muon and AdamW, the learning-rate schedule, averages of the weights."""
