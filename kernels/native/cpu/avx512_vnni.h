// AVX-512 with VNNI: codes times folded weights, sixteen output channels in a register.
//
//   vpdpbusd  four products of unsigned and signed bytes, added to each 32-bit lane; wraps, saturates nowhere
//
// 7 pixels x 2 registers of channels are 14 sums, enough to hide the latency of four to five cycles at two a cycle.
#pragma once

#include "avx512.h"
#include "tile.h"

namespace binarize {
namespace {

constexpr int kVectors = 2;  // registers of a block of channels

struct Avx512Vnni : Avx512 {
  static constexpr int kTile = 7;
  static constexpr int kFields = 4;
  static constexpr double kWordsPerMicrosecond = 60000;

  template <int P>
  static __attribute__((noinline)) void count(const Operands& operands, const uint32_t* const* pixels,
                                              uint32_t (*counts)[kLanes]) {
    add_up<P, false>(operands, pixels, counts);
  }

  // Weights as fields: the low halves of 64 bytes are those of the first sixteen channels.
  struct Fields {
    static constexpr int kTile = Avx512Vnni::kTile;

    template <int P>
    static __attribute__((noinline)) void count(const Operands& operands, const uint32_t* const* pixels,
                                                uint32_t (*counts)[kLanes]) {
      add_up<P, true>(operands, pixels, counts);
    }
  };

  template <int P, bool kHalves>
  static __attribute__((always_inline)) inline void add_up(const Operands& operands, const uint32_t* const* pixels,
                                                           uint32_t (*counts)[kLanes]) {
    __m512i sums[P][kVectors];
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector) sums[pixel][vector] = _mm512_setzero_si512();
    for (int index = 0; index < operands.pass_count; ++index) {
      const Pass& pass = operands.passes[index];
      const uint32_t* weight = operands.weight + pass.weight;
      for (int run = 0; run < operands.run_count; ++run) {
        const uint32_t* codes[P];
#pragma GCC unroll 8
        for (int pixel = 0; pixel < P; ++pixel) codes[pixel] = pixels[pixel] + pass.digits + operands.runs[run].offset;
        const int64_t words = operands.runs[run].words;
        for (int64_t word = 0; word < words; ++word, weight += kHalves ? kLanes / 2 : kLanes) {
          __m512i first = _mm512_loadu_si512(weight), second;
          if (kHalves) {
            const __m512i low = _mm512_set1_epi8(15);
            second = _mm512_and_si512(_mm512_srli_epi16(first, 4), low);
            first = _mm512_and_si512(first, low);
          } else {
            second = _mm512_loadu_si512(weight + 16);
          }
#pragma GCC unroll 8
          for (int pixel = 0; pixel < P; ++pixel) {
            const __m512i four = _mm512_set1_epi32(static_cast<int32_t>(codes[pixel][word]));
            sums[pixel][0] = _mm512_dpbusd_epi32(sums[pixel][0], four, first);
            sums[pixel][1] = _mm512_dpbusd_epi32(sums[pixel][1], four, second);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector)
        _mm512_storeu_si512(counts[pixel] + 16 * vector, sums[pixel][vector]);
  }
};

}  // namespace
}  // namespace binarize
