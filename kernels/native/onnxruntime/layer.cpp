#include "borders.h"
#include "kernel.h"
#include "layout.h"

namespace binarize::ort {
namespace {

constexpr int64_t kLimit = int64_t{1} << 31;

bool product_fits(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product) || product >= kLimit) return false;
  return true;
}

LayerSizes read_sizes(const Node& node, LayerKind kind) {
  const Sizes shape = node.integers("weight_shape");
  node.require(shape.size() == (kind.image ? 4u : 2u), "weight_shape is " + text(shape));
  for (const int64_t size : shape) node.require(size >= 1 && size < kLimit, "weight_shape is " + text(shape));
  LayerSizes sizes{shape[0], shape[1], 1, 1, 1, 1, 0, 0, 1, 1, 1, {}, {}};
  if (kind.image) {
    sizes.kernel_h = shape[2];
    sizes.kernel_w = shape[3];
    const auto pair = [&node](const char* name, size_t count, int64_t least) {
      const Sizes found = node.integers(name);
      node.require(found.size() == count, std::string(name) + " are " + text(found));
      for (const int64_t size : found)
        node.require(size >= least && size < kLimit, std::string(name) + " are " + text(found));
      return found;
    };
    const Sizes strides = pair("strides", 2, 1), dilations = pair("dilations", 2, 1), pads = pair("pads", 4, 0);
    node.require(pads[0] == pads[2] && pads[1] == pads[3], "pads are " + text(pads) + ", which differ by side");
    sizes.stride_h = strides[0];
    sizes.stride_w = strides[1];
    sizes.dilation_h = dilations[0];
    sizes.dilation_w = dilations[1];
    sizes.padding_h = pads[0];
    sizes.padding_w = pads[1];
    sizes.groups = node.integer("group", 1, kLimit - 1);
    node.require(sizes.outputs % sizes.groups == 0, "its groups do not divide its output channels");
  }
  for (const int64_t planes : node.integers("weight_terms")) {
    node.require(planes >= 0 && planes <= 8, "a weight term has " + std::to_string(planes) + " planes");
    sizes.weight_terms.push_back(static_cast<int>(planes));
  }
  const int bits = static_cast<int>(node.integer("activation_bits", 1, 8));
  sizes.activation_terms = kind.terms ? std::vector<int>(static_cast<size_t>(bits), 1) : std::vector<int>{bits};
  return sizes;
}

void require_room(const Node& node, const LayerSizes& sizes) {
  const int64_t planes = sizes.weight_planes();
  node.require(planes >= 1 && planes <= kMaxPlanes && sizes.weight_terms.size() <= static_cast<size_t>(kMaxPlanes),
               "its weight has " + std::to_string(planes) + " planes");
  node.require(
      product_fits({sizes.kernel_h, sizes.kernel_w, sizes.channels, sizes.groups}) &&
          product_fits({sizes.kernel_h, sizes.kernel_w, sizes.words(true), (sizes.outputs + 63) / 32 * 32, planes}) &&
          product_fits({sizes.dilation_h, sizes.kernel_h}) && product_fits({sizes.dilation_w, sizes.kernel_w}),
      "its weight is too large");
  int widest = 0, digits = 0;
  for (const int planes_of : sizes.weight_terms) widest = planes_of > widest ? planes_of : widest;
  for (const int planes_of : sizes.activation_terms) digits = planes_of > digits ? planes_of : digits;
  node.require(product_fits({(int64_t{1} << widest) - 1, (int64_t{1} << digits) - 1, sizes.depth() + 1}),
               "its sums pass 32 bits; run the file without this library");
}

Tensor read(const Node& node, size_t index, const char* what, Type type, const Sizes& wanted) {
  const Tensor tensor = node.constant(index, what, type);
  node.require(tensor.sizes == wanted,
               std::string("its ") + what + " have the shape " + text(tensor.sizes) + ", not " + text(wanted));
  return tensor;
}

std::vector<float> read_numbers(const Node& node, size_t index, const char* what, const Sizes& wanted) {
  const Tensor tensor = read(node, index, what, Type::number, wanted);
  return {tensor.as<float>(), tensor.as<float>() + count(wanted)};
}

class Layer final : public Kernel {
 public:
  Layer(const Node& node, LayerKind kind)
      : kind_(kind),
        sizes_(read_sizes(node, kind)),
        affine_(read_affine(node)),
        codes_(as_codes(node, work_of(node, "work"))),
        level_(&multiplier(node, codes_)),
        geometry_(geometry_of(sizes_, codes_)),
        residual_inner_(node.integer_or("residual_inner", 0) != 0),
        inner_(node.integer_or("y_inner", 0) != 0) {
    const Tensor bits =
        read(node, 1, "bits", Type::byte, {sizes_.weight_planes(), sizes_.outputs, (sizes_.depth() + 7) / 8});
    weight_ = codes_ ? fold_weight(sizes_, bits.as<uint8_t>()) : prepare_weight(sizes_, bits.as<uint8_t>());
    read_reader(node);
    compares_ = kind.ending == Ending::thresholds && sizes_.products() == 1 && !reader_->form().codes;
    for (const float scale : affine_.scale) flips_.push_back(scale < 0);
    make_borders(node, bits.as<uint8_t>());
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const Sizes in = kind_.image ? x.sizes : flat(call, x.sizes);
    call.require(in.size() == 6 && in[3] == sizes_.groups && in[4] == geometry_.activation_strips &&
                     in[5] == 4 * static_cast<int64_t>(geometry_.words),
                 "its codes have the shape " + text(x.sizes) + ", which no producer of the same file gives");
    Conv2d conv{};
    conv.geometry = &geometry_;
    conv.n = in[0];
    conv.h = in[1];
    conv.w = in[2];
    conv.out_h = out_size(conv.h, sizes_.kernel_h, sizes_.stride_h, sizes_.padding_h, sizes_.dilation_h);
    conv.out_w = out_size(conv.w, sizes_.kernel_w, sizes_.stride_w, sizes_.padding_w, sizes_.dilation_w);
    require_image(call, conv);
    conv.x = x.as<uint32_t>();
    conv.weight = weight_.get();
    conv.threads = most_threads();
    const auto tables = borders_->tables(conv.h, conv.w, conv.out_h, conv.out_w);
    conv.classes = tables->classes;
    if (!tables->rows.empty()) {
      conv.row_class = tables->rows.data();
      conv.column_class = tables->columns.data();
    }
    if (compares_) {
      run_comparison(call, conv, *tables);
      return;
    }
    conv.scale = affine_.scale.data();
    conv.bias = tables->bias.data();
    conv.minimum = affine_.minimum;
    conv.maximum = affine_.maximum;
    if (kind_.residual) conv.residual = residual(call, conv, x.sizes);
    if (reader_ != nullptr)
      run_codes(call, conv);
    else
      run_values(call, conv, x.sizes);
  }

 private:
  Affine read_affine(const Node& node) const {
    require_room(node, sizes_);
    Affine affine;
    const int64_t terms = static_cast<int64_t>(kind_.terms ? sizes_.products() : sizes_.weight_terms.size());
    affine.scale = read_numbers(node, 2, "scale", {terms, sizes_.outputs});
    affine.bias = read_numbers(node, 3, "bias", {sizes_.outputs});
    affine.minimum = node.number("minimum");
    affine.maximum = node.number("maximum");
    if (kind_.ending == Ending::thresholds) {
      const Tensor stored = node.constant(4, "thresholds", Type::number);
      const int64_t size = count(stored.sizes);
      node.require(size == 1 || stored.sizes == Sizes{sizes_.outputs, 1, 1},
                   "thresholds have the shape " + text(stored.sizes));
      affine.thresholds.assign(stored.as<float>(), stored.as<float>() + size);
    }
    return affine;
  }

  void read_reader(const Node& node) {
    if (kind_.ending == Ending::values) return;
    const Work work = work_of(node, "reader_work");
    if (kind_.ending == Ending::thresholds) {
      reader_ = std::make_unique<Packing>(Packing::thresholds(node, affine_.thresholds, 1, 1, work));
      return;
    }
    const int64_t groups = node.integer("reader_groups", 1, sizes_.outputs), bits = node.integer("reader_bits", 1, 8);
    node.require(sizes_.outputs % groups == 0, "its reader's groups do not divide its output channels");
    reader_ = std::make_unique<Packing>(
        Packing::uniform(node, node.number("reader_low"), node.number("reader_inverse_step"), bits, groups, work));
  }

  void make_borders(const Node& node, const uint8_t* bits) {
    const float low = node.number("low");
    const std::vector<float> steps = kind_.terms ? node.numbers("steps") : std::vector<float>{node.number("step")};
    node.require(steps.size() == sizes_.activation_terms.size(), "it has " + std::to_string(steps.size()) + " steps");
    // Scales divided by the step of the main term are the units of the weight.
    const size_t main =
        kind_.terms ? static_cast<size_t>(node.integer("main_term", 0, static_cast<int64_t>(steps.size()) - 1)) : 0;
    const size_t outputs = static_cast<size_t>(sizes_.outputs);
    std::vector<double> unit;
    for (size_t term = 0; low != 0 && term < sizes_.weight_terms.size(); ++term)
      for (size_t output = 0; output < outputs; ++output)
        unit.push_back(static_cast<double>(affine_.scale[(term * steps.size() + main) * outputs + output]) /
                       static_cast<double>(steps[main]));
    std::vector<int64_t> sums = low == 0 ? std::vector<int64_t>() : sum_taps(sizes_, bits);
    borders_ = std::make_unique<Borders>(sizes_, affine_, low, std::move(unit), std::move(sums), compares_);
  }

  // Rows (..., 1, strips, bytes) are an image of one row.
  static Sizes flat(const Call& call, const Sizes& sizes) {
    call.require(sizes.size() >= 3, "its codes have the shape " + text(sizes));
    const Sizes leading(sizes.begin(), sizes.end() - 3);
    Sizes made{1, 1, count(leading)};
    made.insert(made.end(), sizes.end() - 3, sizes.end());
    return made;
  }

  static int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  }

  void require_image(const Call& call, const Conv2d& conv) const {
    if (!kind_.image && conv.w == 0) return;
    const int64_t strips = sizes_.groups * geometry_.activation_strips;
    call.require(conv.out_h >= 1 && conv.out_w >= 1 && conv.h >= 1 && conv.w >= 1,
                 "an image of " + std::to_string(conv.h) + "x" + std::to_string(conv.w) + " is too small");
    call.require(product_fits({conv.h + 2 * sizes_.padding_h, conv.w + 2 * sizes_.padding_w, strips, geometry_.words}),
                 "an image of " + std::to_string(conv.h) + "x" + std::to_string(conv.w) + " is too large");
  }

  Sizes value_sizes(const Conv2d& conv, const Sizes& x, bool inner) const {
    if (kind_.image)
      return inner ? Sizes{conv.n, conv.out_h, conv.out_w, sizes_.outputs}
                   : Sizes{conv.n, sizes_.outputs, conv.out_h, conv.out_w};
    Sizes made(x.begin(), x.end() - 3);
    made.push_back(sizes_.outputs);
    return made;
  }

  size_t value_bytes(const Conv2d& conv) const {
    return static_cast<size_t>(conv.n * conv.out_h * conv.out_w * sizes_.outputs) * 4;
  }

  const float* residual(const Call& call, const Conv2d& conv, const Sizes& x) const {
    const Tensor given = call.input(4);
    const Sizes wanted = value_sizes(conv, x, residual_inner_);
    call.require(given.sizes == wanted, "its residual has the shape " + text(given.sizes) + ", not " + text(wanted));
    const int64_t pixels = conv.out_h * conv.out_w;
    if (!kind_.image || residual_inner_ || pixels == 1) return given.as<float>();
    float* turned = static_cast<float*>(held(Held::residual, value_bytes(conv)));
    transpose<float>({given.as<float>(), turned, conv.n, sizes_.outputs, pixels, sizes_.outputs}, conv.threads);
    return turned;
  }

  void run(const Call& call, const Conv2d& conv) const {
    const binarize::Status status = level_->conv2d(conv);
    call.require(status != binarize::Status::no_memory, "there is no memory");
    call.require(status == binarize::Status::ok, "a border class lies outside its tables");
  }

  void run_values(const Call& call, Conv2d& conv, const Sizes& x) const {
    float* out = static_cast<float*>(call.output(value_sizes(conv, x, inner_)));
    const int64_t pixels = conv.out_h * conv.out_w;
    const bool turns = kind_.image && !inner_ && pixels > 1;
    conv.values = turns ? static_cast<float*>(held(Held::values, value_bytes(conv))) : out;
    run(call, conv);
    if (turns) transpose<float>({conv.values, out, conv.n, pixels, sizes_.outputs, pixels}, conv.threads);
  }

  Sizes code_sizes(const Conv2d& conv) const {
    const Form& form = reader_->form();
    return {conv.n, conv.out_h, conv.out_w, form.groups, form.strips, form.bytes(sizes_.outputs)};
  }

  void run_comparison(const Call& call, Conv2d& conv, const Tables& tables) const {
    const Sizes sizes = code_sizes(conv);
    conv.digits = static_cast<uint32_t*>(call.output(sizes));
    memset(conv.digits, 0, static_cast<size_t>(count(sizes)));
    conv.thresholds = tables.thresholds.data();
    conv.flip = flips_.data();
    run(call, conv);
  }

  void run_codes(const Call& call, Conv2d& conv) const {
    const Form& form = reader_->form();
    const Sizes sizes = code_sizes(conv);
    void* out = call.output(sizes);
    const int64_t per_group = sizes_.outputs / form.groups, full = form.bytes(sizes_.outputs);
    if (!form.codes || !reader_->is_uniform() || (form.groups > 1 && full != per_group)) {
      conv.values = static_cast<float*>(held(Held::values, value_bytes(conv)));
      run(call, conv);
      reader_->run(conv.values, conv.n, conv.out_h * conv.out_w, sizes_.outputs, true, out);
      return;
    }
    if (full != per_group) memset(out, 0, static_cast<size_t>(count(sizes)));
    conv.codes = static_cast<uint8_t*>(out);
    conv.code_depth = form.groups * full;
    conv.low = reader_->low();
    conv.inverse_step = reader_->inverse_step();
    conv.top = static_cast<float>((1 << reader_->planes()) - 1);
    run(call, conv);
  }

  const LayerKind kind_;
  const LayerSizes sizes_;
  const Affine affine_;
  const bool codes_;
  const Level* const level_;
  const Geometry geometry_;
  const bool residual_inner_, inner_;
  bool compares_ = false;
  Words weight_;
  std::vector<uint8_t> flips_;
  std::unique_ptr<Packing> reader_;
  std::unique_ptr<Borders> borders_;
};

}  // namespace

std::unique_ptr<Kernel> make_layer(const Node& node, LayerKind kind) { return std::make_unique<Layer>(node, kind); }

}  // namespace binarize::ort
