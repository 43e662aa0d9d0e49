// What the levels with AVX-512 share: comparisons and codes of 32 values at a time.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace binarize {
namespace {

struct Avx512 {
  static constexpr bool kRows = false;
  static constexpr int kFields = 0;

  static uint32_t at_least(const int32_t* a, const int32_t* b) {
    const uint32_t low = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
    const uint32_t high = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(a + 16), _mm512_loadu_si512(b + 16));
    return low | high << 16;
  }

  static uint32_t not_below(const float* x, const float* thresholds) {
    const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_loadu_ps(thresholds), _CMP_NLT_UQ);
    const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(thresholds + 16), _CMP_NLT_UQ);
    return low | high << 16;
  }

  static __m512i sixteen(const float* x, float low, float inverse_step, float top) {
    const __m512 shifted = _mm512_sub_ps(_mm512_loadu_ps(x), _mm512_set1_ps(low));
    const __m512 code = _mm512_add_ps(_mm512_mul_ps(shifted, _mm512_set1_ps(inverse_step)), _mm512_set1_ps(0.5f));
    return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(code, _mm512_setzero_ps()), _mm512_set1_ps(top)));  // NaN: 0
  }

  static void encode(const float* x, float low, float inverse_step, float top, int planes, uint32_t* words) {
    const __m512i first = sixteen(x, low, inverse_step, top), second = sixteen(x + 16, low, inverse_step, top);
    for (int plane = 0; plane < planes; ++plane) {
      const __m512i digit = _mm512_set1_epi32(1 << plane);
      words[plane] = static_cast<uint32_t>(_mm512_test_epi32_mask(first, digit)) |
                     static_cast<uint32_t>(_mm512_test_epi32_mask(second, digit)) << 16;
    }
  }

  static void encode_bytes(const float* x, float low, float inverse_step, float top, uint8_t* to) {
    for (int lane = 0; lane < 32; lane += 16) {
      const __m128i bytes = _mm512_cvtepi32_epi8(sixteen(x + lane, low, inverse_step, top));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + lane), bytes);
    }
  }
};

}  // namespace
}  // namespace binarize
