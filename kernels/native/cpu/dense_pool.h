// Pooling around a level's vectors, and what the compiler vectorises by itself: sums and transpositions.
#pragma once

#include "../dense.h"
#include "../threads.h"
#include "dense_base.h"

namespace binarize {
namespace {

constexpr float kLowest = -__builtin_inff(), kZero = 0.0f;

// N registers of channels of one window.
template <class L, bool kLargest, int N>
__attribute__((always_inline)) inline void pool_registers(const Pool& p, const Window& window, const float* corner,
                                                          float divisor, float* to) {
  const int64_t across = p.dilation_w * p.channels, down = p.dilation_h * p.w * p.channels;
  typename L::Vector found[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) found[i] = L::broadcast(kLargest ? &kLowest : &kZero);
  for (int64_t ky = window.first_row; ky < window.last_row; ++ky) {
    const float* from = corner + ky * down + window.first_column * across;
    for (int64_t kx = window.first_column; kx < window.last_column; ++kx, from += across)
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        const auto x = L::load(from + i * L::kWidth);
        found[i] = kLargest ? L::largest(found[i], x) : L::add(found[i], x);
      }
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) L::store(to + i * L::kWidth, kLargest ? found[i] : L::divide(found[i], divisor));
}

template <bool kLargest>
float pooled_one(const Pool& p, const Window& window, const float* from) {
  float found = kLargest ? kLowest : kZero;
  for (int64_t ky = window.first_row; ky < window.last_row; ++ky)
    for (int64_t kx = window.first_column; kx < window.last_column; ++kx) {
      const float x = from[(ky * p.dilation_h * p.w + kx * p.dilation_w) * p.channels];
      if (kLargest)
        found = x > found || x != x ? x : found;
      else
        found = found + x;
    }
  return found;
}

template <class L, bool kLargest>
void pool_pixel(const Pool& p, const Window& window, const float* corner, float* to) {
  const float divisor = static_cast<float>(p.divisor != 0 ? p.divisor : window.count());
  int64_t i = 0;
  for (; i + 4 * L::kWidth <= p.channels; i += 4 * L::kWidth)
    pool_registers<L, kLargest, 4>(p, window, corner + i, divisor, to + i);
  for (; i + L::kWidth <= p.channels; i += L::kWidth)
    pool_registers<L, kLargest, 1>(p, window, corner + i, divisor, to + i);
  for (; i < p.channels; ++i) {
    const float found = pooled_one<kLargest>(p, window, corner + i);
    to[i] = kLargest ? found : found / divisor;
  }
}

template <class L>
void pool_part(const void* context, int part, int parts) {
  const Pool& p = *static_cast<const Pool*>(context);
  const int64_t rows = p.n * p.out_h;
  for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row) {
    const float* image = p.x + row / p.out_h * p.h * p.w * p.channels;
    const int64_t top = row % p.out_h * p.stride_h - p.padding_h;
    Window window;
    inside(top, p.kernel_h, p.dilation_h, p.h, window.first_row, window.last_row);
    for (int64_t column = 0; column < p.out_w; ++column) {
      const int64_t left = column * p.stride_w - p.padding_w;
      inside(left, p.kernel_w, p.dilation_w, p.w, window.first_column, window.last_column);
      const float* corner = image + (top * p.w + left) * p.channels;
      float* to = p.out + (row * p.out_w + column) * p.channels;
      p.largest ? pool_pixel<L, true>(p, window, corner, to) : pool_pixel<L, false>(p, window, corner, to);
    }
  }
}

template <class L>
Status dense_pool(const Pool& call) {
  const double work = static_cast<double>(call.n) * call.out_h * call.out_w * call.channels * call.kernel_h;
  run_parts(parts_of(work * call.kernel_w, 200e3, call.threads), pool_part<L>, &call);
  return Status::ok;
}

inline void dense_sum(const Sum& s) {
  const float low = s.minimum, high = s.maximum, a_share = s.a_share, b_share = s.b_share;
  const float *a = s.a, *b = s.b;
  float* out = s.out;
#pragma GCC ivdep
  for (int64_t i = 0; i < s.count; ++i) {
    float y = b == nullptr ? a_share * a[i] : __builtin_fmaf(b_share, b[i], a_share * a[i]);
    y = low > y ? low : y;
    out[i] = high < y ? high : y;
  }
}

inline void dense_channelwise(const Channelwise& c) {
  const float low = c.minimum, high = c.maximum;
  const float *x = c.x, *scale = c.scale, *shift = c.shift, *slope = c.slope;
  float* out = c.out;
  for (int64_t pixel = 0; pixel < c.pixels; ++pixel, x += c.channels, out += c.channels)
#pragma GCC ivdep
    for (int64_t i = 0; i < c.channels; ++i) {
      float y = __builtin_fmaf(scale[i], x[i], shift[i]);
      if (slope != nullptr) y = y > 0.0f ? y : slope[i] * y;
      y = low > y ? low : y;
      out[i] = high < y ? high : y;
    }
}

inline void dense_transpose(const Transpose& t) {
  constexpr int64_t kSquare = 16;
  for (int64_t image = 0; image < t.n; ++image) {
    const float* from = t.x + image * t.rows * t.columns;
    float* to = t.out + image * t.rows * t.columns;
    for (int64_t row = 0; row < t.rows; row += kSquare)
      for (int64_t column = 0; column < t.columns; column += kSquare)
        for (int64_t r = row; r < least(row + kSquare, t.rows); ++r)
          for (int64_t k = column; k < least(column + kSquare, t.columns); ++k)
            to[k * t.rows + r] = from[r * t.columns + k];
  }
}

}  // namespace
}  // namespace binarize
