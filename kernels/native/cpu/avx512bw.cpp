// AVX-512 without VPOPCNTDQ: sixteen output channels in a register, popcount by two look-ups of nibbles.
//
// Two words of a lane are added as bits first (a carry-save adder of ternary logic), so that one look-up serves both:
// 12 instructions for 1024 products. Counts of bytes are widened before they can exceed 255: a carry has at most 8 set
// bits in a byte, so after kMostAdditions pairs at the latest.
#include <immintrin.h>

#include "avx512.h"
#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

constexpr int kMostAdditions = 31;

inline __m512i popcount_u8x64(__m512i x) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(x, nibble));
  const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble));
  return _mm512_add_epi8(low, high);
}

inline __m512i sum_bytes_u32x16(__m512i bytes) {
  const __m512i sums = _mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1));
  return _mm512_madd_epi16(sums, _mm512_set1_epi16(1));
}

inline __m512i broadcast(const uint32_t* from) { return _mm512_set1_epi32(static_cast<int32_t>(*from)); }

// Counts of P pixels for sixteen channels: carries count twice, ones once.
template <int P>
struct Counter {
  __m512i pairs[P], carries[P], ones[P];
  int room = kMostAdditions;

  Counter() {
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) pairs[pixel] = carries[pixel] = ones[pixel] = _mm512_setzero_si512();
  }

  void widen() {
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) {
      pairs[pixel] = _mm512_add_epi32(pairs[pixel], sum_bytes_u32x16(carries[pixel]));
      carries[pixel] = _mm512_setzero_si512();
    }
    room = kMostAdditions;
  }

  // Immediates of vpternlogd on (ones, first, second): 0x96 is the parity, 0xE8 the majority.
  __attribute__((always_inline)) void add(const uint32_t* const* digits, const uint32_t* weight, int words) {
    for (int word = 0; word < words; word += 2, weight += kPairWords) {
      const __m512i first_signs = _mm512_loadu_si512(weight), second_signs = _mm512_loadu_si512(weight + 16);
#pragma GCC unroll 8
      for (int pixel = 0; pixel < P; ++pixel) {
        const __m512i first = _mm512_and_si512(broadcast(digits[pixel] + word), first_signs);
        const __m512i second = _mm512_and_si512(broadcast(digits[pixel] + word + 1), second_signs);
        const __m512i carry = _mm512_ternarylogic_epi32(ones[pixel], first, second, 0xE8);
        ones[pixel] = _mm512_ternarylogic_epi32(ones[pixel], first, second, 0x96);
        carries[pixel] = _mm512_add_epi8(carries[pixel], popcount_u8x64(carry));
      }
    }
  }

  void close() {
    widen();
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) {
      const __m512i twice = _mm512_add_epi32(pairs[pixel], pairs[pixel]);
      pairs[pixel] = _mm512_add_epi32(twice, sum_bytes_u32x16(popcount_u8x64(ones[pixel])));
      ones[pixel] = _mm512_setzero_si512();
    }
  }
};

struct Avx512bw : Avx512 {
  static constexpr int kTile = 6;
  static constexpr double kWordsPerMicrosecond = 20000;

  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int lane = 0; lane < kLanes; lane += 16) count_lanes<P>(operands, pixels, lane, counts);
  }

  template <int P>
  static __attribute__((noinline)) void count_lanes(const Operands& operands, const uint32_t* const* pixels, int lane,
                                                    uint32_t (*counts)[kLanes]) {
    Counter<P> counter;
    for (int index = 0; index < operands.pass_count; ++index) {
      const Pass& pass = operands.passes[index];
      const uint32_t* weight = operands.weight + pass.weight + 2 * lane;
      for (int run = 0; run < operands.run_count; ++run) {
        const uint32_t* digits[P];
#pragma GCC unroll 8
        for (int pixel = 0; pixel < P; ++pixel) digits[pixel] = pixels[pixel] + pass.digits + operands.runs[run].offset;
        for (int left = operands.runs[run].words; left > 0;) {
          const int words = left < 2 * counter.room ? left : 2 * counter.room;
          counter.add(digits, weight, words);
          weight += words / 2 * kPairWords;
          left -= words;
          counter.room -= words / 2;
          if (counter.room == 0) counter.widen();
#pragma GCC unroll 8
          for (int pixel = 0; pixel < P; ++pixel) digits[pixel] += words;
        }
      }
      if (pass.closes) counter.close();
    }
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) _mm512_storeu_si512(counts[pixel] + lane, counter.pairs[pixel]);
  }
};

}  // namespace

Status conv2d_avx512bw(const Conv2d& call) { return conv2d<Avx512bw>(call); }
Status pack_avx512bw(const Pack& call) { return pack<Avx512bw>(call); }

}  // namespace binarize
