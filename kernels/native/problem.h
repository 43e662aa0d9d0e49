// The problems that a CPU level solves. Torch-free and Python-free: pointers, sizes, and nothing that allocates.
// Layouts are defined in format.py and described in docs/packed_format.md.
#pragma once

#include <stdint.h>

namespace binarize {

constexpr int kMaxPlanes = 32;  // per operand, over all its terms

enum class Status { ok = 0, no_memory = 1, class_out_of_range = 2 };

// What stays the same from call to call of one convolution. Channels and words are per group.
// Operands come in one of two forms. As planes: a word holds one bit of 32 channels, and an operand has as many strips
// as planes. As codes: a word holds the codes of four channels, one in a byte, and an operand has a strip for each
// term. A weight of codes is a signed byte, or, `narrow`, a field of 1, 2 or 4 bits that becomes one when it is used.
struct Geometry {
  bool codes;
  int narrow;  // bits of a field, or 0
  int groups, words, out_channels;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int weight_terms, activation_terms;  // how many terms each operand has
  int weight_planes[kMaxPlanes];       // planes of each weight term; 0 for the constant +1
  int activation_planes[kMaxPlanes];   // digit planes of each activation term
  int weight_strips, activation_strips;
};

// Exactly one of `integers`, `values`, `digits` and `codes` is set; it says which epilogue runs.
struct Conv2d {
  const Geometry* geometry;
  int64_t n, h, w, out_h, out_w;
  const uint32_t* x;       // (n, h, w, groups, strips, words)
  const uint32_t* weight;  // prepared, see format.py
  int32_t* integers;       // (n, out_h, out_w, terms, all output channels)
  float* values;           // (n, out_h, out_w, all output channels)
  uint32_t* digits;        // (n, out_h, out_w, 1, 1, words of all output channels), zeroed by the caller
  uint8_t* codes;          // (n, out_h, out_w, code_depth): of the values, zeroed by the caller where it is filled up
  const float* scale;      // (terms, all output channels)
  const float* bias;       // (classes, all output channels)
  const float* residual;   // like values, or null
  float minimum, maximum;
  int64_t code_depth;
  float low, inverse_step, top;  // of the uniform code
  const int32_t* thresholds;     // (classes, all output channels)
  const uint8_t* flip;           // (all output channels,), 0 or 1
  const int32_t* row_class;      // (out_h,) or null
  const int32_t* column_class;   // (out_w,) or null
  int64_t classes;
  int threads;
};

// With `thresholds` set, digit j is not (x < thresholds[j]); else the digits are those of the uniform code.
// Exactly one of `out` and `codes` is set. Thresholds make one code of each digit.
struct Pack {
  const float* x;               // (n, pixels, channels) if channels_last, else (n, channels, pixels)
  uint32_t* out;                // (n, pixels, groups, planes, words)
  uint8_t* codes;               // (n, pixels, groups, planes if thresholds else 1, 4 * words)
  int64_t n, pixels, channels;  // channels over all groups
  int groups, planes, words;
  bool channels_last;
  float low, inverse_step;
  const float* thresholds;  // (planes, channels), or (planes, 1) if thresholds_shared
  bool thresholds_shared;
  int threads;
};

}  // namespace binarize
