#include "../dense.h"
#include "kernel.h"
#include "layout.h"

namespace binarize::ort {
namespace {

constexpr int64_t kMost = 1 << 20;  // of a window's sizes

const DenseLevel& best_level() {
  for (int i = 0; i < kDenseLevelCount; ++i)
    if (kDenseLevels[i].runs_here()) return kDenseLevels[i];
  return kDenseLevels[kDenseLevelCount - 1];
}

// x and y are images (n, c, h, w), or (n, h, w, c) between nodes of ours.
class MaxPool2d final : public Kernel {
 public:
  explicit MaxPool2d(const Node& node)
      : x_inner_(node.integer_or("x_inner", 0) != 0), y_inner_(node.integer_or("y_inner", 0) != 0) {
    read(node, "kernel_shape", 2, 1, pool_.kernel_h, pool_.kernel_w);
    read(node, "strides", 2, 1, pool_.stride_h, pool_.stride_w);
    read(node, "dilations", 2, 1, pool_.dilation_h, pool_.dilation_w);
    read(node, "pads", 4, 0, pool_.padding_h, pool_.padding_w);
    node.require(reach(pool_.kernel_h, pool_.dilation_h) < kMost && reach(pool_.kernel_w, pool_.dilation_w) < kMost,
                 "its window is too large");
    node.require(pool_.padding_h < reach(pool_.kernel_h, pool_.dilation_h) &&
                     pool_.padding_w < reach(pool_.kernel_w, pool_.dilation_w),
                 "a window lies outside the image");
    pool_.largest = true;
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    call.require(x.sizes.size() == 4, "x has the shape " + text(x.sizes));
    Pool pool = pool_;
    pool.n = x.sizes[0];
    pool.h = x.sizes[x_inner_ ? 1 : 2];
    pool.w = x.sizes[x_inner_ ? 2 : 3];
    pool.channels = x.sizes[x_inner_ ? 3 : 1];
    pool.out_h = size_of(pool.h, pool_.kernel_h, pool_.stride_h, pool_.padding_h, pool_.dilation_h);
    pool.out_w = size_of(pool.w, pool_.kernel_w, pool_.stride_w, pool_.padding_w, pool_.dilation_w);
    call.require(pool.out_h >= 1 && pool.out_w >= 1,
                 "an image of " + std::to_string(pool.h) + "x" + std::to_string(pool.w) + " is too small");
    pool.threads = most_threads();
    const Sizes sizes = y_inner_ ? Sizes{pool.n, pool.out_h, pool.out_w, pool.channels}
                                 : Sizes{pool.n, pool.channels, pool.out_h, pool.out_w};
    float* out = static_cast<float*>(call.output(sizes));
    if (count(sizes) == 0) return;
    pool.x = x_inner_ ? x.as<float>() : by_pixels(pool, x.as<float>());
    pool.out = y_inner_ ? out : static_cast<float*>(held(Held::values, static_cast<size_t>(count(sizes)) * 4));
    call.require(best_level().pool(pool) == binarize::Status::ok, "there is no memory");
    const int64_t pixels = pool.out_h * pool.out_w;
    if (!y_inner_) transpose<float>({pool.out, out, pool.n, pixels, pool.channels, pixels}, pool.threads);
  }

 private:
  static void read(const Node& node, const char* name, size_t count, int64_t least, int& h, int& w) {
    const Sizes found = node.integers(name);
    node.require(found.size() == count, std::string(name) + " are " + text(found));
    for (const int64_t size : found)
      node.require(size >= least && size < kMost, std::string(name) + " are " + text(found));
    node.require(count == 2 || (found[0] == found[2] && found[1] == found[3]),
                 std::string(name) + " are " + text(found) + ", which differ by side");
    h = static_cast<int>(found[0]);
    w = static_cast<int>(found[1]);
  }

  static const float* by_pixels(const Pool& pool, const float* x) {
    const int64_t pixels = pool.h * pool.w;
    float* turned = static_cast<float*>(held(Held::residual, static_cast<size_t>(pool.n * pixels * pool.channels) * 4));
    transpose<float>({x, turned, pool.n, pool.channels, pixels, pool.channels}, pool.threads);
    return turned;
  }

  static int64_t reach(int64_t kernel, int64_t dilation) { return dilation * (kernel - 1) + 1; }

  static int64_t size_of(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t room = size + 2 * padding - reach(kernel, dilation);
    return room < 0 ? 0 : room / stride + 1;
  }

  Pool pool_{};
  const bool x_inner_, y_inner_;
};

}  // namespace

std::unique_ptr<Kernel> make_max_pool(const Node& node) { return std::make_unique<MaxPool2d>(node); }

}  // namespace binarize::ort
