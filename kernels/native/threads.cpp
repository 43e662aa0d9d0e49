#include "threads.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>

namespace binarize {
namespace {

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*team)() = nullptr;
};

// Wheels rename the library they carry (libgomp-a34b3233.so.1), so the loaded objects are searched by name.
int open_if_gomp(dl_phdr_info* info, size_t, void* handle) {
  if (info->dlpi_name == nullptr || strstr(info->dlpi_name, "libgomp") == nullptr) return 0;
  void* library = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
  *static_cast<void**>(handle) = library;
  return library != nullptr;
}

OpenMP find_openmp() {
  void* library = dlopen("libgomp.so.1", RTLD_NOLOAD | RTLD_LAZY);
  if (library == nullptr) dl_iterate_phdr(open_if_gomp, &library);
  OpenMP found;
  if (library == nullptr) return found;
  found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(library, "GOMP_parallel"));
  found.thread = reinterpret_cast<decltype(found.thread)>(dlsym(library, "omp_get_thread_num"));
  found.team = reinterpret_cast<decltype(found.team)>(dlsym(library, "omp_get_num_threads"));
  const bool complete = found.parallel != nullptr && found.thread != nullptr && found.team != nullptr;
  return complete ? found : OpenMP{};
}

const OpenMP& openmp() {
  static const OpenMP found = find_openmp();
  return found;
}

struct Job {
  Work work;
  const void* context;
  int parts;
};

// The team may be smaller than was asked for, so a thread takes every team-th part.
void enter(void* data) {
  const Job& job = *static_cast<const Job*>(data);
  const int team = openmp().team();
  for (int part = openmp().thread(); part < job.parts; part += team) job.work(job.context, part, job.parts);
}

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { free(memory); }
};

}  // namespace

void run_parts(int parts, Work work, const void* context) {
  if (parts > 1 && has_threads()) {
    Job job{work, context, parts};
    openmp().parallel(enter, &job, static_cast<unsigned>(parts), 0);
    return;
  }
  for (int part = 0; part < parts; ++part) work(context, part, parts);
}

void* scratch(size_t bytes) {
  thread_local Scratch held;
  if (bytes > held.bytes) {
    free(held.memory);
    held.bytes = (bytes + 4095) / 4096 * 4096;
    held.memory = aligned_alloc(64, held.bytes);
    if (held.memory == nullptr) held.bytes = 0;
  }
  return held.memory;
}

bool has_threads() { return openmp().parallel != nullptr; }

}  // namespace binarize
