// NEON of 64-bit ARM: four output channels in a register, popcount of bytes by vcnt.
//
// Counts of bytes are added as bytes and widened before they can exceed 255: a byte has at most 8 set bits, so after
// kMostAdditions words at the latest. Codes and weights are multiplied as 16-bit numbers into 32-bit sums, which is
// exact for any of them.
#include <arm_neon.h>

#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

constexpr int kMostAdditions = 31;

struct Neon {
  static constexpr bool kRows = false;
  static constexpr int kFields = 0;

  static uint32_t bits_of(const uint32x4_t* masks) {
    static const uint32_t kPlaces[4] = {1, 2, 4, 8};
    const uint32x4_t places = vld1q_u32(kPlaces);
    uint32_t bits = 0;
    for (int index = 0; index < kLanes / 4; ++index) bits |= vaddvq_u32(vandq_u32(masks[index], places)) << (4 * index);
    return bits;
  }

  static uint32_t at_least(const int32_t* a, const int32_t* b) {
    uint32x4_t masks[kLanes / 4];
    for (int index = 0; index < kLanes / 4; ++index)
      masks[index] = vcgeq_s32(vld1q_s32(a + 4 * index), vld1q_s32(b + 4 * index));
    return bits_of(masks);
  }

  static uint32_t not_below(const float* x, const float* thresholds) {
    uint32x4_t masks[kLanes / 4];
    for (int index = 0; index < kLanes / 4; ++index)
      masks[index] = vmvnq_u32(vcltq_f32(vld1q_f32(x + 4 * index), vld1q_f32(thresholds + 4 * index)));
    return bits_of(masks);
  }

  static void encode(const float* x, float low, float inverse_step, float top, int planes, uint32_t* words) {
    uint32x4_t codes[kLanes / 4], masks[kLanes / 4];
    for (int index = 0; index < kLanes / 4; ++index) {
      const float32x4_t shifted = vsubq_f32(vld1q_f32(x + 4 * index), vdupq_n_f32(low));
      float32x4_t code = vaddq_f32(vmulq_f32(shifted, vdupq_n_f32(inverse_step)), vdupq_n_f32(0.5f));
      code = vminq_f32(vmaxnmq_f32(code, vdupq_n_f32(0.0f)), vdupq_n_f32(top));  // NaN becomes 0
      codes[index] = vcvtq_u32_f32(code);
    }
    for (int plane = 0; plane < planes; ++plane) {
      for (int index = 0; index < kLanes / 4; ++index) masks[index] = vtstq_u32(codes[index], vdupq_n_u32(1u << plane));
      words[plane] |= bits_of(masks);
    }
  }

  static void encode_bytes(const float* x, float low, float inverse_step, float top, uint8_t* to) {
    encode_uniform(x, kLanes, low, inverse_step, top, to);
  }
};

inline uint32x4_t widened(uint32x4_t sums, uint8x16_t bytes) { return vpadalq_u16(sums, vpaddlq_u8(bytes)); }

struct NeonPlanes : Neon {
  static constexpr int kTile = 4;
  static constexpr double kWordsPerMicrosecond = 4000;

  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int lane = 0; lane < kLanes; lane += 8) count_lanes<P>(operands, pixels, lane, counts);
  }

  // Eight channels of P pixels.
  template <int P>
  static void count_lanes(const Operands& operands, const uint32_t* const* pixels, int lane,
                          uint32_t (*counts)[kLanes]) {
    uint32x4_t sums[P][2];
    uint8x16_t bytes[P][2];
    int room = kMostAdditions;
    for (int pixel = 0; pixel < P; ++pixel)
      for (int half = 0; half < 2; ++half) {
        sums[pixel][half] = vdupq_n_u32(0);
        bytes[pixel][half] = vdupq_n_u8(0);
      }
    for (int index = 0; index < operands.pass_count; ++index) {
      const Pass& pass = operands.passes[index];
      const uint32_t* weight = operands.weight + pass.weight + lane / 16 * 32 + lane % 16;
      for (int run = 0; run < operands.run_count; ++run) {
        const int64_t start = pass.digits + operands.runs[run].offset;
        for (int word = 0; word < operands.runs[run].words; word += 2, weight += kPairWords) {
          if (room < 2) room = widen<P>(sums, bytes);
          room -= 2;
          for (int second = 0; second < 2; ++second)
            for (int half = 0; half < 2; ++half) {
              const uint32x4_t signs = vld1q_u32(weight + 16 * second + 4 * half);
              for (int pixel = 0; pixel < P; ++pixel) {
                const uint32x4_t both = vandq_u32(vdupq_n_u32(pixels[pixel][start + word + second]), signs);
                bytes[pixel][half] = vaddq_u8(bytes[pixel][half], vcntq_u8(vreinterpretq_u8_u32(both)));
              }
            }
        }
      }
      if (!pass.closes || index + 1 == operands.pass_count) continue;
      room = widen<P>(sums, bytes);
      for (int pixel = 0; pixel < P; ++pixel)
        for (int half = 0; half < 2; ++half) sums[pixel][half] = vaddq_u32(sums[pixel][half], sums[pixel][half]);
    }
    widen<P>(sums, bytes);
    for (int pixel = 0; pixel < P; ++pixel)
      for (int half = 0; half < 2; ++half) vst1q_u32(counts[pixel] + lane + 4 * half, sums[pixel][half]);
  }

  template <int P>
  static int widen(uint32x4_t (*sums)[2], uint8x16_t (*bytes)[2]) {
    for (int pixel = 0; pixel < P; ++pixel)
      for (int half = 0; half < 2; ++half) {
        sums[pixel][half] = widened(sums[pixel][half], bytes[pixel][half]);
        bytes[pixel][half] = vdupq_n_u8(0);
      }
    return kMostAdditions;
  }
};

struct NeonCodes : Neon {
  static constexpr int kTile = 4;
  static constexpr double kWordsPerMicrosecond = 4000;

  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int lane = 0; lane < kLanes; lane += 4) count_lanes<P>(operands, pixels, lane, counts);
  }

  // Four channels of P pixels: a register for each of them holds the products of four input channels.
  template <int P>
  static void count_lanes(const Operands& operands, const uint32_t* const* pixels, int lane,
                          uint32_t (*counts)[kLanes]) {
    int32x4_t sums[P][4];
    for (int pixel = 0; pixel < P; ++pixel)
      for (int each = 0; each < 4; ++each) sums[pixel][each] = vdupq_n_s32(0);
    for (int index = 0; index < operands.pass_count; ++index) {
      const Pass& pass = operands.passes[index];
      const uint32_t* weight = operands.weight + pass.weight + lane;
      for (int run = 0; run < operands.run_count; ++run) {
        const int64_t start = pass.digits + operands.runs[run].offset;
        for (int word = 0; word < operands.runs[run].words; ++word, weight += kLanes) {
          const int8x16_t folded = vreinterpretq_s8_u32(vld1q_u32(weight));
          const int16x8_t low = vmovl_s8(vget_low_s8(folded)), high = vmovl_s8(vget_high_s8(folded));
          for (int pixel = 0; pixel < P; ++pixel) {
            const uint8x8_t four = vreinterpret_u8_u32(vdup_n_u32(pixels[pixel][start + word]));
            const int16x4_t codes = vget_low_s16(vreinterpretq_s16_u16(vmovl_u8(four)));
            sums[pixel][0] = vmlal_s16(sums[pixel][0], codes, vget_low_s16(low));
            sums[pixel][1] = vmlal_s16(sums[pixel][1], codes, vget_high_s16(low));
            sums[pixel][2] = vmlal_s16(sums[pixel][2], codes, vget_low_s16(high));
            sums[pixel][3] = vmlal_s16(sums[pixel][3], codes, vget_high_s16(high));
          }
        }
      }
    }
    for (int pixel = 0; pixel < P; ++pixel) {
      const int32x4_t first = vpaddq_s32(sums[pixel][0], sums[pixel][1]);
      const int32x4_t second = vpaddq_s32(sums[pixel][2], sums[pixel][3]);
      vst1q_u32(counts[pixel] + lane, vreinterpretq_u32_s32(vpaddq_s32(first, second)));
    }
  }
};

}  // namespace

Status conv2d_neon(const Conv2d& call) {
  return call.geometry->codes ? conv2d<NeonCodes>(call) : conv2d<NeonPlanes>(call);
}
Status pack_neon(const Pack& call) { return pack<Neon>(call); }

}  // namespace binarize
