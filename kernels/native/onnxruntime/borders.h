// What depends on where an output lies: which taps of its window are inside the image, and the tables of that.
#pragma once

#include <mutex>

#include "weights.h"

namespace binarize::ort {

// How a layer's float output is made of its integer sums, in float32; and the threshold it may be compared with.
struct Affine {
  std::vector<float> scale;  // (terms of the weight x terms of the activation, outputs), weight-major
  std::vector<float> bias;   // (outputs,)
  float minimum, maximum;
  std::vector<float> thresholds;  // none, (1,) or (outputs,)
};

// Tables of one image size. Where padding makes no difference there is one class and no map of it.
struct Tables {
  std::vector<float> bias;          // (classes, outputs)
  std::vector<int32_t> thresholds;  // (classes, outputs), where the output is compared
  std::vector<int32_t> rows, columns;
  int64_t classes;
};

class Borders final {
 public:
  // `low` is the value of code 0; `unit` (weight terms, outputs) the value of one unit of the odd weight.
  Borders(const LayerSizes& sizes, const Affine& affine, double low, std::vector<double> unit,
          std::vector<int64_t> tap_sums, bool compares);

  std::shared_ptr<const Tables> tables(int64_t h, int64_t w, int64_t out_h, int64_t out_w) const;

 private:
  struct Known {
    int64_t h, w;
    std::shared_ptr<const Tables> tables;
  };

  std::shared_ptr<const Tables> make(int64_t h, int64_t w, int64_t out_h, int64_t out_w) const;
  void compare(Tables& tables) const;

  const LayerSizes& sizes_;
  const Affine& affine_;
  const double low_;
  const std::vector<double> unit_;
  const std::vector<int64_t> tap_sums_;
  const bool compares_;
  std::shared_ptr<const Tables> only_;  // where the image's size makes no difference
  mutable std::mutex guard_;
  mutable std::vector<Known> known_;  // the latest few sizes
};

}  // namespace binarize::ort
