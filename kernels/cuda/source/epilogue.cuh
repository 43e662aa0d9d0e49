// From counts to outputs: 32 lanes hold 32 output channels of one pixel. docs/packed_format.md, "Epilogues".
#pragma once
#include "call.cuh"
#include "code.cuh"
#include "narrow.cuh"

#define kChannels (kGroups * kOut)

// One lane's output. `channel` is over all groups, `first` that of lane 0; `row` the border class.
struct Place {
  u32 pixel;
  int first, channel, row;
  bool exists;
};

// The row of the tables that a pixel uses. A class past the last is an error that is told elsewhere; here no read may
// leave the table.
DEVICE int class_of(const Call& call, u32 pixel) {
  if (call.row_class == nullptr) return 0;
  const u32 row = pixel / call.out_w;
  const int found = call.row_class[row % call.out_h] + call.column_class[pixel - row * call.out_w];
  return static_cast<u32>(found) < call.classes ? found : 0;
}

DEVICE Place place_of(const Call& call, u32 pixel, int group, int block, int lane) {
  const int inside = block * 32 + lane;
  return {pixel, group * kOut + block * 32, group * kOut + inside, class_of(call, pixel), inside < kOut};
}

// The dot product of codes with odd weights, modulo 2^32: exact, since its true value stays below 2^31. From counts of
// `and`s and the window's sum, or from counts of `xor`s and the weights' sum.
DEVICE int dot_of_and(const Product& product, u32 counts, u32 window) {
  return static_cast<int>(product.multiplies ? static_cast<u32>(product.odd) * window - 2u * counts : window);
}

DEVICE int dot_of_xor(const Product& product, u32 counts, u32 weights) {
  return static_cast<int>(counts - static_cast<u32>(product.code) * weights);
}

DEVICE float clamped(const Call& call, float y) {
  y = call.minimum > y ? call.minimum : y;
  return call.maximum < y ? call.maximum : y;
}

// Bits of a block that starts inside a word go over two words, which other warps write too.
DEVICE void store_digits(const Call& call, const Place& at, u32 bits, int lane) {
  if (lane != 0) return;
  const i64 words = (kChannels + 63) / 64 * 2;
  u32* to = static_cast<u32*>(call.out) + at.pixel * words + at.first / 32;
  if (kGroups == 1 || kOut % 32 == 0) {
    *to = bits;
    return;
  }
  const int shift = at.first % 32;
  or_global(to, bits << shift);
  if (shift != 0 && bits >> (32 - shift) != 0) or_global(to + 1, bits >> (32 - shift));
}

DEVICE void store_code(const Call& call, void* to, const Place& at, float y) {
  const u32 channel = static_cast<u32>(at.channel), group = channel / call.code_channels;
  const u32 groups = kChannels / call.code_channels;
  const i64 byte = (static_cast<i64>(at.pixel) * groups + group) * call.code_depth + channel % call.code_channels;
  static_cast<u8*>(to)[byte] = static_cast<u8>(code_of(y, call.low, call.inverse_step, call.top));
}

// Digit planes of a reader beside the floats: all lanes of a warp, each block of channels in a word of its own.
DEVICE void store_planes(const Call& call, const Place& at, float y, int lane) {
  const i64 words = (kChannels + 63) / 64 * 2;
  u32* to = static_cast<u32*>(call.also) + at.pixel * words * kAlsoBits + at.first / 32;
  const u32 code = kAlsoThresholds ? 0u : code_of(y, call.low, call.inverse_step, call.top);
  for (int plane = 0; plane < kAlsoBits; ++plane) {
    bool digit = (code >> plane & 1u) != 0;
    if (kAlsoThresholds && at.exists)
      digit = !(y < call.also_thresholds[call.shared_thresholds ? plane : plane * kChannels + at.channel]);
    const u32 bits = ballot(at.exists && digit);
    if (lane == 0) to[plane * words] = bits;
  }
}

DEVICE float finished(const Call& call, const Place& at, float y) {
  const i64 place = static_cast<i64>(at.pixel) * kChannels + at.channel;
  if (call.residual != nullptr) y = plus(y, read_float(kAdded, call.residual, place));
  if (kSlopes) {
    y = rounded(kStored, y);  // as by a layer of its own
    if (!(y > 0.0f)) y = times(call.slope[at.channel], y);
  }
  y = clamped(call, y);
  return kEpilogue == kValues ? write_float(kStored, call.out, place, y) : y;
}

// Takes in one accumulator; `y` goes from the first to the last. All lanes of a warp come here together.
DEVICE void emit(const Call& call, int product, const Place& at, int dot, int lane, float& y) {
  if (kEpilogue == kDigits) {
    const bool met = at.exists && dot >= call.thresholds[static_cast<i64>(at.row) * kChannels + at.channel];
    const u32 bits = ballot(at.exists && met != (call.flip[at.channel] != 0));
    store_digits(call, at, bits, lane);
    return;
  }
  if (kEpilogue == kIntegers) {
    const i64 output = static_cast<i64>(at.pixel) * kProducts + product;
    if (at.exists) static_cast<int*>(call.out)[output * kChannels + at.channel] = dot;
    return;
  }
  if (at.exists) {
    if (product == 0) y = call.bias[static_cast<i64>(at.row) * kChannels + at.channel];
    y = plus(y, times(call.scale[product * kChannels + at.channel], float_of(dot)));
  }
  if (product + 1 < kProducts) return;
  if (at.exists) y = finished(call, at, y);
  if (kEpilogue == kReaderCodes && at.exists) store_code(call, call.out, at, y);
  if (kAlso == kCodesToo && at.exists) store_code(call, call.also, at, y);
  if (kAlso == kPlanesToo) store_planes(call, at, y, lane);
}
