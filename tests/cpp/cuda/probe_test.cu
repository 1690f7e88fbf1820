// The kernel that tells whether a GPU works.
#include "cuda/probe.h"
#include "kernel_test.h"

int main() { return thalweg::cuda::test::run(thalweg::cuda::probe_device); }
