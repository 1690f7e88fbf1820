// Queues: when the work of streams, events and graphs runs.
#include "cuda/emulator/stream.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>

#include "cuda/emulator/device_memory.h"

namespace thalweg::emulator {
namespace {

// A host that never synchronizes may not queue more than this per stream.
constexpr std::size_t kQueueLimit = 1024;

thread_local cudaError_t last_error_ = cudaSuccess;
// Captures that this thread began, and those of mode global that anyone began.
thread_local int thread_captures_ = 0;
std::atomic<int> global_captures_{0};

cudaError_t error_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::kDeadlock:
      return cudaErrorLaunchTimeout;
    case FaultKind::kIllegalAddress:
      return cudaErrorIllegalAddress;
    case FaultKind::kMisalignedAddress:
      return cudaErrorMisalignedAddress;
    case FaultKind::kIllegalInstruction:
      return cudaErrorIllegalInstruction;
    case FaultKind::kLaunchFailure:
      break;
  }
  return cudaErrorLaunchFailure;
}

void perform(const Action& action) {
  Device& d = device();
  if (d.sticky != cudaSuccess || !action) return;
  const DeviceAccess access;
  std::optional<Fault> fault;
  try {
    fault = action();
  } catch (const std::bad_alloc&) {
    fault = Fault{FaultKind::kLaunchFailure, "[emulator] the host has not enough memory"};
  }
  if (fault) {
    d.sticky = error_of(fault->kind);
    d.report = std::move(fault->report);
  }
}

void run_until(CUstream_st& stream, const Recording* recording);

void run_one(CUstream_st& stream) {
  Operation operation = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (operation.waits && !operation.waits->done) {
    run_until(*operation.waits->stream, operation.waits.get());
  }
  perform(operation.action);
  if (operation.records) {
    operation.records->done = true;
    operation.records->time = Clock::now();
  }
}

void run_until(CUstream_st& stream, const Recording* recording) {
  while (!recording->done && !stream.queue.empty()) run_one(stream);
}

// The legacy stream and blocking streams wait for each other.
void join_legacy(CUstream_st& stream) {
  Device& d = device();
  if (&stream == &d.legacy) {
    for (cudaStream_t other : d.streams) {
      if (other->blocking) run_all(*other);
    }
  } else if (stream.blocking) {
    run_all(d.legacy);
  }
}

// With a seed, some streams advance at any time.
void advance_at_random() {
  Device& d = device();
  if (settings().seed == 0) return;
  for (cudaStream_t stream : d.streams) {
    while (!stream->queue.empty() && d.random.one_in(2)) run_one(*stream);
  }
}

// Waits for the legacy stream as other blocking streams do. Kept for good: events may name it after
// its thread has ended.
CUstream_st& per_thread_stream() {
  thread_local CUstream_st* stream = nullptr;
  if (stream == nullptr) {
    stream = new CUstream_st;
    stream->blocking = true;
    device().streams.push_back(stream);
  }
  return *stream;
}

bool is_default(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}

// The nodes of a graph in an order that their edges allow: as captured, or drawn.
void run_graph(const std::vector<Node>& nodes) {
  if (settings().seed == 0) {
    for (const Node& node : nodes) perform(node.action);
    return;
  }
  std::vector<bool> done(nodes.size(), false);
  for (std::size_t count = 0; count < nodes.size(); ++count) {
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      const auto& after = nodes[i].after;
      if (!done[i] && std::all_of(after.begin(), after.end(), [&](auto j) { return done[j]; })) {
        ready.push_back(i);
      }
    }
    const std::size_t chosen = ready[device().random.below(ready.size())];
    perform(nodes[chosen].action);
    done[chosen] = true;
  }
}

}  // namespace

Device& device() {
  static Device& device = *new Device;
  return device;
}

std::unique_lock<std::recursive_mutex> lock_device() { return std::unique_lock(device().mutex); }

cudaError_t result(cudaError_t error) {
  if (device().sticky != cudaSuccess) error = device().sticky;
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error_ = error;
  return error;
}

cudaError_t last_error() { return device().sticky != cudaSuccess ? device().sticky : last_error_; }

cudaError_t take_last_error() {
  const cudaError_t error = last_error();
  last_error_ = cudaSuccess;
  return error;
}

bool known(cudaStream_t stream) {
  const auto& streams = device().streams;
  return is_default(stream) || std::find(streams.begin(), streams.end(), stream) != streams.end();
}

CUstream_st& stream_of(cudaStream_t stream) {
  if (stream == cudaStreamPerThread) return per_thread_stream();
  return is_default(stream) ? device().legacy : *stream;
}

void run_all(CUstream_st& stream) {
  while (!stream.queue.empty()) run_one(stream);
}

void run_device() {
  Device& d = device();
  run_all(d.legacy);
  for (cudaStream_t stream : d.streams) run_all(*stream);
}

cudaError_t enqueue(cudaStream_t handle, Operation operation) {
  if (!known(handle)) return cudaErrorInvalidResourceHandle;
  CUstream_st& stream = stream_of(handle);
  if (stream.capture) {
    if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
    stream.capture->nodes.push_back({std::move(operation.action), stream.last});
    stream.last = {stream.capture->nodes.size() - 1};
    return cudaSuccess;
  }
  if (&stream == &device().legacy && invalidate_blocking_captures())
    return cudaErrorStreamCaptureImplicit;
  join_legacy(stream);
  stream.queue.push_back(std::move(operation));
  while (stream.queue.size() > kQueueLimit) run_one(stream);
  advance_at_random();
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t stream, Action action) {
  return enqueue(stream, Operation{std::move(action), nullptr, nullptr});
}

bool capturing() {
  const auto& streams = device().streams;
  return std::any_of(streams.begin(), streams.end(),
                     [](cudaStream_t stream) { return stream->capture != nullptr; });
}

bool invalidate_blocking_captures() {
  bool any = false;
  for (cudaStream_t stream : device().streams) {
    if (!stream->capture || !stream->blocking) continue;
    stream->capture->invalid = true;
    any = true;
  }
  return any;
}

bool forbidden_by_capture() { return global_captures_ > 0 || thread_captures_ > 0; }

}  // namespace thalweg::emulator

// The API, in the namespace of the run-time library.
using namespace thalweg::emulator;

// ---- Streams ------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const auto lock = lock_device();
  *stream = new CUstream_st;
  (*stream)->blocking = (flags & cudaStreamNonBlocking) == 0;
  device().streams.push_back(*stream);
  return result(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const auto lock = lock_device();
  if (is_default(stream) || !known(stream)) return result(cudaErrorInvalidResourceHandle);
  run_all(*stream);
  std::erase(device().streams, stream);
  delete stream;
  return result(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto lock = lock_device();
  if (!known(stream)) return result(cudaErrorInvalidResourceHandle);
  CUstream_st& s = stream_of(stream);
  if (s.capture) {
    s.capture->invalid = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  if (&s == &device().legacy && invalidate_blocking_captures())
    return result(cudaErrorStreamCaptureImplicit);
  join_legacy(s);
  run_all(s);
  return result(cudaSuccess);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const auto lock = lock_device();
  if (!known(stream)) return result(cudaErrorInvalidResourceHandle);
  CUstream_st& s = stream_of(stream);
  if (s.capture) return result(cudaErrorStreamCaptureUnsupported);
  if (s.queue.empty()) return result(cudaSuccess);
  run_one(s);  // a host that asks in a loop gets there
  return result(cudaErrorNotReady);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto lock = lock_device();
  if (event == nullptr || !known(stream)) return result(cudaErrorInvalidResourceHandle);
  CUstream_st& s = stream_of(stream);
  if (event->capture) {
    // The stream joins the capture that the event belongs to.
    if (event->capture->ended) return result(cudaErrorInvalidValue);
    if (s.capture && s.capture != event->capture) return result(cudaErrorStreamCaptureUnsupported);
    s.capture = event->capture;
    for (const std::size_t node : event->last) {
      if (std::find(s.last.begin(), s.last.end(), node) == s.last.end()) s.last.push_back(node);
    }
    return result(cudaSuccess);
  }
  if (s.capture) return result(cudaErrorStreamCaptureUnsupported);
  if (!event->recording) return result(cudaSuccess);
  return result(enqueue(stream, Operation{nullptr, event->recording, nullptr}));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  const auto lock = lock_device();
  return result(enqueue(stream, Action([=] {
                          function(data);
                          return std::optional<Fault>();
                        })));
}

// ---- Events -------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const auto lock = lock_device();
  *event = new CUevent_st;
  return result(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const auto lock = lock_device();
  if (event == nullptr) return result(cudaErrorInvalidResourceHandle);
  delete event;
  return result(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto lock = lock_device();
  if (event == nullptr || !known(stream)) return result(cudaErrorInvalidResourceHandle);
  CUstream_st& s = stream_of(stream);
  event->capture = s.capture;
  event->last = s.last;
  event->recording = nullptr;
  if (s.capture) return result(cudaSuccess);
  event->recording = std::make_shared<Recording>();
  event->recording->stream = &s;
  return result(enqueue(stream, Operation{nullptr, nullptr, event->recording}));
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const auto lock = lock_device();
  if (event == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (event->capture) return result(cudaErrorStreamCaptureUnsupported);
  if (!event->recording || event->recording->done) return result(cudaSuccess);
  run_one(*event->recording->stream);
  return result(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto lock = lock_device();
  if (event == nullptr) return result(cudaErrorInvalidResourceHandle);
  if (event->capture) return result(cudaErrorStreamCaptureUnsupported);
  if (event->recording && !event->recording->done) {
    run_until(*event->recording->stream, event->recording.get());
  }
  return result(cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const auto lock = lock_device();
  if (start == nullptr || end == nullptr || !start->recording || !end->recording) {
    return result(cudaErrorInvalidResourceHandle);
  }
  if (!start->recording->done || !end->recording->done) return result(cudaErrorNotReady);
  *milliseconds =
      std::chrono::duration<float, std::milli>(end->recording->time - start->recording->time)
          .count();
  return result(cudaSuccess);
}

// ---- Graphs -------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const auto lock = lock_device();
  // The default streams cannot be captured here; on a GPU, the per-thread one can.
  if (is_default(stream) || !known(stream)) return result(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return result(cudaErrorStreamCaptureUnsupported);
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->mode = mode;
  stream->last.clear();
  if (mode == cudaStreamCaptureModeGlobal) ++global_captures_;
  if (mode == cudaStreamCaptureModeThreadLocal) ++thread_captures_;
  return result(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const auto lock = lock_device();
  *graph = nullptr;
  if (is_default(stream) || !known(stream) || !stream->capture ||
      stream->capture->origin != stream) {
    return result(cudaErrorStreamCaptureUnmatched);
  }
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->mode == cudaStreamCaptureModeGlobal) --global_captures_;
  if (capture->mode == cudaStreamCaptureModeThreadLocal) --thread_captures_;

  // Everything captured must lead to the end of the stream that began the capture.
  std::vector<bool> joined(capture->nodes.size(), false);
  for (const std::size_t node : stream->last) joined[node] = true;
  for (std::size_t i = capture->nodes.size(); i > 0; --i) {
    if (!joined[i - 1]) continue;
    for (const std::size_t node : capture->nodes[i - 1].after) joined[node] = true;
  }
  for (cudaStream_t other : device().streams) {
    if (other->capture != capture) continue;
    other->capture = nullptr;
    other->last.clear();
  }
  capture->ended = true;
  if (capture->invalid) return result(cudaErrorStreamCaptureInvalidated);
  if (std::find(joined.begin(), joined.end(), false) != joined.end()) {
    return result(cudaErrorStreamCaptureUnjoined);
  }
  *graph = new CUgraph_st{std::move(capture->nodes)};
  return result(cudaSuccess);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const auto lock = lock_device();
  if (!known(stream)) return result(cudaErrorInvalidResourceHandle);
  const auto& capture = stream_of(stream).capture;
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return result(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  const auto lock = lock_device();
  if (graph == nullptr) return result(cudaErrorInvalidValue);
  if (memory_in_use() >= settings().memory_bytes) return result(cudaErrorMemoryAllocation);
  *executable = new CUgraphExec_st{std::make_shared<const std::vector<Node>>(graph->nodes)};
  return result(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const auto lock = lock_device();
  if (executable == nullptr) return result(cudaErrorInvalidValue);
  // The queue shares the nodes: the executable graph may be destroyed before they have run.
  return result(enqueue(stream, Action([nodes = executable->nodes] {
                          run_graph(*nodes);
                          return std::optional<Fault>();
                        })));
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  const auto lock = lock_device();
  if (graph == nullptr || nodes != nullptr) return result(cudaErrorInvalidValue);
  *count = graph->nodes.size();
  return result(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const auto lock = lock_device();
  if (graph == nullptr) return result(cudaErrorInvalidValue);
  delete graph;
  return result(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const auto lock = lock_device();
  if (executable == nullptr) return result(cudaErrorInvalidValue);
  delete executable;
  return result(cudaSuccess);
}
