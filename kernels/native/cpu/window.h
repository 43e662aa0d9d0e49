// What a thread prepares before it multiplies: the zero-bordered copy, the popcounts of its windows, and where each of
// its output pixels reads.
#pragma once

#include "plan.h"

namespace binarize {
namespace {

// Output rows [first, last) of one image, and the words their taps read.
struct Chunk {
  int64_t image, first, last, columns;
  const uint32_t* view;
  int64_t pixels() const { return (last - first) * columns; }
};

inline void copy_words(uint32_t* to, const uint32_t* from, int64_t pixels, int64_t words, int64_t from_stride) {
  if (from_stride == words) {
    memcpy(to, from, static_cast<size_t>(pixels * words) * 4);
    return;
  }
  for (int64_t x = 0; x < pixels; ++x)
    for (int64_t word = 0; word < words; ++word) to[x * words + word] = from[x * from_stride + word];
}

inline void copy_row(const Plan& plan, const uint32_t* from, uint32_t* to) {
  const Geometry& g = *plan.call->geometry;
  const int64_t strips = static_cast<int64_t>(g.groups) * g.activation_strips, border = g.padding_w * g.words;
  for (int64_t strip = 0; strip < strips; ++strip, to += plan.plane) {
    memset(to, 0, static_cast<size_t>(border) * 4);
    copy_words(to + border, from + strip * g.words, plan.input_w, g.words, strips * g.words);
    memset(to + border + plan.input_w * g.words, 0, static_cast<size_t>(border) * 4);
  }
}

inline const uint32_t* make_view(const Plan& plan, const Chunk& chunk, const Workspace& space) {
  const Geometry& g = *plan.call->geometry;
  const uint32_t* image = plan.call->x + chunk.image * plan.image_words;
  const int64_t top = chunk.first * g.stride_h - g.padding_h, rows = view_rows(g, chunk.last - chunk.first);
  if (!plan.copies) return image + top * plan.row;
  const int64_t input_row = plan.image_words / plan.input_h;
  for (int64_t row = 0; row < rows; ++row) {
    uint32_t* to = space.copy + row * plan.row;
    const int64_t y = top + row;
    if (y < 0 || y >= plan.input_h)
      memset(to, 0, static_cast<size_t>(plan.row) * 4);
    else
      copy_row(plan, image + y * input_row, to);
  }
  return space.copy;
}

inline void add_popcounts(const uint32_t* words, int64_t stride, int64_t count, int64_t pixels, int place,
                          int32_t* sums) {
  for (int64_t x = 0; x < pixels; ++x) {
    int32_t sum = 0;
    for (int64_t word = 0; word < count; word += 2) {
      uint64_t pair;
      memcpy(&pair, words + x * stride + word, 8);
      sum += __builtin_popcountll(pair);
    }
    sums[x] += sum << place;
  }
}

// The sum of the four bytes of a word.
inline int32_t sum_of_bytes(uint32_t word) {
  const uint32_t pairs = (word & 0x00ff00ffu) + (word >> 8 & 0x00ff00ffu);
  return static_cast<int32_t>((pairs * 0x00010001u) >> 16);
}

inline void add_codes(const uint32_t* words, int64_t stride, int64_t count, int64_t pixels, int32_t* sums) {
  if (count == 1 && stride == 1) {  // an image of up to four channels
#pragma GCC ivdep
    for (int64_t x = 0; x < pixels; ++x) sums[x] += sum_of_bytes(words[x]);
    return;
  }
  for (int64_t x = 0; x < pixels; ++x) {
    int32_t sum = 0;
    for (int64_t word = 0; word < count; ++word) sum += sum_of_bytes(words[x * stride + word]);
    sums[x] += sum;
  }
}

__attribute__((always_inline)) inline void add_strided(const int32_t* from, int64_t stride, int64_t count,
                                                       int32_t* sums) {
#pragma GCC ivdep
  for (int64_t x = 0; x < count; ++x) sums[x] += from[x * stride];
}

inline void add_every(const int32_t* from, int64_t stride, int64_t count, int32_t* sums) {
  if (stride == 1)
    add_strided(from, 1, count, sums);
  else if (stride == 2)
    add_strided(from, 2, count, sums);
  else
    add_strided(from, stride, count, sums);
}

// Sum one map over the taps of each output pixel: over the columns of each row first, then over rows of these sums.
inline void add_taps(const Plan& plan, const Chunk& chunk, const int32_t* map, int32_t* row_sums, int32_t* windows) {
  const Geometry& g = *plan.call->geometry;
  const int64_t out_rows = chunk.last - chunk.first, rows = view_rows(g, out_rows), columns = chunk.columns;
  memset(row_sums, 0, static_cast<size_t>(rows * columns) * 4);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t x = 0; x < g.kernel_w; ++x)
      add_every(map + row * plan.view_w + x * g.dilation_w, g.stride_w, columns, row_sums + row * columns);
  for (int64_t y = 0; y < out_rows; ++y)
    for (int64_t x = 0; x < g.kernel_h; ++x)
      add_strided(row_sums + (y * g.stride_h + x * g.dilation_h) * columns, 1, columns, windows + y * columns);
}

inline void count_windows(const Plan& plan, const Chunk& chunk, const Workspace& space) {
  const Geometry& g = *plan.call->geometry;
  const int64_t rows = view_rows(g, chunk.last - chunk.first), area = rows * plan.view_w;
  // The last piece of a flattened row may be short: past its end there is nothing to read.
  const int64_t width = plan.flat ? chunk.columns : plan.view_w;
  const int64_t maps = static_cast<int64_t>(g.activation_terms) * g.groups;
  memset(space.popcounts, 0, static_cast<size_t>(maps * area) * 4);
  memset(space.windows, 0, static_cast<size_t>(maps * chunk.pixels()) * 4);
  int strip = 0;
  for (int term = 0; term < g.activation_terms; ++term) {
    const int strips = g.codes ? 1 : g.activation_planes[term];
    for (int place = 0; place < strips; ++place, ++strip)
      for (int group = 0; group < g.groups; ++group)
        for (int64_t row = 0; row < rows; ++row) {
          const uint32_t* from = chunk.view + row * plan.row + group * plan.group + strip * plan.plane;
          int32_t* sums = space.popcounts + (term * g.groups + group) * area + row * plan.view_w;
          if (g.codes)
            add_codes(from, plan.pixel, g.words, width, sums);
          else
            add_popcounts(from, plan.pixel, g.words, width, place, sums);
        }
  }
  for (int64_t map = 0; map < maps; ++map)
    add_taps(plan, chunk, space.popcounts + map * area, space.row_sums, space.windows + map * chunk.pixels());
}

inline void place_pixels(const Plan& plan, const Chunk& chunk, const Workspace& space) {
  const Conv2d& call = *plan.call;
  const Geometry& g = *call.geometry;
  const int32_t step = static_cast<int32_t>(g.stride_w * plan.pixel);
  int32_t* offsets = space.offsets;
  int32_t* classes = space.classes;
  for (int64_t y = chunk.first; y < chunk.last; ++y, offsets += chunk.columns, classes += chunk.columns) {
    const int32_t start = static_cast<int32_t>((y - chunk.first) * g.stride_h * plan.row);
    const int32_t columns = static_cast<int32_t>(chunk.columns);
#pragma GCC ivdep
    for (int32_t x = 0; x < columns; ++x) offsets[x] = start + x * step;
    if (call.row_class == nullptr) {
      memset(classes, 0, static_cast<size_t>(columns) * 4);
      continue;
    }
    const int32_t row = call.row_class[y];
#pragma GCC ivdep
    for (int32_t x = 0; x < columns; ++x) classes[x] = row + call.column_class[x];
  }
}

}  // namespace
}  // namespace binarize
