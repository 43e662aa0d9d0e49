// The float problems of a schedule: what of a packed network stays in full precision. Maps are NHWC throughout.
// Torch-free and Python-free, like problem.h. Every level sums in the same order by fused multiply-add, so that all of
// them agree bit for bit.
#pragma once

#include "problem.h"

namespace binarize {

// Channels are per group. Of one channel per group on both sides (depthwise), `groups` is the number of channels and
// the weight is (taps, groups).
struct DenseConv2d {
  int64_t n, h, w, out_h, out_w;
  int groups, channels, out_channels;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  bool channels_last;   // of x; else (n, channels, h, w), and then of one group
  const float* x;       // (n, h, w, all channels)
  const float* weight;  // (groups, blocks of 32 outputs, taps, channels, 32); filled up with zeros
  const float* bias;    // (all output channels)
  float* out;           // (n, out_h, out_w, all output channels)
  float minimum, maximum;
  int threads;
};

// The largest value of each window, or its mean. A mean divides by the taps inside the image, or by `divisor` where it
// is not 0.
struct Pool {
  int64_t n, h, w, out_h, out_w, channels;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  bool largest;
  int64_t divisor;
  const float* x;
  float* out;
  int threads;
};

// out = clamp(b_share * b + a_share * a), the second product rounded first, or without b where it is null.
struct Sum {
  int64_t count;
  const float *a, *b;
  float* out;
  float minimum, maximum;
  float a_share, b_share;
};

// (n, rows, columns) to (n, columns, rows): from NCHW to NHWC and back.
struct Transpose {
  int64_t n, rows, columns;
  const float* x;
  float* out;
};

// y = scale[c] x + shift[c] in one rounding, times slope[c] below 0; out = clamp(y). The slope may be null.
struct Channelwise {
  int64_t pixels, channels;
  const float *x, *scale, *shift, *slope;
  float* out;
  float minimum, maximum;
};

// Rows of `width` numbers to places `stride` apart: one part of what is put side by side.
struct Placing {
  int64_t rows, width, stride;
  const float* x;
  float* out;
};

struct DenseLevel {
  const char* name;
  bool (*runs_here)();
  Status (*conv2d)(const DenseConv2d&);
  Status (*pool)(const Pool&);
  void (*sum)(const Sum&);
  void (*transpose)(const Transpose&);
  void (*channelwise)(const Channelwise&);
};

extern const DenseLevel kDenseLevels[];  // best first
extern const int kDenseLevelCount;

#define DENSE_LEVEL(name, condition)                   \
  Status dense_conv2d_##name(const DenseConv2d& call); \
  Status dense_pool_##name(const Pool& call);          \
  void dense_sum_##name(const Sum& call);              \
  void dense_transpose_##name(const Transpose& call);  \
  void dense_channelwise_##name(const Channelwise& call);
#include "dense_levels.inc"
#undef DENSE_LEVEL

}  // namespace binarize
