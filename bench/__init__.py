"""Benchmarks of thalweg next to other libraries; run as `python -m bench`. See bench/README.md."""
