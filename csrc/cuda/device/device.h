// The device layer: all that a kernel source includes. This folder is the only place with inline
// PTX, and the only one that knows whether nvcc or g++ (for the emulator) compiles a kernel; see
// docs/emulator.md. mbarrier.h, tma.h and wgmma.h will join it for Hopper.
#pragma once

#include "cuda/device/atomics.h"
#include "cuda/device/barrier.h"
#include "cuda/device/cluster.h"
#include "cuda/device/conversions.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/grid.h"
#include "cuda/device/launch.h"
#include "cuda/device/ldmatrix.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/shared_memory.h"
#include "cuda/device/shuffle.h"
#include "cuda/device/target.h"
