// Plain C++: what every machine runs, and what the other levels are read against.
#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

inline uint32_t popcount(uint32_t x) {
  x = x - (x >> 1 & 0x55555555u);
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  x = (x + (x >> 4)) & 0x0F0F0F0Fu;
  x = x + (x >> 8);
  return (x + (x >> 16)) & 0x3Fu;
}

struct Scalar {
  static constexpr bool kRows = false;
  static constexpr int kFields = 0;

  static constexpr int kTile = 4;
  static constexpr double kWordsPerMicrosecond = 2000;

  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int pixel = 0; pixel < P; ++pixel) {
      uint32_t sums[kLanes] = {};
      for (int index = 0; index < operands.pass_count; ++index) {
        const Pass& pass = operands.passes[index];
        add_products(operands, pixels[pixel] + pass.digits, operands.weight + pass.weight, sums);
        if (pass.closes && index + 1 < operands.pass_count)
          for (int lane = 0; lane < kLanes; ++lane) sums[lane] *= 2;
      }
      memcpy(counts[pixel], sums, sizeof(sums));
    }
  }

  static void add_products(const Operands& operands, const uint32_t* digits, const uint32_t* weight, uint32_t* sums) {
    for (int index = 0; index < operands.run_count; ++index) {
      const Run run = operands.runs[index];
      for (int word = 0; word < run.words; word += 2, weight += kPairWords) {
        const uint32_t first = digits[run.offset + word], second = digits[run.offset + word + 1];
        add_half(first, second, weight, sums);
        add_half(first, second, weight + 32, sums + 16);
      }
    }
  }

  // Sixteen channels, a loop that any compiler turns into vectors.
  static void add_half(uint32_t first, uint32_t second, const uint32_t* weight, uint32_t* sums) {
#pragma GCC ivdep
    for (int lane = 0; lane < 16; ++lane)
      sums[lane] += popcount(first & weight[lane]) + popcount(second & weight[lane + 16]);
  }

  static uint32_t at_least(const int32_t* a, const int32_t* b) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<uint32_t>(a[lane] >= b[lane]) << lane;
    return bits;
  }

  static uint32_t not_below(const float* x, const float* thresholds) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<uint32_t>(!(x[lane] < thresholds[lane])) << lane;
    return bits;
  }

  static void encode(const float* x, float low, float inverse_step, float top, int planes, uint32_t* words) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t code = static_cast<uint32_t>(clamped_code(x[lane], low, inverse_step, top));
      for (int plane = 0; plane < planes; ++plane) words[plane] |= (code >> plane & 1u) << lane;
    }
  }

  static void encode_bytes(const float* x, float low, float inverse_step, float top, uint8_t* to) {
    encode_uniform(x, kLanes, low, inverse_step, top, to);
  }
};

struct ScalarCodes : Scalar {
  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int pixel = 0; pixel < P; ++pixel) {
      uint32_t sums[kLanes] = {};
      for (int index = 0; index < operands.pass_count; ++index) {
        const Pass& pass = operands.passes[index];
        add_products(operands, pixels[pixel] + pass.digits, operands.weight + pass.weight, sums);
      }
      memcpy(counts[pixel], sums, sizeof(sums));
    }
  }

  static void add_products(const Operands& operands, const uint32_t* codes, const uint32_t* weight, uint32_t* sums) {
    for (int index = 0; index < operands.run_count; ++index) {
      const Run run = operands.runs[index];
      const uint8_t* code = reinterpret_cast<const uint8_t*>(codes + run.offset);
      for (int word = 0; word < run.words; ++word, weight += kLanes, code += 4) {
        const int8_t* folded = reinterpret_cast<const int8_t*>(weight);
#pragma GCC ivdep
        for (int lane = 0; lane < kLanes; ++lane)
          for (int channel = 0; channel < 4; ++channel)
            sums[lane] += static_cast<uint32_t>(code[channel] * folded[4 * lane + channel]);
      }
    }
  }
};

}  // namespace

Status conv2d_scalar(const Conv2d& call) {
  return call.geometry->codes ? conv2d<ScalarCodes>(call) : conv2d<Scalar>(call);
}
Status pack_scalar(const Pack& call) { return pack<Scalar>(call); }

}  // namespace binarize
