// Floats to digit planes, or to codes. In front of this text: kThresholds, kPackCodes, kChannelsLast and
// kRead, the type of the floats.
#include "code.cuh"
#include "narrow.cuh"

struct PackCall {
  const void* x;                                // (n, pixels, channels) if kChannelsLast, else (n, channels, pixels)
  u32* out;                                     // (n, pixels, groups, strips, words)
  const float* thresholds;                      // (planes, channels) or (planes, 1)
  u32 items, image_blocks;                      // words and thread blocks of an image
  u32 pixels, channels, groups, planes, words;  // planes: at most 8; words: of a strip
  u32 shared_thresholds;
  float low, inverse_step, top;
};

constexpr int kThreads = 256;

DEVICE float read(const PackCall& call, i64 image, u32 pixel, u32 channel) {
  return read_float(kRead, call.x,
                    kChannelsLast ? (image * call.pixels + pixel) * call.channels + channel
                                  : (image * call.channels + channel) * call.pixels + pixel);
}

DEVICE u32 uniform_code(const PackCall& call, float x) { return code_of(x, call.low, call.inverse_step, call.top); }

DEVICE u32 digit_of(const PackCall& call, float x, u32 plane, u32 channel) {
  const u32 place = call.shared_thresholds ? plane : plane * call.channels + channel;
  return x < call.thresholds[place] ? 0u : 1u;  // of NaN 1
}

// Bit j is digit j of a value.
DEVICE u32 digits_of(const PackCall& call, float x, u32 channel) {
  if (!kThresholds) return uniform_code(call, x);
  u32 digits = 0;
  for (u32 plane = 0; plane < call.planes; ++plane) digits |= digit_of(call, x, plane, channel) << plane;
  return digits;
}

// A word to make. Neighbouring items make those of neighbouring channels where these are neighbours in memory, else of
// neighbouring pixels.
struct Item {
  i64 image;
  u32 pixel, group, word;
};

DEVICE Item item_of(const PackCall& call, u32 image, u32 index) {
  const u32 words = call.groups * call.words;
  const u32 pixel = kChannelsLast ? index / words : index % call.pixels;
  const u32 word = kChannelsLast ? index % words : index / call.pixels;
  return {image, pixel, word / call.words, word % call.words};
}

DEVICE u32* strips_of(const PackCall& call, const Item& item, u32 strips) {
  const i64 pixel = item.image * call.pixels + item.pixel;
  return call.out + ((pixel * call.groups + item.group) * strips * call.words + item.word);
}

// A warp makes the words of 32 channels, one lane for each.
DEVICE void pack_by_warp(const PackCall& call, const Item& item, int lane) {
  const u32 per_group = call.channels / call.groups, inside = item.word * 32 + static_cast<u32>(lane);
  const u32 channel = item.group * per_group + inside;
  const bool exists = inside < per_group;
  const u32 digits = exists ? digits_of(call, read(call, item.image, item.pixel, channel), channel) : 0u;
  u32* to = strips_of(call, item, call.planes);
  for (u32 plane = 0; plane < call.planes; ++plane) {
    const u32 bits = ballot((digits >> plane & 1u) != 0);
    if (lane == 0) to[plane * call.words] = bits;
  }
}

// A thread makes the words of 32 channels; its neighbours those of the next pixels.
DEVICE void pack_by_thread(const PackCall& call, const Item& item) {
  const u32 per_group = call.channels / call.groups;
  u32 bits[8] = {};
  for (u32 i = 0; i < 32 && item.word * 32 + i < per_group; ++i) {
    const u32 channel = item.group * per_group + item.word * 32 + i;
    const u32 digits = digits_of(call, read(call, item.image, item.pixel, channel), channel);
    UNROLL for (u32 plane = 0; plane < 8; ++plane) bits[plane] |= (digits >> plane & 1u) << i;
  }
  u32* to = strips_of(call, item, call.planes);
  UNROLL for (u32 plane = 0; plane < 8; ++plane) if (plane < call.planes) to[plane * call.words] = bits[plane];
}

// A thread makes the codes of four channels, of each threshold a code of its own.
DEVICE void encode(const PackCall& call, const Item& item) {
  const u32 per_group = call.channels / call.groups, strips = kThresholds ? call.planes : 1u;
  u32* to = strips_of(call, item, strips);
  for (u32 strip = 0; strip < strips; ++strip) {
    u32 word = 0;
    UNROLL for (u32 i = 0; i < 4; ++i) {
      if (item.word * 4 + i >= per_group) continue;
      const u32 channel = item.group * per_group + item.word * 4 + i;
      const float x = read(call, item.image, item.pixel, channel);
      word |= (kThresholds ? digit_of(call, x, strip, channel) : uniform_code(call, x)) << (8 * i);
    }
    to[strip * call.words] = word;
  }
}

KERNEL BOUNDS(kThreads) pack(const PackCall call) {
  const bool by_warp = kChannelsLast && !kPackCodes;
  const u32 lanes = by_warp ? 32 : 1;
  const u32 block = static_cast<u32>(block_index()), image = block / call.image_blocks;
  const u32 thread = static_cast<u32>(thread_index());
  const u32 index = (block - image * call.image_blocks) * (kThreads / lanes) + thread / lanes;
  if (index >= call.items) return;
  const Item item = item_of(call, image, index);
  if (kPackCodes)
    encode(call, item);
  else if (by_warp)
    pack_by_warp(call, item, thread_index() % 32);
  else
    pack_by_thread(call, item);
}
