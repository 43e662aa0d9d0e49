// Stored bits in the order in which kernels read them; kernels/format.py and kernels/codes.py define that order.
#pragma once

#include <memory>

#include "../problem.h"
#include "host.h"

namespace binarize::ort {

// The whole numbers of a packed layer, checked against each other.
struct LayerSizes {
  int64_t outputs, channels, kernel_h, kernel_w;  // channels of a group
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  std::vector<int> weight_terms;
  std::vector<int> activation_terms;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t depth() const { return channels * taps(); }
  int64_t weight_planes() const;
  int64_t products() const { return static_cast<int64_t>(weight_terms.size() * activation_terms.size()); }
  int64_t words(bool codes) const { return codes ? (channels + 3) / 4 : (channels + 63) / 64 * 2; }
};

// Bits of a field of a folded weight, or 0 where it takes bytes.
int narrow_bits(const LayerSizes& sizes);

Geometry geometry_of(const LayerSizes& sizes, bool codes);

struct Free {
  void operator()(void* memory) const;
};
using Words = std::unique_ptr<uint32_t[], Free>;

// `bits` are (planes, outputs, ceil(depth / 8)).
Words prepare_weight(const LayerSizes& sizes, const uint8_t* bits);
Words fold_weight(const LayerSizes& sizes, const uint8_t* bits);

// Sums of the odd integers over channels, (terms, outputs, taps): what a constant input adds.
std::vector<int64_t> sum_taps(const LayerSizes& sizes, const uint8_t* bits);

}  // namespace binarize::ort
