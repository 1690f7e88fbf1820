"""What concerns GPUs: the command for a machine that has one, and what can be known without."""
