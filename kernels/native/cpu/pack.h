// Float activations to digit planes, around a level's comparisons of 32 values at a time; and to codes, a byte each.
#pragma once

#include <string.h>

#include "../problem.h"
#include "../threads.h"
#include "code.h"
#include "tile.h"

namespace binarize {
namespace {

constexpr int kColumn = 64;  // pixels taken together where channels lie apart

// The `count` values at `x` and zeros behind them, in `held`, which has room for `size`.
inline const float* filled_up(const float* x, int count, int size, float* held) {
  memcpy(held, x, static_cast<size_t>(count) * 4);
  for (int i = count; i < size; ++i) held[i] = 0.0f;
  return held;
}

template <class Level>
struct UniformDigits {
  const Pack& call;
  float top;

  explicit UniformDigits(const Pack& pack) : call(pack), top(static_cast<float>((1 << pack.planes) - 1)) {}

  void row(const float* x, int64_t, int, uint32_t* words) const {
    Level::encode(x, call.low, call.inverse_step, top, call.planes, words);
  }

  void column(const float* x, int64_t, int bit, uint32_t (*words)[kColumn]) const {
    const float low = call.low, inverse_step = call.inverse_step, most = top;
    const int planes = call.planes;
    int32_t codes[kColumn];
    for (int pixel = 0; pixel < kColumn; ++pixel)
      codes[pixel] = static_cast<int32_t>(clamped_code(x[pixel], low, inverse_step, most));
    for (int plane = 0; plane < planes; ++plane)
#pragma GCC ivdep
      for (int pixel = 0; pixel < kColumn; ++pixel)
        words[plane][pixel] |= (static_cast<uint32_t>(codes[pixel]) >> plane & 1u) << bit;
  }
};

template <class Level>
struct ThresholdDigits {
  const Pack& call;
  float shared[kMaxPlanes][kLanes];  // a threshold of all channels, once per lane

  explicit ThresholdDigits(const Pack& pack) : call(pack) {
    for (int plane = 0; call.thresholds_shared && plane < call.planes; ++plane)
      for (int lane = 0; lane < kLanes; ++lane) shared[plane][lane] = call.thresholds[plane];
  }

  float threshold(int plane, int64_t channel) const {
    return call.thresholds_shared ? call.thresholds[plane] : call.thresholds[plane * call.channels + channel];
  }

  void row(const float* x, int64_t channel, int lanes, uint32_t* words) const {
    float held[kLanes];
    for (int plane = 0; plane < call.planes; ++plane) {
      const float* thresholds = shared[plane];
      if (!call.thresholds_shared) {
        thresholds = call.thresholds + plane * call.channels + channel;
        if (lanes < kLanes) thresholds = filled_up(thresholds, lanes, kLanes, held);
      }
      words[plane] = Level::not_below(x, thresholds);
    }
  }

  void column(const float* x, int64_t channel, int bit, uint32_t (*words)[kColumn]) const {
    for (int plane = 0; plane < call.planes; ++plane) {
      const float level = threshold(plane, channel);
      for (int pixel = 0; pixel < kColumn; ++pixel)
        words[plane][pixel] |= static_cast<uint32_t>(!(x[pixel] < level)) << bit;
    }
  }
};

inline int lanes_of(int64_t channels, int word) {
  const int64_t left = channels - static_cast<int64_t>(word) * kLanes;
  return static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
}

// Channels of a pixel are neighbours: 32 of them make a word of each plane.
template <class Level, class Digits>
void pack_rows(const void* context, int part, int parts) {
  const Digits& digits = *static_cast<const Digits*>(context);
  const Pack& call = digits.call;
  const int64_t per_group = call.channels / call.groups, pixels = call.n * call.pixels;
  const int64_t strip_words = static_cast<int64_t>(call.planes) * call.words;
  for (int64_t pixel = pixels * part / parts; pixel < pixels * (part + 1) / parts; ++pixel) {
    uint32_t* strip = call.out + pixel * call.groups * strip_words;
    for (int group = 0; group < call.groups; ++group, strip += strip_words) {
      for (int word = 0; word < call.words; ++word) {
        const int lanes = lanes_of(per_group, word);
        uint32_t words[kMaxPlanes];
        for (int plane = 0; plane < call.planes; ++plane) words[plane] = 0;
        float held[kLanes];
        const int64_t channel = group * per_group + static_cast<int64_t>(word) * kLanes;
        const float* x = call.x + pixel * call.channels + channel;
        if (lanes > 0 && lanes < kLanes) x = filled_up(x, lanes, kLanes, held);
        if (lanes > 0) digits.row(x, channel, lanes, words);
        const uint32_t exist = lanes == kLanes ? ~0u : (1u << lanes) - 1u;
        for (int plane = 0; plane < call.planes; ++plane) strip[plane * call.words + word] = words[plane] & exist;
      }
    }
  }
}

// One plane, and full words: nothing is filled up but the last word of an odd number.
template <class Level, class Digits>
void pack_plain_rows(const void* context, int part, int parts) {
  const Digits& digits = *static_cast<const Digits*>(context);
  const Pack& call = digits.call;
  const int full = static_cast<int>(call.channels / call.groups / kLanes);
  const int64_t pixels = call.n * call.pixels, first = pixels * part / parts, last = pixels * (part + 1) / parts;
  const float* x = call.x + first * call.channels;
  uint32_t* to = call.out + first * call.groups * call.words;
  for (int64_t pixel = first; pixel < last; ++pixel)
    for (int group = 0; group < call.groups; ++group, to += call.words) {
      for (int word = 0; word < full; ++word, x += kLanes) {
        to[word] = 0;
        digits.row(x, (static_cast<int64_t>(group) * full + word) * kLanes, kLanes, to + word);
      }
      if (full < call.words) to[full] = 0;
    }
}

// Pixels of a channel are neighbours: each channel adds its bit to the words of 16 pixels.
template <class Level, class Digits>
void pack_column(const Digits& digits, int64_t image, int64_t first, int count) {
  const Pack& call = digits.call;
  const int64_t per_group = call.channels / call.groups;
  const int64_t strip_words = static_cast<int64_t>(call.planes) * call.words;
  for (int group = 0; group < call.groups; ++group) {
    for (int word = 0; word < call.words; ++word) {
      uint32_t words[kMaxPlanes][kColumn];
      memset(words, 0, static_cast<size_t>(call.planes) * sizeof(words[0]));
      const int64_t channel = group * per_group + static_cast<int64_t>(word) * kLanes;
      const float* x = call.x + (image * call.channels + channel) * call.pixels + first;
      for (int lane = 0; lane < lanes_of(per_group, word); ++lane, x += call.pixels) {
        float held[kColumn];
        digits.column(count < kColumn ? filled_up(x, count, kColumn, held) : x, channel + lane, lane, words);
      }
      uint32_t* to = call.out + ((image * call.pixels + first) * call.groups + group) * strip_words + word;
      for (int pixel = 0; pixel < count; ++pixel, to += call.groups * strip_words)
        for (int plane = 0; plane < call.planes; ++plane) to[plane * call.words] = words[plane][pixel];
    }
  }
}

template <class Level, class Digits>
void pack_columns(const void* context, int part, int parts) {
  const Digits& digits = *static_cast<const Digits*>(context);
  const Pack& call = digits.call;
  const int64_t columns = (call.pixels + kColumn - 1) / kColumn, all = call.n * columns;
  for (int64_t column = all * part / parts; column < all * (part + 1) / parts; ++column) {
    const int64_t first = column % columns * kColumn, left = call.pixels - first;
    pack_column<Level>(digits, column / columns, first, static_cast<int>(left < kColumn ? left : kColumn));
  }
}

inline int pack_parts(const Pack& call) {
  constexpr int64_t kFewestValues = 1 << 16;  // below, sharing out costs more than it gives
  const int64_t worth = call.n * call.pixels * call.channels / kFewestValues + 1;
  return static_cast<int>(worth < call.threads ? worth : call.threads);
}

template <class Level, class Digits>
void pack_with(const Pack& call) {
  const Digits digits(call);
  const bool plain = call.planes == 1 && call.channels / call.groups % kLanes == 0;
  const Work rows = plain ? pack_plain_rows<Level, Digits> : pack_rows<Level, Digits>;
  run_parts(pack_parts(call), call.channels_last ? rows : pack_columns<Level, Digits>, &digits);
}

inline void code_uniform(const Pack& call, const float* x, int64_t count, uint8_t* to) {
  encode_uniform(x, count, call.low, call.inverse_step, static_cast<float>((1 << call.planes) - 1), to);
}

inline void code_thresholds(const Pack& call, int plane, const float* x, int64_t channel, int64_t count, uint8_t* to) {
  if (call.thresholds_shared) {
    const float level = call.thresholds[plane];
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) to[i] = !(x[i] < level);
    return;
  }
  const float* levels = call.thresholds + plane * call.channels + channel;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = !(x[i] < levels[i]);
}

// The codes of one group of a pixel: a strip for each term, filled up with zeros.
inline void code_group(const Pack& call, const float* x, int64_t channel, int64_t per_group, uint8_t* to) {
  const int64_t size = 4 * static_cast<int64_t>(call.words), spare = size - per_group;
  const int strips = call.thresholds == nullptr ? 1 : call.planes;
  for (int strip = 0; strip < strips; ++strip, to += size) {
    if (call.thresholds == nullptr)
      code_uniform(call, x, per_group, to);
    else
      code_thresholds(call, strip, x, channel, per_group, to);
    if (spare > 0) memset(to + per_group, 0, static_cast<size_t>(spare));
  }
}

inline void code_pixels(const void* context, int part, int parts) {
  const Pack& call = *static_cast<const Pack*>(context);
  const int64_t pixels = call.n * call.pixels, per_group = call.channels / call.groups;
  const int64_t first = pixels * part / parts, last = pixels * (part + 1) / parts;
  if (call.thresholds == nullptr && per_group == 4 * static_cast<int64_t>(call.words)) {  // nothing to fill up
    code_uniform(call, call.x + first * call.channels, (last - first) * call.channels,
                 call.codes + first * call.channels);
    return;
  }
  const int64_t group_bytes = 4 * static_cast<int64_t>(call.words) * (call.thresholds == nullptr ? 1 : call.planes);
  for (int64_t pixel = first; pixel < last; ++pixel)
    for (int group = 0; group < call.groups; ++group)
      code_group(call, call.x + pixel * call.channels + group * per_group, group * per_group, per_group,
                 call.codes + (pixel * call.groups + group) * group_bytes);
}

// Pixels of a channel are neighbours: each channel adds its byte to the words of 64 pixels.
inline void code_column(const Pack& call, int strip, const float* x, int64_t channel, int shift, uint32_t* words) {
  if (call.thresholds == nullptr) {
    const float low = call.low, inverse_step = call.inverse_step, top = static_cast<float>((1 << call.planes) - 1);
    for (int pixel = 0; pixel < kColumn; ++pixel)
      words[pixel] |= static_cast<uint32_t>(static_cast<int32_t>(clamped_code(x[pixel], low, inverse_step, top)))
                      << shift;
    return;
  }
  const float level = call.thresholds[call.thresholds_shared ? strip : strip * call.channels + channel];
  for (int pixel = 0; pixel < kColumn; ++pixel) words[pixel] |= static_cast<uint32_t>(!(x[pixel] < level)) << shift;
}

// Four channels of one strip, of up to 64 pixels: a word each, `stride` apart.
inline void code_word(const Pack& call, int strip, const float* x, int64_t channel, int lanes, int count, uint32_t* to,
                      int64_t stride) {
  uint32_t words[kColumn] = {};
  for (int lane = 0; lane < lanes; ++lane, x += call.pixels) {
    float held[kColumn];
    const float* values = count < kColumn ? filled_up(x, count, kColumn, held) : x;
    code_column(call, strip, values, channel + lane, 8 * lane, words);
  }
  for (int pixel = 0; pixel < count; ++pixel) to[pixel * stride] = words[pixel];
}

inline void code_columns(const void* context, int part, int parts) {
  const Pack& call = *static_cast<const Pack*>(context);
  const int64_t per_group = call.channels / call.groups, columns = (call.pixels + kColumn - 1) / kColumn;
  const int strips = call.thresholds == nullptr ? 1 : call.planes;
  const int64_t strip_words = static_cast<int64_t>(strips) * call.words, stride = call.groups * strip_words;
  const int64_t all = call.n * columns;
  for (int64_t column = all * part / parts; column < all * (part + 1) / parts; ++column) {
    const int64_t image = column / columns, first = column % columns * kColumn, left = call.pixels - first;
    const int count = static_cast<int>(left < kColumn ? left : kColumn);
    uint32_t* to = reinterpret_cast<uint32_t*>(call.codes) + (image * call.pixels + first) * stride;
    for (int64_t word = 0; word < call.groups * strip_words; ++word) {
      const int64_t group = word / strip_words, lane = word % call.words * 4, rest = per_group - lane;
      const int64_t channel = group * per_group + lane;
      const int lanes = static_cast<int>(rest < 0 ? 0 : rest < 4 ? rest : 4);
      code_word(call, static_cast<int>(word % strip_words / call.words),
                call.x + (image * call.channels + channel) * call.pixels + first, channel, lanes, count, to + word,
                stride);
    }
  }
}

template <class Level>
Status pack(const Pack& call) {
  if (call.n * call.pixels == 0) return Status::ok;
  if (call.codes != nullptr)
    run_parts(pack_parts(call), call.channels_last ? code_pixels : code_columns, &call);
  else if (call.thresholds != nullptr)
    pack_with<Level, ThresholdDigits<Level>>(call);
  else
    pack_with<Level, UniformDigits<Level>>(call);
  return Status::ok;
}

}  // namespace
}  // namespace binarize
