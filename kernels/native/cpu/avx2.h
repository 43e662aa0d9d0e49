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
}  // namespace binarize
