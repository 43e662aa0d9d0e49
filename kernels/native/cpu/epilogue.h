// From counts to outputs. The dot product of a window with odd weights is
//   odd_sum * window - 2 * counts
// with the sum of the window's codes (the popcounts of its planes, weighted), taken modulo 2^32, which is exact because
// the caller keeps the true value below 2^31.
#pragma once

#include <string.h>

#include "code.h"
#include "window.h"

namespace binarize {
namespace {

constexpr int kTogether = 4;  // products that an epilogue takes at a time, at most

// One tile after it was counted for some products that follow each other.
struct Counted {
  const uint32_t (*counts)[kLanes];  // of each product Level::kTile rows
  int pixels;
  int64_t first_pixel;                // in the chunk
  int64_t first_output;               // in the whole output
  const int32_t* windows[kTogether];  // of the chunk
  const int32_t* classes;             // of the chunk
  int product, products;              // the first, and how many
  uint32_t odd_sums[kTogether];
  int64_t channel;  // first of the block, over all groups
  int lanes;        // channels of the block that exist
  uint32_t flip;    // of digits: the lanes whose comparison is turned round
};

inline uint32_t base_of(const Counted& tile, int pixel, int product = 0) {
  return tile.odd_sums[product] * static_cast<uint32_t>(tile.windows[product][tile.first_pixel + pixel]);
}

inline int64_t all_channels(const Conv2d& call) {
  return static_cast<int64_t>(call.geometry->groups) * call.geometry->out_channels;
}

inline uint32_t flips_of(const Conv2d& call, int64_t channel, int lanes) {
  uint32_t bits = 0;
  for (int lane = 0; call.digits != nullptr && lane < lanes; ++lane)
    bits |= static_cast<uint32_t>(call.flip[channel + lane] != 0) << lane;
  return bits;
}

template <class Level>
struct StoreIntegers {
  static constexpr int kProducts = 1;
  const Conv2d& call;
  int products;

  void operator()(const Counted& tile, float (*)[kLanes]) const {
    const int64_t channels = all_channels(call);
    for (int pixel = 0; pixel < tile.pixels; ++pixel) {
      int32_t* to = call.integers + ((tile.first_output + pixel) * products + tile.product) * channels + tile.channel;
      const uint32_t base = base_of(tile, pixel);
      for (int lane = 0; lane < tile.lanes; ++lane)
        to[lane] = static_cast<int32_t>(base - 2u * tile.counts[pixel][lane]);
    }
  }
};

// What one pixel's sums are made of: N products, the sum so far, and what is added to the last sum.
template <int N>
struct Terms {
  const uint32_t* counts[N];
  uint32_t bases[N];
  const float* scales[N];
  const float* from;
  const float* residual;
};

// Every multiplication and addition is rounded by itself (the build forbids contraction), so that all levels agree
// bit for bit with the plain-torch definition.
template <int N, bool kLast, bool kResidual>
__attribute__((always_inline)) inline void affine(const Terms<N>& terms, float minimum, float maximum, int lanes,
                                                  float* to) {
#pragma GCC ivdep
  for (int lane = 0; lane < lanes; ++lane) {
    float y = terms.from[lane];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const float dot = static_cast<float>(static_cast<int32_t>(terms.bases[i] - 2u * terms.counts[i][lane]));
      y = y + terms.scales[i][lane] * dot;
    }
    if (kLast && kResidual) y = y + terms.residual[lane];
    if (kLast) y = minimum > y ? minimum : y;
    if (kLast) y = maximum < y ? maximum : y;
    to[lane] = y;
  }
}

// Float outputs, or the codes of them.
template <class Level, bool kCodes>
struct StoreValues {
  static constexpr int kProducts = kTogether;
  const Conv2d& call;
  int products;

  void encode(const float* values, int64_t pixel, const Counted& tile) const {
    uint8_t* to = call.codes + pixel * call.code_depth + tile.channel;
    if (tile.lanes == kLanes)
      Level::encode_bytes(values, call.low, call.inverse_step, call.top, to);
    else
      encode_uniform(values, tile.lanes, call.low, call.inverse_step, call.top, to);
  }

  template <int N, bool kLast, bool kResidual>
  void rows(const Counted& tile, float (*partial)[kLanes]) const {
    const int64_t channels = all_channels(call);
    const float minimum = call.minimum, maximum = call.maximum;
    Terms<N> terms;
    for (int i = 0; i < N; ++i) terms.scales[i] = call.scale + (tile.product + i) * channels + tile.channel;
    for (int pixel = 0; pixel < tile.pixels; ++pixel) {
      const int64_t place = (tile.first_output + pixel) * channels + tile.channel;
      const float* bias = call.bias + tile.classes[tile.first_pixel + pixel] * channels + tile.channel;
      terms.from = tile.product == 0 ? bias : partial[pixel];
      terms.residual = kResidual ? call.residual + place : nullptr;
      for (int i = 0; i < N; ++i) {
        terms.counts[i] = tile.counts[i * Level::kTile + pixel];
        terms.bases[i] = base_of(tile, pixel, i);
      }
      float* to = kLast && !kCodes ? call.values + place : partial[pixel];
      if (tile.lanes == kLanes)
        affine<N, kLast, kResidual>(terms, minimum, maximum, kLanes, to);
      else
        affine<N, kLast, kResidual>(terms, minimum, maximum, tile.lanes, to);
      if (kLast && kCodes) encode(to, tile.first_output + pixel, tile);
    }
  }

  template <int N>
  void some_rows(const Counted& tile, float (*partial)[kLanes]) const {
    if (tile.product + N < products)
      rows<N, false, false>(tile, partial);
    else if (call.residual != nullptr)
      rows<N, true, true>(tile, partial);
    else
      rows<N, true, false>(tile, partial);
  }

  void operator()(const Counted& tile, float (*partial)[kLanes]) const {
    if (tile.products == 4)
      some_rows<4>(tile, partial);
    else if (tile.products == 2)
      some_rows<2>(tile, partial);
    else
      some_rows<1>(tile, partial);
  }
};

template <class Level>
struct StoreDigits {
  static constexpr int kProducts = 1;
  const Conv2d& call;
  int products;

  // A group's block may start inside a word; its bits then go over two, which the caller has zeroed.
  void put(uint32_t bits, int64_t pixel, int64_t channel, int64_t words) const {
    uint32_t* to = call.digits + pixel * words + channel / 32;
    const int shift = static_cast<int>(channel % 32);
    to[0] |= bits << shift;
    if (shift != 0 && (bits >> (32 - shift)) != 0) to[1] |= bits >> (32 - shift);
  }

  void operator()(const Counted& tile, float (*)[kLanes]) const {
    const int64_t channels = all_channels(call), words = ceil_div(channels, 64) * 2;
    const uint32_t exist = tile.lanes == kLanes ? ~0u : (1u << tile.lanes) - 1u;
    int32_t dots[kLanes], thresholds[kLanes] = {};
    for (int pixel = 0; pixel < tile.pixels; ++pixel) {
      const int32_t* row = call.thresholds + tile.classes[tile.first_pixel + pixel] * channels + tile.channel;
      if (tile.lanes < kLanes)
        row = static_cast<int32_t*>(memcpy(thresholds, row, static_cast<size_t>(tile.lanes) * 4));
      const uint32_t base = base_of(tile, pixel);
      for (int lane = 0; lane < kLanes; ++lane) dots[lane] = static_cast<int32_t>(base - 2u * tile.counts[pixel][lane]);
      put((Level::at_least(dots, row) ^ tile.flip) & exist, tile.first_output + pixel, tile.channel, words);
    }
  }
};

}  // namespace
}  // namespace binarize
