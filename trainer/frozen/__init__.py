"""Networks that look at images and never learn."""
