// AVX2: eight output channels in a register, popcount by two look-ups of nibbles.
//
// Two words of a lane are added as bits first (a carry-save adder), so that one look-up serves both: 14 instructions
// for 512 products instead of 16. Counts of bytes are widened before they can exceed 255: a carry has at most 8 set
// bits in a byte, so after kMostAdditions pairs at the latest.
#include <immintrin.h>

#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

constexpr int kMostAdditions = 31;

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline __m256i broadcast(const uint32_t* from) { return _mm256_set1_epi32(static_cast<int32_t>(*from)); }

inline __m256i popcount_u8x32(__m256i x) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
  const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
  return _mm256_add_epi8(low, high);
}

inline __m256i sum_bytes_u32x8(__m256i bytes) {
  const __m256i sums = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}

// Counts of P pixels for eight channels: carries count twice, ones once.
template <int P>
struct Counter {
  __m256i pairs_u32x8[P], carries_u8x32[P], ones[P];
  int room = kMostAdditions;

  void widen() {
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) {
      pairs_u32x8[pixel] = _mm256_add_epi32(pairs_u32x8[pixel], sum_bytes_u32x8(carries_u8x32[pixel]));
      carries_u8x32[pixel] = _mm256_setzero_si256();
    }
    room = kMostAdditions;
  }

  __attribute__((always_inline)) void add(const uint32_t* const* digits, const uint32_t* weight, int words) {
    for (int word = 0; word < words; word += 2, weight += kPairWords) {
      const __m256i first_signs = load(weight), second_signs = load(weight + 16);
#pragma GCC unroll 8
      for (int pixel = 0; pixel < P; ++pixel) {
        const __m256i first = _mm256_and_si256(broadcast(digits[pixel] + word), first_signs);
        const __m256i second = _mm256_and_si256(broadcast(digits[pixel] + word + 1), second_signs);
        const __m256i half = _mm256_xor_si256(ones[pixel], first);
        const __m256i carry = _mm256_or_si256(_mm256_and_si256(ones[pixel], first), _mm256_and_si256(half, second));
        ones[pixel] = _mm256_xor_si256(half, second);
        carries_u8x32[pixel] = _mm256_add_epi8(carries_u8x32[pixel], popcount_u8x32(carry));
      }
    }
  }

  void close() {
    widen();
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) {
      const __m256i twice = _mm256_add_epi32(pairs_u32x8[pixel], pairs_u32x8[pixel]);
      pairs_u32x8[pixel] = _mm256_add_epi32(twice, sum_bytes_u32x8(popcount_u8x32(ones[pixel])));
      ones[pixel] = _mm256_setzero_si256();
    }
  }
};

struct Avx2 {
  static constexpr int kTile = 4;
  static constexpr double kWordsPerMicrosecond = 10000;

  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int lane = 0; lane < kLanes; lane += 8) count_lanes<P>(operands, pixels, lane, counts);
  }

  template <int P>
  static void count_lanes(const Operands& operands, const uint32_t* const* pixels, int lane,
                          uint32_t (*counts)[kLanes]) {
    Counter<P> counter;
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
      counter.pairs_u32x8[pixel] = counter.carries_u8x32[pixel] = counter.ones[pixel] = _mm256_setzero_si256();
    for (int index = 0; index < operands.pass_count; ++index) {
      const Pass& pass = operands.passes[index];
      const uint32_t* weight = operands.weight + pass.weight + lane / 16 * 32 + lane % 16;
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
    for (int pixel = 0; pixel < P; ++pixel)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts[pixel] + lane), counter.pairs_u32x8[pixel]);
  }

  static uint32_t at_least(const int32_t* a, const int32_t* b) {
    uint32_t below = 0;
    for (int lane = 0; lane < kLanes; lane += 8) {
      const __m256 less = _mm256_castsi256_ps(_mm256_cmpgt_epi32(load(b + lane), load(a + lane)));
      below |= static_cast<uint32_t>(_mm256_movemask_ps(less)) << lane;
    }
    return ~below;
  }

  static uint32_t not_below(const float* x, const float* thresholds) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; lane += 8) {
      const __m256 met = _mm256_cmp_ps(_mm256_loadu_ps(x + lane), _mm256_loadu_ps(thresholds + lane), _CMP_NLT_UQ);
      bits |= static_cast<uint32_t>(_mm256_movemask_ps(met)) << lane;
    }
    return bits;
  }

  static void encode(const float* x, float low, float inverse_step, float top, int planes, uint32_t* words) {
    for (int lane = 0; lane < kLanes; lane += 8) {
      const __m256 shifted = _mm256_sub_ps(_mm256_loadu_ps(x + lane), _mm256_set1_ps(low));
      __m256 code = _mm256_add_ps(_mm256_mul_ps(shifted, _mm256_set1_ps(inverse_step)), _mm256_set1_ps(0.5f));
      code = _mm256_min_ps(_mm256_max_ps(code, _mm256_setzero_ps()), _mm256_set1_ps(top));  // NaN becomes 0
      const __m256i codes = _mm256_cvttps_epi32(code);
      for (int plane = 0; plane < planes; ++plane) {
        const __m256i at_sign = _mm256_sll_epi32(codes, _mm_cvtsi32_si128(31 - plane));
        words[plane] |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(at_sign))) << lane;
      }
    }
  }
};

}  // namespace

Status conv2d_avx2(const Conv2d& call) { return conv2d<Avx2>(call); }
Status pack_avx2(const Pack& call) { return pack<Avx2>(call); }

}  // namespace binarize
