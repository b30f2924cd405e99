"""How weights move: parameter groups, update rules, the learning-rate schedule, averages of the weights."""
