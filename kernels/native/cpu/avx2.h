// What the kernels of AVX2 share: comparisons and codes of 32 values at a time.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "tile.h"

namespace binarize {
namespace {

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline __m256i broadcast(const uint32_t* from) { return _mm256_set1_epi32(static_cast<int32_t>(*from)); }

struct Avx2 {
  static constexpr bool kRows = false;
  static constexpr int kFields = 0;

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

  static __m256i eight(const float* x, float low, float inverse_step, float top) {
    const __m256 shifted = _mm256_sub_ps(_mm256_loadu_ps(x), _mm256_set1_ps(low));
    const __m256 code = _mm256_add_ps(_mm256_mul_ps(shifted, _mm256_set1_ps(inverse_step)), _mm256_set1_ps(0.5f));
    return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(code, _mm256_setzero_ps()), _mm256_set1_ps(top)));  // NaN: 0
  }

  // The packing instructions stay within halves of 128 bits: what they interleave is put in order afterwards.
  static void encode_bytes(const float* x, float low, float inverse_step, float top, uint8_t* to) {
    const __m256i first = _mm256_packs_epi32(eight(x, low, inverse_step, top), eight(x + 8, low, inverse_step, top));
    const __m256i last =
        _mm256_packs_epi32(eight(x + 16, low, inverse_step, top), eight(x + 24, low, inverse_step, top));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, last), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
  }

  static void encode(const float* x, float low, float inverse_step, float top, int planes, uint32_t* words) {
    for (int lane = 0; lane < kLanes; lane += 8) {
      const __m256i codes = eight(x + lane, low, inverse_step, top);
      for (int plane = 0; plane < planes; ++plane) {
        const __m256i at_sign = _mm256_sll_epi32(codes, _mm_cvtsi32_si128(31 - plane));
        words[plane] |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(at_sign))) << lane;
      }
    }
  }
};

}  // namespace
}  // namespace binarize
