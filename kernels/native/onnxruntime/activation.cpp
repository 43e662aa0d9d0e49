#include "kernel.h"

namespace binarize::ort {
namespace {

constexpr int64_t kMostGroups = INT32_MAX;

// x as floats: an image (n, c, h, w), or (n, h, w, c) where it comes from a node of ours; or rows (..., c).
class Activation final : public Kernel {
 public:
  Activation(const Node& node, Packing packing)
      : packing_(std::move(packing)),
        name_(node.name()),
        host_(node.host()),
        rows_(node.integer_or("rows", 0) != 0),
        inner_(node.integer_or("x_inner", 0) != 0) {
    node.require(!rows_ || packing_.form().groups == 1, "rows have one group of channels");
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const size_t rank = x.sizes.size();
    call.require(rows_ ? rank >= 1 : rank == 4, "x has the shape " + text(x.sizes));
    const bool last = rows_ || inner_;
    const int64_t channels = last ? x.sizes.back() : x.sizes[1];
    call.require(channels > 0 && packing_.takes(channels),
                 std::to_string(channels) + " channels fit neither its groups nor its thresholds");
    Sizes out;
    if (rows_)
      out.assign(x.sizes.begin(), x.sizes.end() - 1);
    else if (inner_)
      out.assign(x.sizes.begin(), x.sizes.begin() + 3);
    else
      out = {x.sizes[0], x.sizes[2], x.sizes[3]};
    const int64_t n = rows_ ? 1 : out[0], pixels = rows_ ? count(out) : out[1] * out[2];
    const Form& form = packing_.form();
    out.insert(out.end(), {form.groups, form.strips, form.bytes(channels)});
    packing_.run(x.as<float>(), n, pixels, channels, last, call.output(out));
  }

 private:
  const Packing packing_;
  const std::string name_;
  const Host host_;
  const bool rows_, inner_;
};

std::unique_ptr<Kernel> activation(const Node& node, Packing packing) {
  return std::make_unique<Activation>(node, std::move(packing));
}

}  // namespace

void require_version(const Node& node) {
  const int64_t version = node.integer_or("version", kVersion);
  if (version < 1 || version > kVersion)
    throw Refusal{"cannot load binarize." + node.name() + ": it follows version " + std::to_string(version) +
                  " of the domain, and this library knows up to version " + std::to_string(kVersion) +
                  "; install a newer binarize, or run the file without this library"};
}

Packing::Packing(const Node& node, int64_t planes, int64_t groups, bool codes, int64_t strips)
    : level_(&packer(node)), form_{codes, groups, strips}, planes_(static_cast<int>(planes)) {}

Packing Packing::uniform(const Node& node, float low, float inverse_step, int64_t bits, int64_t groups, Work work) {
  const bool codes = as_codes(node, work);
  Packing made(node, bits, groups, codes, codes ? 1 : bits);
  made.low_ = low;
  made.inverse_step_ = inverse_step;
  return made;
}

Packing Packing::thresholds(const Node& node, std::vector<float> levels, int64_t planes, int64_t groups, Work work) {
  node.require(!levels.empty(), "it has no thresholds");
  Packing made(node, planes, groups, as_codes(node, work), planes);
  made.columns_ = static_cast<int64_t>(levels.size()) / planes;
  made.levels_ = std::move(levels);
  return made;
}

void Packing::run(const float* x, int64_t n, int64_t pixels, int64_t channels, bool channels_last, void* out) const {
  if (n * pixels == 0) return;
  Pack pack{};
  pack.x = x;
  pack.out = form_.codes ? nullptr : static_cast<uint32_t*>(out);
  pack.codes = form_.codes ? static_cast<uint8_t*>(out) : nullptr;
  pack.n = n;
  pack.pixels = pixels;
  pack.channels = channels;
  pack.groups = static_cast<int>(form_.groups);
  pack.planes = planes_;
  pack.words = static_cast<int>(form_.bytes(channels) / 4);
  pack.channels_last = channels_last;
  pack.low = low_;
  pack.inverse_step = inverse_step_;
  pack.thresholds = levels_.empty() ? nullptr : levels_.data();
  pack.thresholds_shared = columns_ == 1;
  pack.threads = most_threads();
  level_->pack(pack);
}

std::unique_ptr<Kernel> make_pack_uniform(const Node& node) {
  const int64_t groups = node.integer("groups", 1, kMostGroups), bits = node.integer("bits", 1, 8);
  return activation(node, Packing::uniform(node, node.number("low"), node.number("inverse_step"), bits, groups,
                                           work_of(node, "work")));
}

// Thresholds of images are (1, 1, 1) or (c, 1, 1), of rows (1) or (c): one column for all channels or one for each.
std::unique_ptr<Kernel> make_pack_thresholds(const Node& node) {
  const Tensor stored = node.constant(1, "thresholds", Type::number);
  const int64_t size = count(stored.sizes);
  node.require(!stored.sizes.empty() && size > 0 && size == stored.sizes[0],
               "thresholds have the shape " + text(stored.sizes));
  std::vector<float> levels(stored.as<float>(), stored.as<float>() + size);
  return activation(node, Packing::thresholds(node, std::move(levels), 1, node.integer("groups", 1, kMostGroups),
                                              work_of(node, "work")));
}

// The last axis holds the thresholds of the digits; the kernels take all channels of a digit together.
std::unique_ptr<Kernel> make_pack_terms(const Node& node) {
  const Tensor stored = node.constant(1, "thresholds", Type::number);
  const int64_t digits = node.integer("bits", 1, 8), size = count(stored.sizes);
  node.require(
      stored.sizes.size() >= 2 && size > 0 && stored.sizes.back() == digits && size == stored.sizes[0] * digits,
      "thresholds have the shape " + text(stored.sizes));
  const int64_t columns = size / digits;
  std::vector<float> levels(static_cast<size_t>(size));
  for (int64_t digit = 0; digit < digits; ++digit)
    for (int64_t column = 0; column < columns; ++column)
      levels[static_cast<size_t>(digit * columns + column)] = stored.as<float>()[column * digits + digit];
  return activation(node, Packing::thresholds(node, std::move(levels), digits, node.integer("groups", 1, kMostGroups),
                                              work_of(node, "work")));
}

}  // namespace binarize::ort
