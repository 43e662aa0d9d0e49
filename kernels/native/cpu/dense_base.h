// What the float kernels of all levels share.
#pragma once

#include <stdint.h>

namespace binarize {
namespace {

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t rounded_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The taps of one window that are inside the image.
struct Window {
  int64_t first_row, last_row, first_column, last_column;  // kernel rows and columns
  int64_t count() const { return (last_row - first_row) * (last_column - first_column); }
};

// The first and last + 1 of `kernel` taps at start + tap * dilation that lie in [0, size).
inline void inside(int64_t start, int64_t kernel, int64_t dilation, int64_t size, int64_t& first, int64_t& last) {
  first = start < 0 ? rounded_up(-start, dilation) : 0;
  last = least(kernel, start < size ? rounded_up(size - start, dilation) : 0);
  if (first > last) first = last;
}

// Threads that are worth their fork, where `fewest` units of work make one worth it.
inline int parts_of(double work, double fewest, int threads) {
  const double worth = work / fewest;
  return worth < 1 ? 1 : worth < threads ? static_cast<int>(worth) : threads;
}

}  // namespace
}  // namespace binarize
