// What the float kernels of all levels share.
#pragma once

#include <stdint.h>

namespace binarize {
namespace {

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t rounded_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads that are worth their fork, where `fewest` units of work make one worth it.
inline int parts_of(double work, double fewest, int threads) {
  const double worth = work / fewest;
  return worth < 1 ? 1 : worth < threads ? static_cast<int>(worth) : threads;
}

}  // namespace
}  // namespace binarize
