#include "borders.h"

#include <limits>

namespace binarize::ort {
namespace {

constexpr size_t kMostSizes = 8;

// The taps [first, last) of one axis that lie inside the image, the same for all outputs of a class.
struct Range {
  int64_t first, last;
  bool operator==(const Range& other) const { return first == other.first && last == other.last; }
};

Range inside(int64_t start, int64_t size, int64_t kernel, int64_t dilation) {
  int64_t first = 0, last = kernel;
  while (first < kernel && start + first * dilation < 0) ++first;
  while (last > first && start + (last - 1) * dilation >= size) --last;
  return first == last ? Range{0, 0} : Range{first, last};
}

std::vector<Range> classify(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t padding,
                            int64_t dilation, std::vector<int32_t>& classes) {
  std::vector<Range> ranges;
  for (int64_t place = 0; place < out; ++place) {
    const Range range = inside(place * stride - padding, size, kernel, dilation);
    size_t index = 0;
    while (index < ranges.size() && !(ranges[index] == range)) ++index;
    if (index == ranges.size()) ranges.push_back(range);
    classes.push_back(static_cast<int32_t>(index));
  }
  return ranges;
}

}  // namespace

Borders::Borders(const LayerSizes& sizes, const Affine& affine, double low, std::vector<double> unit,
                 std::vector<int64_t> tap_sums, bool compares)
    : sizes_(sizes),
      affine_(affine),
      low_(low),
      unit_(std::move(unit)),
      tap_sums_(std::move(tap_sums)),
      compares_(compares) {
  if (low_ == 0 || (sizes.padding_h == 0 && sizes.padding_w == 0)) only_ = make(0, 0, 0, 0);
}

std::shared_ptr<const Tables> Borders::tables(int64_t h, int64_t w, int64_t out_h, int64_t out_w) const {
  if (only_ != nullptr) return only_;
  {
    const std::lock_guard<std::mutex> lock(guard_);
    for (const Known& known : known_)
      if (known.h == h && known.w == w) return known.tables;
  }
  std::shared_ptr<const Tables> made = make(h, w, out_h, out_w);
  const std::lock_guard<std::mutex> lock(guard_);
  if (known_.size() == kMostSizes) known_.erase(known_.begin());
  known_.push_back({h, w, made});
  return made;
}

// The share of `low` is added in float64 to whole sums, term after term: the order of binarize.layers.packed.
std::shared_ptr<const Tables> Borders::make(int64_t h, int64_t w, int64_t out_h, int64_t out_w) const {
  auto made = std::make_shared<Tables>();
  const size_t outputs = static_cast<size_t>(sizes_.outputs), taps = static_cast<size_t>(sizes_.taps());
  std::vector<Range> rows{{0, sizes_.kernel_h}}, columns{{0, sizes_.kernel_w}};
  if (out_h > 0) {
    rows = classify(h, out_h, sizes_.kernel_h, sizes_.stride_h, sizes_.padding_h, sizes_.dilation_h, made->rows);
    columns = classify(w, out_w, sizes_.kernel_w, sizes_.stride_w, sizes_.padding_w, sizes_.dilation_w, made->columns);
    for (int32_t& row : made->rows) row *= static_cast<int32_t>(columns.size());
  }
  made->classes = static_cast<int64_t>(rows.size() * columns.size());
  made->bias.reserve(static_cast<size_t>(made->classes) * outputs);
  for (const Range& row : rows)
    for (const Range& column : columns)
      for (size_t output = 0; output < outputs; ++output) {
        if (low_ == 0) {
          made->bias.push_back(affine_.bias[output]);
          continue;
        }
        double total = 0;
        for (size_t term = 0; term < sizes_.weight_terms.size(); ++term) {
          const int64_t* sums = tap_sums_.data() + (term * outputs + output) * taps;
          int64_t whole = 0;
          for (int64_t y = row.first; y < row.last; ++y)
            for (int64_t x = column.first; x < column.last; ++x) whole += sums[y * sizes_.kernel_w + x];
          total += unit_[term * outputs + output] * static_cast<double>(whole);
        }
        made->bias.push_back(static_cast<float>(static_cast<double>(affine_.bias[output]) + low_ * total));
      }
  if (compares_) compare(*made);
  return made;
}

// The whole number at which the digit changes, by bisecting the float32 expression that the comparison replaces.
void Borders::compare(Tables& tables) const {
  const size_t outputs = static_cast<size_t>(sizes_.outputs);
  const int64_t most =
      sizes_.depth() * ((int64_t{1} << sizes_.weight_terms[0]) - 1) * ((int64_t{1} << sizes_.activation_terms[0]) - 1);
  const bool shared = affine_.thresholds.size() == 1;
  for (size_t at = 0; at < tables.bias.size(); ++at) {
    const size_t output = at % outputs;
    const float scale = affine_.scale[output], bias = tables.bias[at];
    const float threshold = affine_.thresholds[shared ? 0 : output];
    const auto digit = [&](float sum) {
      const float product = scale * sum;
      float y = bias + product;
      y = affine_.minimum > y ? affine_.minimum : y;
      y = affine_.maximum < y ? affine_.maximum : y;
      return !(y < threshold);
    };
    int64_t below = -most - 1, above = most + 1;
    while (above - below > 1) {
      const int64_t middle = below + (above - below) / 2;
      (digit(static_cast<float>(middle)) != (scale < 0) ? above : below) = middle;
    }
    if (scale == 0) above = digit(0.0f) ? std::numeric_limits<int32_t>::min() : std::numeric_limits<int32_t>::max();
    tables.thresholds.push_back(static_cast<int32_t>(above));
  }
}

}  // namespace binarize::ort
