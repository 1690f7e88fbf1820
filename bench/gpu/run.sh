#!/usr/bin/env bash
# Builds, tests and benchmarks the CUDA back end on a machine with a GPU, in under nine minutes and
# without a network, and writes one JSON file.
#
#   bash bench/gpu/run.sh              needs nvcc, a C++ compiler and a Python with PyTorch
#   bash bench/gpu/run.sh --dry-run    the same stages in miniature, with the installed thalweg
#   bash bench/gpu/run.sh --prepare    on a machine with a network: collects the build tools that
#                                      the GPU machine's Python lacks in build/gpu/wheels
#
# Exit status: 0 passed, 1 a stage failed or ran out of time, 3 none failed but a stage (the
# sanitizers) did not finish all of its parts.
# PYTHON names the interpreter (default: python3); further options: --help.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m bench.gpu.run "$@"
