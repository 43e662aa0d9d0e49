// Float kernels in plain C++: what every machine runs. fmaf rounds once, as the vector levels do.
#include "dense.h"

namespace binarize {
namespace {

struct DenseScalar {
  struct Vector {
    float lanes[4];
  };
  static constexpr int kWidth = 4;
  static constexpr int kTile = 4;

  static Vector load(const float* from) {
    Vector x;
    memcpy(x.lanes, from, sizeof(x.lanes));
    return x;
  }
  static void store(float* to, Vector x) { memcpy(to, x.lanes, sizeof(x.lanes)); }
  static Vector broadcast(const float* from) { return {{*from, *from, *from, *from}}; }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    for (int i = 0; i < kWidth; ++i) sum.lanes[i] = __builtin_fmaf(a.lanes[i], b.lanes[i], sum.lanes[i]);
    return sum;
  }
  static Vector add(Vector a, Vector b) {
    for (int i = 0; i < kWidth; ++i) a.lanes[i] = a.lanes[i] + b.lanes[i];
    return a;
  }
  static Vector divide(Vector a, float b) {
    for (int i = 0; i < kWidth; ++i) a.lanes[i] = a.lanes[i] / b;
    return a;
  }
  static Vector largest(Vector a, Vector b) {
    for (int i = 0; i < kWidth; ++i)
      if (b.lanes[i] > a.lanes[i] || b.lanes[i] != b.lanes[i]) a.lanes[i] = b.lanes[i];
    return a;
  }
  static Vector clamp(Vector x, float minimum, float maximum) {
    for (int i = 0; i < kWidth; ++i) {
      const float y = minimum > x.lanes[i] ? minimum : x.lanes[i];
      x.lanes[i] = maximum < y ? maximum : y;
    }
    return x;
  }
};

}  // namespace
}  // namespace binarize

DEFINE_DENSE_LEVEL(scalar, DenseScalar)
