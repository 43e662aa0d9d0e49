// The kernels' threads and scratch, where ONNX Runtime is the host: its own pool, for the time of a call.
#include "../threads.h"

#include <stdlib.h>

#include <thread>

#include "host.h"

namespace binarize {
namespace {

thread_local const ort::Call* current = nullptr;

struct Job {
  Work work;
  const void* context;
  int parts;
};

void enter(void* data, size_t part) {
  const Job& job = *static_cast<const Job*>(data);
  job.work(job.context, static_cast<int>(part), job.parts);
}

struct Memory {
  void* start = nullptr;
  size_t bytes = 0;
  ~Memory() { free(start); }

  void* take(size_t wanted) {
    if (wanted > bytes) {
      free(start);
      bytes = (wanted + 4095) / 4096 * 4096;
      start = aligned_alloc(64, bytes);
      if (start == nullptr) bytes = 0;
    }
    return start;
  }
};

}  // namespace

void run_parts(int parts, Work work, const void* context) {
  Job job{work, context, parts};
  if (current != nullptr && parts > 1) {
    current->parallel(enter, static_cast<size_t>(parts), &job);
    return;
  }
  for (int part = 0; part < parts; ++part) work(context, part, parts);
}

void* scratch(size_t bytes) {
  thread_local Memory memory;
  return memory.take(bytes);
}

bool has_threads() { return current != nullptr; }

namespace ort {

Lender::Lender(const Call& call) { current = &call; }
Lender::~Lender() { current = nullptr; }

int most_threads() {
  constexpr unsigned kMost = 32;
  static const unsigned found = std::thread::hardware_concurrency();
  return static_cast<int>(found == 0 ? 1 : found < kMost ? found : kMost);
}

void* held(Held kind, size_t bytes) {
  thread_local Memory memories[static_cast<size_t>(Held::kinds)];
  void* memory = memories[static_cast<size_t>(kind)].take(bytes == 0 ? 64 : bytes);
  if (memory == nullptr)
    throw Refusal{"cannot run a packed layer: there is no memory for " + std::to_string(bytes) + " bytes"};
  return memory;
}

}  // namespace ort
}  // namespace binarize
