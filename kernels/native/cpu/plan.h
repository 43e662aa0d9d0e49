// The part of a convolution that all its threads share: where words lie, in which order they are multiplied, and how
// large each thread's scratch is.
#pragma once

#include <string.h>

#include "../problem.h"
#include "tile.h"

namespace binarize {
namespace {

// One integer accumulator: a weight term times an activation term.
struct Product {
  const Pass* passes;
  int pass_count;
  int activation_term;
  uint32_t odd_sum;  // the odd weight where nothing is counted: 2^planes - 1, of codes -1, or 2^bits - 1 of fields; or
                     // the constant 1
};

struct Plan {
  const Conv2d* call;
  int64_t blocks, units;          // blocks of 32 output channels: in a group, in all
  int64_t images, rows, columns;  // of the output, after 1x1 convolutions are flattened
  int64_t last_columns;           // of the last image
  bool flat;                      // all pixels of all images make one row, cut into pieces
  int64_t input_h, input_w, image_words;
  bool copies;                                    // pixels go through a zero-bordered copy
  int64_t view_w, pixel, plane, group, row;       // width of the view in pixels, strides in words
  int64_t block_words, plane_words, group_words;  // strides of the weight, in words as they lie in memory
  int64_t used_words;                             // of a block as bytes
  bool fields, widens;                            // narrow weights are multiplied as they are, or made bytes of
  const Run* runs;
  int run_count, step;  // step: see Operands
  const Product* products;
  int product_count;
  int64_t taps;
  int64_t chunk_rows;  // most output rows a thread holds at a time
  int parts;
  bool by_units;  // threads share channel blocks, else rows
  char* workspace;
  size_t part_bytes;
};

constexpr int64_t kFlatColumns = 16 * kMostPixels;  // pixels that a flattened 1x1 convolution takes at a time

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t view_rows(const Geometry& g, int64_t out_rows) {
  return (out_rows - 1) * g.stride_h + static_cast<int64_t>(g.kernel_h - 1) * g.dilation_h + 1;
}

// A 1x1 convolution of stride 1 has no neighbourhood, so where its images and rows end does not matter.
inline bool is_flat(const Conv2d& call) {
  const Geometry& g = *call.geometry;
  return g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.padding_h == 0 &&
         g.padding_w == 0 && call.row_class == nullptr;
}

inline void set_extents(Plan& plan) {
  const Conv2d& call = *plan.call;
  plan.images = call.n;
  plan.rows = call.out_h;
  plan.columns = plan.last_columns = call.out_w;
  plan.input_h = call.h;
  plan.input_w = call.w;
  plan.flat = is_flat(call);
  if (!plan.flat) return;
  const int64_t pixels = call.n * call.h * call.w;
  plan.images = ceil_div(pixels, kFlatColumns);
  plan.rows = plan.input_h = 1;
  plan.columns = plan.input_w = kFlatColumns;
  plan.last_columns = pixels - (plan.images - 1) * kFlatColumns;
}

inline void set_strides(Plan& plan) {
  const Geometry& g = *plan.call->geometry;
  const int64_t strips = g.activation_strips, pixel = static_cast<int64_t>(g.groups) * strips * g.words;
  plan.taps = static_cast<int64_t>(g.kernel_h) * g.kernel_w;
  plan.image_words = plan.input_h * plan.input_w * pixel;
  plan.copies = g.padding_h > 0 || g.padding_w > 0 || (plan.taps > 1 && pixel != g.words);
  if (plan.copies) {  // (row, group, plane, column, words): the taps of a kernel row become neighbours
    plan.view_w = plan.input_w + 2 * static_cast<int64_t>(g.padding_w);
    plan.pixel = g.words;
    plan.plane = plan.view_w * g.words;
    plan.group = plan.plane * strips;
    plan.row = plan.group * g.groups;
  } else {
    plan.view_w = plan.input_w;
    plan.pixel = pixel;
    plan.plane = g.words;
    plan.group = strips * g.words;
    plan.row = plan.view_w * pixel;
  }
  plan.blocks = ceil_div(g.out_channels, kLanes);
  plan.units = plan.blocks * g.groups;
  plan.used_words = plan.taps * g.words * kLanes;
  plan.block_words = g.narrow > 0 ? plan.used_words * g.narrow / 8 : plan.used_words;
  plan.plane_words = plan.block_words * plan.blocks;
  plan.group_words = plan.plane_words * g.weight_strips;
}

inline int fill_runs(const Plan& plan, Run* runs) {
  const Geometry& g = *plan.call->geometry;
  const bool merges = g.dilation_w == 1 && plan.pixel == g.words;
  int count = 0;
  for (int y = 0; y < g.kernel_h; ++y) {
    const int64_t row = y * g.dilation_h * plan.row;
    if (merges) {
      runs[count++] = {static_cast<int32_t>(row), g.kernel_w * g.words};
      continue;
    }
    for (int x = 0; x < g.kernel_w; ++x)
      runs[count++] = {static_cast<int32_t>(row + x * g.dilation_w * plan.pixel), g.words};
  }
  return count;
}

// The largest divisor of a number up to sixteen.
inline int step_of(int words) {
  int step = 16;
  while (words % step != 0) --step;
  return step;
}

// Passes of one product by falling i + j, i over the planes of the weight term and j over those of the activation's.
// The constant +1 has no planes and takes none: its dot product is the popcount of the window.
inline int fill_passes(const Plan& plan, int first_weight, int weights, int first_digit, int digits, Pass* passes) {
  int count = 0;
  if (weights == 0) return count;
  for (int sum = weights + digits - 2; sum >= 0; --sum) {
    for (int i = 0; i < weights; ++i) {
      const int j = sum - i;
      if (j < 0 || j >= digits) continue;
      passes[count++] = {(first_digit + j) * plan.plane, (first_weight + i) * plan.plane_words, false};
    }
    passes[count - 1].closes = true;
  }
  return count;
}

// A pass of codes multiplies whole terms. Fields are larger than the weights that they stand for by half their range.
inline void fill_code_products(const Plan& plan, Product* products, Pass* passes) {
  const Geometry& g = *plan.call->geometry;
  const uint32_t odd_sum = plan.fields ? (1u << g.narrow) - 1u : ~0u;
  for (int w = 0; w < g.weight_terms; ++w) {
    const bool constant = g.weight_planes[w] == 0;
    for (int a = 0; a < g.activation_terms; ++a, ++passes) {
      *passes = {a * plan.plane, w * (plan.widens ? plan.used_words : plan.plane_words), true};
      *products++ = {passes, constant ? 0 : 1, a, constant ? 1u : odd_sum};
    }
  }
}

inline void fill_products(const Plan& plan, Product* products, Pass* passes) {
  const Geometry& g = *plan.call->geometry;
  if (g.codes) return fill_code_products(plan, products, passes);
  int first_weight = 0;
  for (int w = 0; w < g.weight_terms; ++w) {
    int first_digit = 0;
    for (int a = 0; a < g.activation_terms; ++a) {
      const int count =
          fill_passes(plan, first_weight, g.weight_planes[w], first_digit, g.activation_planes[a], passes);
      const uint32_t odd_sum = g.weight_planes[w] == 0 ? 1u : (1u << g.weight_planes[w]) - 1u;
      *products++ = {passes, count, a, odd_sum};
      passes += count;
      first_digit += g.activation_planes[a];
    }
    first_weight += g.weight_planes[w];
  }
}

// How evenly `items` go over `parts` threads, in percent.
inline int64_t balance(int64_t items, int64_t parts) { return 100 * items / (parts * ceil_div(items, parts)); }

inline void share_out(Plan& plan, double words_per_microsecond) {
  const Conv2d& call = *plan.call;
  const Geometry& g = *call.geometry;
  constexpr double kFewestMicroseconds = 10;  // a fork and join costs some two
  const int64_t all_rows = plan.images * plan.rows;
  const double words = static_cast<double>(all_rows) * plan.columns * plan.units * plan.used_words * g.weight_strips *
                       g.activation_strips;
  const double worth = words / (words_per_microsecond * kFewestMicroseconds);
  const int64_t parts = worth < call.threads ? static_cast<int64_t>(worth) : call.threads;
  // Blocks of channels that do not start at a word of the digits would have two threads write one word.
  const bool whole_words = call.digits == nullptr || g.groups == 1 || g.out_channels % kLanes == 0;
  plan.parts = parts < 1 ? 1 : static_cast<int>(parts);
  plan.by_units = whole_words && balance(plan.units, plan.parts) > balance(all_rows, plan.parts);
  plan.chunk_rows = plan.by_units ? plan.rows : smaller(plan.rows, ceil_div(all_rows, plan.parts));
}

// A thread's scratch: the bordered copy, a block of weights, popcounts of its pixels, sums of them over windows,
// offsets, bias rows.
struct Workspace {
  uint32_t* copy;
  uint32_t* weight;    // (weight terms, words of a block as it is multiplied), of narrow weights
  int32_t* popcounts;  // (activation terms, groups, view rows, view_w)
  int32_t* row_sums;   // (view rows, columns), of one map at a time
  int32_t* windows;    // (activation terms, groups, pixels)
  int32_t* offsets;    // (pixels,) words from the view's start to a pixel's first tap
  int32_t* classes;    // (pixels,) rows of bias or thresholds
  size_t bytes;
};

inline Workspace lay_out(const Plan& plan, char* start) {
  const Geometry& g = *plan.call->geometry;
  const int64_t rows = view_rows(g, plan.chunk_rows), pixels = plan.chunk_rows * plan.columns;
  const int64_t maps = static_cast<int64_t>(g.activation_terms) * g.groups;
  char* at = start;
  const auto take = [&at](int64_t words) {
    char* taken = at;
    at += aligned(static_cast<size_t>(words) * 4);
    return taken;
  };
  Workspace space;
  space.copy = reinterpret_cast<uint32_t*>(take(plan.copies ? rows * plan.row : 0));
  space.weight = reinterpret_cast<uint32_t*>(take(plan.widens ? g.weight_terms * plan.used_words : 0));
  space.popcounts = reinterpret_cast<int32_t*>(take(maps * rows * plan.view_w));
  space.row_sums = reinterpret_cast<int32_t*>(take(rows * plan.columns));
  space.windows = reinterpret_cast<int32_t*>(take(maps * pixels));
  space.offsets = reinterpret_cast<int32_t*>(take(pixels));
  space.classes = reinterpret_cast<int32_t*>(take(pixels));
  space.bytes = static_cast<size_t>(at - start);
  return space;
}

}  // namespace
}  // namespace binarize
