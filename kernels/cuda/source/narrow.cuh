// Floats of 32 and of 16 bits in memory. Everything is computed in 32; to 16 a value is rounded to the nearest, even.
#pragma once
#include "device.cuh"

enum FloatType { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

DEVICE u16 bfloat16_of(float x) {
  const u32 bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;  // NaN, which adding would make infinite
  return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DEVICE float widened(int type, u16 bits) {
  return type == kFloat16 ? float_of_half(bits) : float_of_bits(static_cast<u32>(bits) << 16);
}

DEVICE float read_float(int type, const void* from, i64 at) {
  if (type == kFloat32) return static_cast<const float*>(from)[at];
  return widened(type, static_cast<const u16*>(from)[at]);
}

DEVICE u16 narrowed(int type, float x) { return type == kFloat16 ? half_of(x) : bfloat16_of(x); }

DEVICE float rounded(int type, float x) { return type == kFloat32 ? x : widened(type, narrowed(type, x)); }

// Returns what would be read again.
DEVICE float write_float(int type, void* to, i64 at, float x) {
  if (type == kFloat32) return static_cast<float*>(to)[at] = x;
  const u16 bits = narrowed(type, x);
  static_cast<u16*>(to)[at] = bits;
  return widened(type, bits);
}
