// AVX-512 with VPOPCNTDQ on CPUs with four vector units (AMD Zen 5): and, popcount, add.
//
//   vpandd    with one word of a pixel from memory, broadcast on the way
//   vpopcntd  popcount of each 32-bit lane, on two of the four units
//
// Three instructions for 512 products. The chain of carry-save adders of avx512_vpopcntdq.cpp takes two and a half, but
// has to broadcast into a register what it overwrites and to move what it keeps, and both take one of the four slots
// here. benchmarks/kernels.py --planes 1 took 0.91 (64 channels) to 0.79 (512 channels) of the time of the chain.
#include <immintrin.h>

#include "avx512.h"
#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

constexpr int kVectors = 2;  // registers of a block of channels

// Assembly, because the compiler would broadcast once for both registers of channels, which is slower.
inline __attribute__((always_inline)) void add_word(const uint32_t* digits, __m512i signs, __m512i& sums) {
  __m512i both;
  asm("vpandd %[digits]%{1to16%}, %[signs], %[both]\n\t"
      "vpopcntd %[both], %[both]\n\t"
      "vpaddd %[both], %[sums], %[sums]"
      : [sums] "+v"(sums), [both] "=&v"(both)
      : [digits] "m"(digits[0]), [signs] "v"(signs));
}

struct Avx512VpopcntdqAmd : Avx512 {
  static constexpr int kTile = 7;
  static constexpr double kWordsPerMicrosecond = 60000;

  template <int P>
  static __attribute__((noinline)) void count(const Operands& operands, const uint32_t* const* pixels,
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
        const uint32_t* digits[P];
#pragma GCC unroll 8
        for (int pixel = 0; pixel < P; ++pixel) digits[pixel] = pixels[pixel] + pass.digits + operands.runs[run].offset;
        const int64_t words = operands.runs[run].words;
        for (int64_t word = 0; word < words; word += 2, weight += kPairWords) {
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half)
#pragma GCC unroll 2
            for (int vector = 0; vector < kVectors; ++vector) {
              const __m512i signs = _mm512_loadu_si512(weight + 32 * vector + 16 * half);
#pragma GCC unroll 8
              for (int pixel = 0; pixel < P; ++pixel) add_word(digits[pixel] + word + half, signs, sums[pixel][vector]);
            }
        }
      }
      if (!pass.closes || index + 1 == operands.pass_count) continue;
#pragma GCC unroll 8
      for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
        for (int vector = 0; vector < kVectors; ++vector)
          sums[pixel][vector] = _mm512_add_epi32(sums[pixel][vector], sums[pixel][vector]);
    }
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector)
        _mm512_storeu_si512(counts[pixel] + 16 * vector, sums[pixel][vector]);
  }
};

}  // namespace

Status conv2d_avx512_vpopcntdq_amd(const Conv2d& call) { return conv2d<Avx512VpopcntdqAmd>(call); }
Status pack_avx512_vpopcntdq_amd(const Pack& call) { return pack<Avx512VpopcntdqAmd>(call); }

}  // namespace binarize
