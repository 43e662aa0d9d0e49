// Float kernels with NEON of 64-bit ARM: 8 pixels x 2 registers of channels are 16 sums.
#include <arm_neon.h>

#include "dense.h"

namespace binarize {
namespace {

struct DenseNeon {
  using Vector = float32x4_t;
  static constexpr int kWidth = 4;
  static constexpr int kTile = 8;

  static Vector load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Vector x) { vst1q_f32(to, x); }
  static Vector broadcast(const float* from) { return vdupq_n_f32(*from); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return vfmaq_f32(sum, a, b); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector divide(Vector a, float b) { return vdivq_f32(a, vdupq_n_f32(b)); }
  static Vector largest(Vector a, Vector b) {
    const uint32x4_t kept = vbicq_u32(vceqq_f32(b, b), vcgtq_f32(b, a));  // b is a number and not larger
    return vbslq_f32(kept, a, b);
  }
  static Vector clamp(Vector x, float minimum, float maximum) {  // a comparison with NaN is false: NaN stays
    const Vector low = vdupq_n_f32(minimum), high = vdupq_n_f32(maximum);
    x = vbslq_f32(vcltq_f32(x, low), low, x);
    return vbslq_f32(vcgtq_f32(x, high), high, x);
  }
};

}  // namespace
}  // namespace binarize

DEFINE_DENSE_LEVEL(neon, DenseNeon)
