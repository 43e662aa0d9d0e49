// What differs from call to call. What does not are constants in front of this text, see specialise.py:
//   kCodes                    whether operands are codes and folded weights, else planes
//   kGroups, kWords, kOut     groups; words and output channels of one
//   kKernelH ... kDilationW   the window
//   kStrips, kWeightStrips    digit planes (terms, of codes) and weight planes (terms)
//   kProducts, kEpilogue      accumulators of an output; what is stored
//   kStored, kAdded           types of the floats that are stored, and of the residual
//   kSlopes                   whether negative values are multiplied by a slope
//   kAlso, kAlsoBits, kAlsoThresholds  what is packed beside the floats: nothing, planes or codes, by what
//   kXor                      whether planes are multiplied by `xor` (sm_75) instead of `and`
//   passes(i), products(i)    in which order strips are multiplied
// Fields are read by Python too: `Call` of call.py is the same, field by field.
#pragma once
#include "device.cuh"

struct Call {
  const u32* x;                  // (n, h, w, groups, strips, words)
  const u32* weight;             // prepared or folded, see format.py and codes.py
  void* out;                     // by epilogue
  const float* scale;            // (products, all output channels)
  const float* bias;             // (classes, all output channels)
  const void* residual;          // (pixels, all output channels) or null
  const int* thresholds;         // (classes, all output channels)
  const u8* flip;                // (all output channels,)
  const int* row_class;          // (out_h,) or null
  const int* column_class;       // (out_w,) or null
  void* also;                    // what is packed beside the floats
  const float* also_thresholds;  // (kAlsoBits, all output channels) or (kAlsoBits, 1)
  const float* slope;            // (all output channels,)
  u32 pixels, h, w, out_h, out_w, classes;
  u32 code_channels, code_depth, shared_thresholds;  // of a group of the output's reader
  float minimum, maximum;
  float low, inverse_step, top;  // of the uniform code of the output
};

enum Epilogue { kIntegers = 0, kValues = 1, kReaderCodes = 2, kDigits = 3 };
enum Also { kNothing = 0, kPlanesToo = 1, kCodesToo = 2 };

// One strip of weights against one strip of activations.
struct Pass {
  int weight_strip, strip;
  int doubles;       // the sums so far count twice before it
  int window_shift;  // its activations are counted at this power of two, or -1
  int weight_shift;  // the same of its weights
};

// One accumulator: a weight term times an activation term. `odd` is the odd weight where nothing is counted:
// 2^planes - 1, of codes -1, or the constant 1; `code` the largest code.
struct Product {
  int first, count;  // its passes
  int multiplies;    // 0 for the constant weight term, of which the sum of the window is all
  int odd, code;
};
