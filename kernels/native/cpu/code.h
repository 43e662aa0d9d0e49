// The uniform code of a value, see docs/packed_format.md.
#pragma once

#include <stdint.h>

namespace binarize {
namespace {

inline float clamped_code(float x, float low, float inverse_step, float top) {
  float code = (x - low) * inverse_step + 0.5f;
  code = code > 0.0f ? code : 0.0f;  // NaN too becomes 0
  return code < top ? code : top;    // from here on, truncation is the floor
}

__attribute__((always_inline)) inline void encode_uniform(const float* x, int64_t count, float low, float inverse_step,
                                                          float top, uint8_t* to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    to[i] = static_cast<uint8_t>(static_cast<int32_t>(clamped_code(x[i], low, inverse_step, top)));
}

}  // namespace
}  // namespace binarize
