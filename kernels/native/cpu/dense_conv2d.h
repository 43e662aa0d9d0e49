// Float convolutions around a level's vectors. A sum runs over kernel rows, kernel columns and channels in this order,
// starting from the bias.
#pragma once

#include <string.h>

#include "../dense.h"
#include "../threads.h"
#include "dense_base.h"

namespace binarize {
namespace {

constexpr int kBlock = 32;                        // output channels of a block of weights
constexpr int kMostTile = 12;                     // pixels of any level's tile
constexpr int kBasePixels = 3;                    // pixels that share one base address
constexpr int64_t kViewBytes = 96 * 1024;         // of the copied rows that a thread holds at a time
constexpr int64_t kFlatColumns = 16 * kMostTile;  // pixels that a flattened 1x1 convolution takes at a time

// Floats that are contiguous in the view and in the weight: one tap, or the taps of one kernel row.
struct Stretch {
  int64_t offset, length;
};

struct DensePlan {
  const DenseConv2d* call;
  bool copies;
  int64_t rows, columns, images;  // of the output, after 1x1 convolutions are flattened
  int64_t pixels;                 // of an image: the last row of a flattened one is shorter
  int64_t all_channels, all_outputs;
  int64_t view_w, pixel, row;  // width of the view in pixels, strides in floats
  int64_t blocks, block_floats;
  int64_t chunk_rows;
  const Stretch* stretches;
  int stretch_count;
  char* workspace;
  size_t part_bytes;
  int parts;
  bool by_blocks;
};

inline int64_t view_rows_of(const DenseConv2d& c, int64_t out_rows) {
  return (out_rows - 1) * c.stride_h + static_cast<int64_t>(c.kernel_h - 1) * c.dilation_h + 1;
}

inline void set_dense_extents(DensePlan& plan) {
  const DenseConv2d& c = *plan.call;
  plan.images = c.n;
  plan.rows = c.out_h;
  plan.columns = c.out_w;
  plan.all_channels = static_cast<int64_t>(c.groups) * c.channels;
  plan.all_outputs = static_cast<int64_t>(c.groups) * c.out_channels;
  plan.copies = c.padding_h > 0 || c.padding_w > 0 || !c.channels_last;
  plan.pixels = plan.rows * plan.columns;
  plan.view_w = c.w + 2 * static_cast<int64_t>(c.padding_w);
  const bool pointwise = c.kernel_h * c.kernel_w == 1 && c.stride_h * c.stride_w == 1 && !plan.copies;
  if (pointwise) {  // no neighbourhood, so where rows and images end does not matter
    plan.images = 1;
    plan.pixels = c.n * c.out_h * c.out_w;
    plan.columns = plan.view_w = kFlatColumns;
    plan.rows = rounded_up(plan.pixels, kFlatColumns);
  }
  plan.pixel = plan.all_channels;
  plan.row = plan.view_w * plan.pixel;
  plan.blocks = rounded_up(c.out_channels, kBlock);
  plan.block_floats = static_cast<int64_t>(c.kernel_h) * c.kernel_w * c.channels * kBlock;
}

inline int fill_stretches(const DensePlan& plan, Stretch* stretches) {
  const DenseConv2d& c = *plan.call;
  const bool merges = c.dilation_w == 1 && c.groups == 1;
  int count = 0;
  for (int y = 0; y < c.kernel_h; ++y) {
    const int64_t row = static_cast<int64_t>(y) * c.dilation_h * plan.row;
    if (merges) {
      stretches[count++] = {row, static_cast<int64_t>(c.kernel_w) * c.channels};
      continue;
    }
    for (int x = 0; x < c.kernel_w; ++x)
      stretches[count++] = {row + static_cast<int64_t>(x) * c.dilation_w * plan.pixel, c.channels};
  }
  return count;
}

inline void share_out_dense(DensePlan& plan) {
  const DenseConv2d& c = *plan.call;
  constexpr double kFewestProducts = 400e3;  // some ten microseconds; a fork and join costs some two
  const int64_t all_rows = plan.images * plan.rows, units = plan.blocks * c.groups;
  const double products = static_cast<double>(all_rows) * plan.columns * units * plan.block_floats;
  const double worth = products / kFewestProducts;
  const int64_t parts = worth < c.threads ? static_cast<int64_t>(worth) : c.threads;
  plan.parts = parts < 1 ? 1 : static_cast<int>(parts);
  const int64_t most_rows = least(plan.rows, kViewBytes / 4 / plan.row / (c.stride_h > 0 ? c.stride_h : 1));
  plan.by_blocks = all_rows < 4 * plan.parts && units >= plan.parts;
  plan.chunk_rows = !plan.copies ? plan.rows : most_rows < 1 ? 1 : most_rows;
}

// One row of the input with its borders, as NHWC.
inline void copy_dense_row(const DensePlan& plan, int64_t image, int64_t y, float* to) {
  const DenseConv2d& c = *plan.call;
  const int64_t border = c.padding_w * plan.pixel;
  memset(to, 0, static_cast<size_t>(border) * 4);
  to += border;
  if (c.channels_last) {
    memcpy(to, c.x + (image * c.h + y) * c.w * plan.pixel, static_cast<size_t>(c.w * plan.pixel) * 4);
  } else if (plan.pixel == 3) {
    const float* from = c.x + (image * 3 * c.h + y) * c.w;
    const int64_t plane = c.h * c.w;
    for (int64_t x = 0; x < c.w; ++x) {
      to[3 * x] = from[x];
      to[3 * x + 1] = from[plane + x];
      to[3 * x + 2] = from[2 * plane + x];
    }
  } else {
    for (int64_t channel = 0; channel < plan.pixel; ++channel) {
      const float* from = c.x + ((image * plan.pixel + channel) * c.h + y) * c.w;
      for (int64_t x = 0; x < c.w; ++x) to[x * plan.pixel + channel] = from[x];
    }
  }
  memset(to + c.w * plan.pixel, 0, static_cast<size_t>(border) * 4);
}

// The rows that output rows [first, first + taken) of an image read.
inline const float* dense_view(const DensePlan& plan, int64_t image, int64_t first, int64_t taken, float* space) {
  const DenseConv2d& c = *plan.call;
  const int64_t top = first * c.stride_h - c.padding_h;
  if (!plan.copies) return c.x + (image * c.h + top) * plan.row;
  for (int64_t row = 0; row < view_rows_of(c, taken); ++row) {
    const int64_t y = top + row;
    if (y < 0 || y >= c.h)
      memset(space + row * plan.row, 0, static_cast<size_t>(plan.row) * 4);
    else
      copy_dense_row(plan, image, y, space + row * plan.row);
  }
  return space;
}

struct DenseTile {
  const float* x;       // first tap of the first pixel
  int64_t step;         // floats between pixels
  const float* weight;  // of the block
  const float* bias;    // of the block, filled up
  const Stretch* stretches;
  int stretch_count;
};

// P pixels times two registers of channels.
template <class L, int P>
__attribute__((always_inline)) inline void multiply_tile(const DenseTile& tile, int lane, float (*sums)[kBlock]) {
  using V = typename L::Vector;
  V first[P], second[P];
#pragma GCC unroll 16
  for (int pixel = 0; pixel < P; ++pixel) {
    first[pixel] = L::load(tile.bias + lane);
    second[pixel] = L::load(tile.bias + lane + L::kWidth);
  }
  const float* weight = tile.weight + lane;
  constexpr int kBases = (P + kBasePixels - 1) / kBasePixels;
  for (int index = 0; index < tile.stretch_count; ++index) {
    const float* bases[kBases];
#pragma GCC unroll 4
    for (int base = 0; base < kBases; ++base)
      bases[base] = tile.x + tile.stretches[index].offset + base * kBasePixels * tile.step;
    const int64_t length = tile.stretches[index].length;
    for (int64_t k = 0; k < length; ++k, weight += kBlock) {
      const V low = L::load(weight), high = L::load(weight + L::kWidth);
#pragma GCC unroll 16
      for (int pixel = 0; pixel < P; ++pixel) {
        const V x = L::broadcast(bases[pixel / kBasePixels] + (pixel % kBasePixels) * tile.step + k);
        first[pixel] = L::multiply_add(x, low, first[pixel]);
        second[pixel] = L::multiply_add(x, high, second[pixel]);
      }
    }
  }
#pragma GCC unroll 16
  for (int pixel = 0; pixel < P; ++pixel) {
    L::store(sums[pixel] + lane, first[pixel]);
    L::store(sums[pixel] + lane + L::kWidth, second[pixel]);
  }
}

template <class L, int P>
__attribute__((noinline)) void multiply(const DenseTile& tile, float (*sums)[kBlock]) {
  for (int lane = 0; lane < kBlock; lane += 2 * L::kWidth) multiply_tile<L, P>(tile, lane, sums);
}

using MultiplyTile = void (*)(const DenseTile&, float (*)[kBlock]);

template <class L, int P = L::kTile>
MultiplyTile multiplier_of(int64_t pixels) {
  if constexpr (P == 1)
    return multiply<L, 1>;
  else
    return pixels >= P ? multiply<L, P> : multiplier_of<L, P - 1>(pixels);
}

// Clamp and store of whole registers; what is left over goes through memory of its own.
template <class L>
inline void finish(const float* sums, float minimum, float maximum, int64_t lanes, float* to) {
  int64_t lane = 0;
  for (; lane + L::kWidth <= lanes; lane += L::kWidth) {
    L::store(to + lane, L::clamp(L::load(sums + lane), minimum, maximum));
  }
  for (; lane < lanes; ++lane) {
    const float y = minimum > sums[lane] ? minimum : sums[lane];
    to[lane] = maximum < y ? maximum : y;
  }
}

template <class L>
void run_dense_rows(const DensePlan& plan, int64_t image, int64_t first, int64_t taken, int64_t first_unit,
                    int64_t last_unit, float* space) {
  const DenseConv2d& c = *plan.call;
  const float* view = dense_view(plan, image, first, taken, space);
  alignas(64) float sums[kMostTile][kBlock];
  alignas(64) float bias[kBlock];
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const int64_t group = unit / plan.blocks, channel = group * c.out_channels + unit % plan.blocks * kBlock;
    const int64_t lanes = least(kBlock, c.out_channels - unit % plan.blocks * kBlock);
    memset(bias, 0, sizeof(bias));
    memcpy(bias, c.bias + channel, static_cast<size_t>(lanes) * 4);
    DenseTile tile{nullptr, c.stride_w * plan.pixel, c.weight + unit * plan.block_floats,
                   bias,    plan.stretches,          plan.stretch_count};
    for (int64_t y = 0; y < taken; ++y) {
      const int64_t columns = least(plan.columns, plan.pixels - (first + y) * plan.columns);
      const int64_t tiles = rounded_up(columns, L::kTile);
      for (int64_t index = 0; index < tiles; ++index) {
        const int64_t start = index * columns / tiles, pixels = (index + 1) * columns / tiles - start;
        tile.x = view + y * c.stride_h * plan.row + start * tile.step + group * c.channels;
        multiplier_of<L>(pixels)(tile, sums);
        const int64_t place = ((image * plan.rows + first + y) * plan.columns + start) * plan.all_outputs + channel;
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
          const int64_t at = place + pixel * plan.all_outputs;
          finish<L>(sums[pixel], c.minimum, c.maximum, lanes, c.out + at);
        }
      }
    }
  }
}

template <class L>
void run_dense_part(const void* context, int part, int parts) {
  const DensePlan& plan = *static_cast<const DensePlan*>(context);
  float* space = reinterpret_cast<float*>(plan.workspace + plan.part_bytes * static_cast<size_t>(part));
  const int64_t units = plan.blocks * plan.call->groups, all_rows = plan.images * plan.rows;
  const int64_t first_unit = plan.by_blocks ? units * part / parts : 0;
  const int64_t last_unit = plan.by_blocks ? units * (part + 1) / parts : units;
  const int64_t last_row = plan.by_blocks ? all_rows : all_rows * (part + 1) / parts;
  for (int64_t row = plan.by_blocks ? 0 : all_rows * part / parts; row < last_row;) {
    const int64_t image = row / plan.rows, first = row % plan.rows;
    const int64_t taken = least(least(plan.rows - first, last_row - row), plan.chunk_rows);
    run_dense_rows<L>(plan, image, first, taken, first_unit, last_unit, space);
    row += taken;
  }
}

// Depthwise: one input channel for each output channel, vectors run along the channels. N registers of one pixel.
template <class L, int N>
__attribute__((always_inline)) inline void depthwise_registers(const DenseConv2d& c, const Window& window,
                                                               const float* corner, int64_t channel, int64_t place) {
  const int64_t channels = c.groups, across = c.dilation_w * channels, down = c.dilation_h * c.w * channels;
  typename L::Vector sums[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) sums[i] = L::load(c.bias + channel + i * L::kWidth);
  for (int64_t ky = window.first_row; ky < window.last_row; ++ky) {
    const float* from = corner + ky * down + window.first_column * across + channel;
    const float* weight = c.weight + (ky * c.kernel_w + window.first_column) * channels + channel;
    for (int64_t kx = window.first_column; kx < window.last_column; ++kx, from += across, weight += channels)
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i)
        sums[i] = L::multiply_add(L::load(from + i * L::kWidth), L::load(weight + i * L::kWidth), sums[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const int64_t at = place + channel + i * L::kWidth;
    L::store(c.out + at, L::clamp(sums[i], c.minimum, c.maximum));
  }
}

inline void depthwise_one(const DenseConv2d& c, const Window& window, const float* corner, int64_t channel,
                          int64_t place) {
  const int64_t channels = c.groups;
  float sum = c.bias[channel];
  for (int64_t ky = window.first_row; ky < window.last_row; ++ky)
    for (int64_t kx = window.first_column; kx < window.last_column; ++kx)
      sum = __builtin_fmaf(corner[(ky * c.dilation_h * c.w + kx * c.dilation_w) * channels + channel],
                           c.weight[(ky * c.kernel_w + kx) * channels + channel], sum);
  sum = c.minimum > sum ? c.minimum : sum;
  c.out[place + channel] = c.maximum < sum ? c.maximum : sum;
}

template <class L>
void run_depthwise_part(const void* context, int part, int parts) {
  const DenseConv2d& c = *static_cast<const DenseConv2d*>(context);
  const int64_t channels = c.groups, rows = c.n * c.out_h;
  for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
    const float* image = c.x + row / c.out_h * c.h * c.w * channels;
    const int64_t top = row % c.out_h * c.stride_h - c.padding_h;
    Window window;
    inside(top, c.kernel_h, c.dilation_h, c.h, window.first_row, window.last_row);
    for (int64_t column = 0; column < c.out_w; ++column) {
      const int64_t left = column * c.stride_w - c.padding_w, place = (row * c.out_w + column) * channels;
      inside(left, c.kernel_w, c.dilation_w, c.w, window.first_column, window.last_column);
      const float* corner = image + (top * c.w + left) * channels;
      int64_t i = 0;
      for (; i + 4 * L::kWidth <= channels; i += 4 * L::kWidth) depthwise_registers<L, 4>(c, window, corner, i, place);
      for (; i + L::kWidth <= channels; i += L::kWidth) depthwise_registers<L, 1>(c, window, corner, i, place);
      for (; i < channels; ++i) depthwise_one(c, window, corner, i, place);
    }
  }
}

template <class L>
Status dense_conv2d(const DenseConv2d& call) {
  if (call.n * call.out_h * call.out_w == 0) return Status::ok;
  if (call.channels == 1 && call.out_channels == 1 && call.groups > 1) {
    const double work = static_cast<double>(call.n) * call.out_h * call.out_w * call.groups * call.kernel_h;
    run_parts(parts_of(work * call.kernel_w, 100e3, call.threads), run_depthwise_part<L>, &call);
    return Status::ok;
  }
  DensePlan plan{};
  plan.call = &call;
  set_dense_extents(plan);
  share_out_dense(plan);
  const size_t taps = static_cast<size_t>(call.kernel_h) * static_cast<size_t>(call.kernel_w);
  const size_t shared = (taps * sizeof(Stretch) + 63) / 64 * 64;
  if (plan.copies)
    plan.part_bytes = (static_cast<size_t>(view_rows_of(call, plan.chunk_rows) * plan.row) * 4 + 63) / 64 * 64;
  char* memory = static_cast<char*>(scratch(shared + plan.part_bytes * static_cast<size_t>(plan.parts)));
  if (memory == nullptr) return Status::no_memory;
  plan.stretch_count = fill_stretches(plan, reinterpret_cast<Stretch*>(memory));
  plan.stretches = reinterpret_cast<Stretch*>(memory);
  plan.workspace = memory + shared;
  run_parts(plan.parts, run_dense_part<L>, &plan);
  return Status::ok;
}

}  // namespace
}  // namespace binarize
