// Work is shared out over the threads of the OpenMP runtime that the host process already holds (torch brings one).
// A second spinning pool beside it would cost far more than it gives, so there is none: no runtime, one thread.
#pragma once

#include <stddef.h>

namespace binarize {

using Work = void (*)(const void* context, int part, int parts);

// Run work(context, part, parts) once for each part in [0, parts).
void run_parts(int parts, Work work, const void* context);

// At least `bytes` of 64-byte aligned memory, owned by the calling thread and reused by its next call; null if there is
// none to have.
void* scratch(size_t bytes);

// Whether the host's OpenMP threads were found.
bool has_threads();

}  // namespace binarize
