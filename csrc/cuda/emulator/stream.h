// The queues behind the emulated run-time API: streams, events, captures and graphs. Internal to
// the emulator.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cuda/emulator/runtime.h"
#include "cuda/emulator/settings.h"

namespace thalweg::emulator {

using Clock = std::chrono::steady_clock;
using Action = std::function<std::optional<Fault>()>;

// What a recording of an event leaves behind: done once its place in the stream is reached.
struct Recording {
  cudaStream_t stream = nullptr;
  bool done = false;
  Clock::time_point time{};
};

struct Operation {
  Action action;                       // empty for waits and recordings
  std::shared_ptr<Recording> waits;    // runs once this is done
  std::shared_ptr<Recording> records;  // done once this operation is reached
};

struct Node {
  Action action;
  std::vector<std::size_t> after;  // nodes that come first, all of lower number
};

struct Capture {
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;
  bool ended = false;
  std::vector<Node> nodes;
};

}  // namespace thalweg::emulator

struct CUstream_st {
  bool blocking = false;
  std::deque<thalweg::emulator::Operation> queue;
  // While capturing: the graph, and the nodes that the next one follows.
  std::shared_ptr<thalweg::emulator::Capture> capture;
  std::vector<std::size_t> last;
};

struct CUevent_st {
  std::shared_ptr<thalweg::emulator::Recording> recording;
  std::shared_ptr<thalweg::emulator::Capture> capture;
  std::vector<std::size_t> last;
};

struct CUgraph_st {
  std::vector<thalweg::emulator::Node> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<thalweg::emulator::Node>> nodes;
};

namespace thalweg::emulator {

struct Device {
  std::recursive_mutex mutex;         // held by every function below and every API call
  std::vector<cudaStream_t> streams;  // in order of creation
  CUstream_st legacy;                 // the stream named nullptr
  cudaError_t sticky = cudaSuccess;
  std::string report;
  Random random{settings().seed};
  // Dynamic shared memory that kernels may ask for, where it is not the default.
  std::map<const void*, int> dynamic_limits;
};

Device& device();
std::unique_lock<std::recursive_mutex> lock_device();

// What an API call returns: the sticky error, if any, or its own, which becomes the last error.
cudaError_t result(cudaError_t error);
// Takes the last error of the calling thread.
cudaError_t take_last_error();
cudaError_t last_error();

bool known(cudaStream_t stream);
CUstream_st& stream_of(cudaStream_t stream);
// Adds to the stream's queue, or to the graph that the stream is being captured into.
cudaError_t enqueue(cudaStream_t stream, Operation operation);
cudaError_t enqueue(cudaStream_t stream, Action action);
void run_all(CUstream_st& stream);
void run_device();
// Whether a stream is being captured: the device cannot be waited for then.
bool capturing();
// Whether a blocking stream is being captured: a use of the legacy stream fails then, and the
// capture with it.
bool invalidate_blocking_captures();
// Whether the mode of a capture forbids this thread calls that may wait, such as cudaMalloc.
bool forbidden_by_capture();

}  // namespace thalweg::emulator
