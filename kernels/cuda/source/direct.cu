// A packed convolution of any geometry on plain cores: a warp takes `kWarpPixels` pixels and 32 output channels, lane
// by lane. No shared memory, no alignment, no least size: what runs where the tensor cores do not fit.
#include "epilogue.cuh"
#include "window.cuh"

constexpr int kWarpPixels = 4, kThreads = 128;

struct Counts {
  u32 counts[kWarpPixels], windows[kWarpPixels];
};

DEVICE u32 multiply_word(u32 x, u32 weight, u32 sum) {
  return kCodes ? dot_codes(x, weight, sum) : sum + popcount(x & weight);
}

DEVICE void count_tap(const u32* const (&x)[kWarpPixels], const u32* weight, int tap, int lane, const Product& product,
                      const Pass& pass, Counts& to) {
  for (int word = 0; word < kWords; ++word) {
    const u32 w = product.multiplies ? weight[weight_place(tap * kWords + word, lane)] : 0u;
    UNROLL for (int i = 0; i < kWarpPixels; ++i) {
      const u32 digits = x[i] == nullptr ? 0u : x[i][word];
      to.counts[i] = multiply_word(digits, w, to.counts[i]);
      if (pass.window_shift >= 0) to.windows[i] += count_word(digits) << pass.window_shift;
    }
  }
}

DEVICE Counts count(const Call& call, const Origin (&origins)[kWarpPixels], int group, int block, int lane,
                    const Product& product) {
  Counts made = {};
  for (int p = product.first; p < product.first + product.count; ++p) {
    const Pass pass = passes(p);
    if (pass.doubles) UNROLL for (int i = 0; i < kWarpPixels; ++i) made.counts[i] *= 2u;
    const u32* weight = block_of(call, group, pass.weight_strip, block);
    for (int tap = 0; tap < kTaps; ++tap) {
      const u32* x[kWarpPixels];
      UNROLL for (int i = 0; i < kWarpPixels; ++i) x[i] = words_of(call, origins[i], tap, group, pass.strip);
      count_tap(x, weight, tap, lane, product, pass, made);
    }
  }
  return made;
}

KERNEL BOUNDS(kThreads) direct(const Call call) {
  const int lane = thread_index() % 32;
  const i64 warp = static_cast<i64>(block_index()) * (kThreads / 32) + thread_index() / 32;
  const int units = kGroups * kBlocks, unit = static_cast<int>(warp % units);
  const int group = unit / kBlocks, block = unit % kBlocks;
  const i64 first = warp / units * kWarpPixels;
  if (first >= call.pixels) return;
  Origin origins[kWarpPixels];
  UNROLL for (int i = 0; i < kWarpPixels; ++i) origins[i] = origin_of(call, static_cast<u32>(first) + i);
  float y[kWarpPixels] = {};
  for (int index = 0; index < kProducts; ++index) {
    const Product product = products(index);
    const Counts made = count(call, origins, group, block, lane, product);
    UNROLL for (int i = 0; i < kWarpPixels; ++i) {
      if (origins[i].image < 0) continue;
      const int dot = dot_of_and(product, made.counts[i], made.windows[i]);
      emit(call, index, place_of(call, static_cast<u32>(first) + i, group, block, lane), dot, lane, y[i]);
    }
  }
}
