// Float kernels with AVX-512: 12 pixels x 2 registers of channels are 24 sums.
#include <immintrin.h>

#include "dense.h"

namespace binarize {
namespace {

struct DenseAvx512 {
  using Vector = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kTile = 12;

  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
  static Vector broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector divide(Vector a, float b) { return _mm512_div_ps(a, _mm512_set1_ps(b)); }
  static Vector largest(Vector a, Vector b) {  // vmaxps gives its second operand where one is NaN
    return _mm512_mask_mov_ps(_mm512_max_ps(b, a), _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q), b);
  }
  static Vector clamp(Vector x, float minimum, float maximum) {  // NaN stays, as the second operand is what it gives
    return _mm512_min_ps(_mm512_set1_ps(maximum), _mm512_max_ps(_mm512_set1_ps(minimum), x));
  }
};

}  // namespace
}  // namespace binarize

DEFINE_DENSE_LEVEL(avx512, DenseAvx512)
