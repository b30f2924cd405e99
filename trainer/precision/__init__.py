"""In which number formats a step computes: autocast, loss scaling, and matrix products in FP8."""
