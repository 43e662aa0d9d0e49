// AVX-512 with VPOPCNTDQ: sixteen output channels in a register, a chain of carry-save adders by ternary logic.
//
//   vpternlogd  any function of three operands, 1 instruction
//   vpopcntd    popcount of each 32-bit lane
//
// Two words a1, a2 of a pixel against the signs w1, w2 of sixteen channels take five vector instructions, where and +
// popcount + add would take six:
//   t = ones ^ (a1 & w1);   s = t ^ (a2 & w2);   carry = t ? ~s : ones  (the majority);   pairs += popcount(carry)
// after which `ones` is s, and a count is 2 * pairs + popcount(ones).
// 7 pixels x 2 registers of channels are 14 sums and 14 carries: with two weights and two temporaries all 32 registers.
#include <immintrin.h>

#include "avx512.h"
#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

constexpr int kVectors = 2;  // registers of a block of channels

// One block of assembly, because the compiler otherwise keeps copies of what vpternlogd overwrites and spills.
// Immediates: 0x6C is src1 ^ (dest & src2); 0x74 is src1 ? ~src2 : dest.
inline __attribute__((always_inline)) void add_pair(const uint32_t* digits, __m512i first_signs, __m512i second_signs,
                                                    __m512i& pairs, __m512i& ones) {
  __m512i half, sum;
  asm("vpbroadcastd %[first], %[half]\n\t"
      "vpternlogd $0x6C, %[first_signs], %[ones], %[half]\n\t"
      "vpbroadcastd %[second], %[sum]\n\t"
      "vpternlogd $0x6C, %[second_signs], %[half], %[sum]\n\t"
      "vpternlogd $0x74, %[sum], %[half], %[ones]\n\t"
      "vpopcntd %[ones], %[ones]\n\t"
      "vpaddd %[ones], %[pairs], %[pairs]\n\t"
      "vmovdqa64 %[sum], %[ones]"
      : [ones] "+v"(ones), [pairs] "+v"(pairs), [half] "=&v"(half), [sum] "=&v"(sum)
      : [first] "m"(digits[0]), [second] "m"(digits[1]), [first_signs] "v"(first_signs),
        [second_signs] "v"(second_signs));
}

struct Avx512Vpopcntdq : Avx512 {
  static constexpr int kTile = 7;
  static constexpr double kWordsPerMicrosecond = 35000;

  template <int P>
  static __attribute__((noinline)) void count(const Operands& operands, const uint32_t* const* pixels,
                                              uint32_t (*counts)[kLanes]) {
    __m512i pairs[P][kVectors], ones[P][kVectors];
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector)
        pairs[pixel][vector] = ones[pixel][vector] = _mm512_setzero_si512();
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
          for (int vector = 0; vector < kVectors; ++vector) {
            const __m512i first_signs = _mm512_loadu_si512(weight + 32 * vector);
            const __m512i second_signs = _mm512_loadu_si512(weight + 32 * vector + 16);
#pragma GCC unroll 8
            for (int pixel = 0; pixel < P; ++pixel)
              add_pair(digits[pixel] + word, first_signs, second_signs, pairs[pixel][vector], ones[pixel][vector]);
          }
        }
      }
      if (!pass.closes) continue;
#pragma GCC unroll 8
      for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
        for (int vector = 0; vector < kVectors; ++vector) {
          const __m512i twice = _mm512_add_epi32(pairs[pixel][vector], pairs[pixel][vector]);
          pairs[pixel][vector] = _mm512_add_epi32(twice, _mm512_popcnt_epi32(ones[pixel][vector]));
          ones[pixel][vector] = _mm512_setzero_si512();
        }
    }
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector)
        _mm512_storeu_si512(counts[pixel] + 16 * vector, pairs[pixel][vector]);
  }
};

}  // namespace

Status conv2d_avx512_vpopcntdq(const Conv2d& call) { return conv2d<Avx512Vpopcntdq>(call); }
Status pack_avx512_vpopcntdq(const Pack& call) { return pack<Avx512Vpopcntdq>(call); }

}  // namespace binarize
