"""Oracle values from PyTorch, kept as small generated files, and the script that makes them."""
