// Float kernels with AVX2 and FMA: 6 pixels x 2 registers of channels are 12 sums, half a block at a time.
#include <immintrin.h>

#include "dense.h"

namespace binarize {
namespace {

struct DenseAvx2 {
  using Vector = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kTile = 6;

  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vector x) { _mm256_storeu_ps(to, x); }
  static Vector broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector divide(Vector a, float b) { return _mm256_div_ps(a, _mm256_set1_ps(b)); }
  static Vector largest(Vector a, Vector b) {  // vmaxps gives its second operand where one is NaN
    return _mm256_blendv_ps(_mm256_max_ps(b, a), b, _mm256_cmp_ps(b, b, _CMP_UNORD_Q));
  }
  static Vector clamp(Vector x, float minimum, float maximum) {  // NaN stays, as the second operand is what it gives
    return _mm256_min_ps(_mm256_set1_ps(maximum), _mm256_max_ps(_mm256_set1_ps(minimum), x));
  }
};

}  // namespace
}  // namespace binarize

DEFINE_DENSE_LEVEL(avx2, DenseAvx2)
