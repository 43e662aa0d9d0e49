// The uniform code of a float. docs/numerics.md, point 4; every operation is rounded by itself.
#pragma once
#include "device.cuh"

DEVICE u32 code_of(float x, float low, float inverse_step, float top) {
  const float code = floor_of(plus(times(minus(x, low), inverse_step), 0.5f));
  const float least = code > 0.0f ? code : 0.0f;  // of NaN too
  return static_cast<u32>(least < top ? least : top);
}
