// A kernel of one node: constant once it is made, so that runs at the same time need no lock.
#pragma once

#include <memory>

#include "route.h"

namespace binarize::ort {

constexpr int64_t kVersion = 1;  // of the domain, the latest that this library knows

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

struct Codes {
  int64_t n, h, w, channels;
};

// How codes are laid out, which producer and readers choose alike: (n, h, w, groups, strips, bytes) of an image,
// (..., 1, strips, bytes) of rows; a strip is a plane of bits, or the bytes of a term.
struct Form {
  bool codes;
  int64_t groups, strips;

  int64_t bytes(int64_t channels) const {  // of a strip of a group
    const int64_t per_group = channels / groups;
    return codes ? (per_group + 3) / 4 * 4 : (per_group + 63) / 64 * 8;
  }
};

// From floats to codes: PackUniform, PackThresholds, PackTerms, and the same at the end of a convolution.
class Packing final {
 public:
  static Packing uniform(const Node& node, float low, float inverse_step, int64_t bits, int64_t groups, Work work);
  static Packing thresholds(const Node& node, std::vector<float> levels, int64_t planes, int64_t groups, Work work);

  const Form& form() const { return form_; }
  bool is_uniform() const { return levels_.empty(); }
  float low() const { return low_; }
  float inverse_step() const { return inverse_step_; }
  int planes() const { return planes_; }
  bool takes(int64_t channels) const {  // thresholds are one for all channels or one for each
    return channels % form_.groups == 0 && (columns_ <= 1 || columns_ == channels);
  }

  // x is (n, pixels, channels) if channels_last, else (n, channels, pixels).
  void run(const float* x, int64_t n, int64_t pixels, int64_t channels, bool channels_last, void* out) const;

 private:
  Packing(const Node& node, int64_t planes, int64_t groups, bool codes, int64_t strips);

  const Level* level_;
  Form form_;
  int planes_;
  float low_ = 0, inverse_step_ = 0;
  std::vector<float> levels_;  // (planes, columns)
  int64_t columns_ = 0;
};

std::unique_ptr<Kernel> make_pack_uniform(const Node& node);
std::unique_ptr<Kernel> make_pack_thresholds(const Node& node);
std::unique_ptr<Kernel> make_pack_terms(const Node& node);

std::unique_ptr<Kernel> make_max_pool(const Node& node);

// What a layer does with its float output.
enum class Ending { values, thresholds, uniform };

struct LayerKind {
  bool image, terms, residual;
  Ending ending;
};

std::unique_ptr<Kernel> make_layer(const Node& node, LayerKind kind);

void require_version(const Node& node);

}  // namespace binarize::ort
