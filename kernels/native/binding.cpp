// The only native file that knows Python. Tensors arrive as addresses that ops.py has checked; the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <vector>

#include "binding.h"
#include "dispatch.h"
#include "threads.h"

namespace nb = nanobind;
using namespace binarize;

namespace {

using Ints = std::vector<int>;

int set_terms(const Ints& terms, int* planes) {
  int total = 0;
  for (size_t i = 0; i < terms.size(); ++i) total += planes[i] = terms[i];
  return total;
}

Geometry make_geometry(bool codes, int narrow, int groups, int words, int out_channels, const Ints& window,
                       const Ints& weight_terms, const Ints& activation_terms) {
  const auto fits = [](const Ints& terms) { return !terms.empty() && terms.size() <= kMaxPlanes; };
  if (window.size() != 8 || !fits(weight_terms) || !fits(activation_terms)) throw nb::value_error("bad geometry");
  Geometry g{};
  g.codes = codes;
  g.narrow = narrow;
  g.groups = groups;
  g.words = words;
  g.out_channels = out_channels;
  int* const fields[] = {&g.kernel_h,  &g.kernel_w,  &g.stride_h,   &g.stride_w,
                         &g.padding_h, &g.padding_w, &g.dilation_h, &g.dilation_w};
  for (size_t i = 0; i < 8; ++i) *fields[i] = window[i];
  g.weight_terms = static_cast<int>(weight_terms.size());
  g.activation_terms = static_cast<int>(activation_terms.size());
  g.weight_strips = set_terms(weight_terms, g.weight_planes);
  g.activation_strips = set_terms(activation_terms, g.activation_planes);
  if (codes) {
    g.weight_strips = g.weight_terms;
    g.activation_strips = g.activation_terms;
  }
  return g;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Conv2d make_call(const Geometry& g, int64_t n, int64_t h, int64_t w, int64_t out_h, int64_t out_w, uintptr_t x,
                 uintptr_t weight, int threads) {
  Conv2d call{};
  call.geometry = &g;
  call.n = n;
  call.h = h;
  call.w = w;
  call.out_h = out_h;
  call.out_w = out_w;
  call.x = at<const uint32_t>(x);
  call.weight = at<const uint32_t>(weight);
  call.threads = threads;
  return call;
}

int status_of(Status status) {
  if (status == Status::no_memory) throw std::bad_alloc();
  return static_cast<int>(status);
}

int run_conv2d(int level, const Conv2d& call) {
  nb::gil_scoped_release released;
  return status_of(kLevels[level].conv2d(call));
}

int conv2d_integer(int level, const Geometry& g, int64_t n, int64_t h, int64_t w, int64_t out_h, int64_t out_w,
                   uintptr_t x, uintptr_t weight, int threads, uintptr_t out) {
  Conv2d call = make_call(g, n, h, w, out_h, out_w, x, weight, threads);
  call.integers = at<int32_t>(out);
  return run_conv2d(level, call);
}

void set_affine(Conv2d& call, uintptr_t scale, uintptr_t bias, int64_t classes, uintptr_t row_class,
                uintptr_t column_class, uintptr_t residual, double minimum, double maximum) {
  call.scale = at<const float>(scale);
  call.bias = at<const float>(bias);
  call.classes = classes;
  call.row_class = at<const int32_t>(row_class);
  call.column_class = at<const int32_t>(column_class);
  call.residual = at<const float>(residual);
  call.minimum = static_cast<float>(minimum);
  call.maximum = static_cast<float>(maximum);
}

int conv2d_values(int level, const Geometry& g, int64_t n, int64_t h, int64_t w, int64_t out_h, int64_t out_w,
                  uintptr_t x, uintptr_t weight, int threads, uintptr_t out, uintptr_t scale, uintptr_t bias,
                  int64_t classes, uintptr_t row_class, uintptr_t column_class, uintptr_t residual, double minimum,
                  double maximum) {
  Conv2d call = make_call(g, n, h, w, out_h, out_w, x, weight, threads);
  set_affine(call, scale, bias, classes, row_class, column_class, residual, minimum, maximum);
  call.values = at<float>(out);
  return run_conv2d(level, call);
}

int conv2d_codes(int level, const Geometry& g, int64_t n, int64_t h, int64_t w, int64_t out_h, int64_t out_w,
                 uintptr_t x, uintptr_t weight, int threads, uintptr_t out, uintptr_t scale, uintptr_t bias,
                 int64_t classes, uintptr_t row_class, uintptr_t column_class, uintptr_t residual, double minimum,
                 double maximum, int64_t code_depth, double low, double inverse_step, int bits) {
  Conv2d call = make_call(g, n, h, w, out_h, out_w, x, weight, threads);
  set_affine(call, scale, bias, classes, row_class, column_class, residual, minimum, maximum);
  call.codes = at<uint8_t>(out);
  call.code_depth = code_depth;
  call.low = static_cast<float>(low);
  call.inverse_step = static_cast<float>(inverse_step);
  call.top = static_cast<float>((1 << bits) - 1);
  return run_conv2d(level, call);
}

int conv2d_threshold(int level, const Geometry& g, int64_t n, int64_t h, int64_t w, int64_t out_h, int64_t out_w,
                     uintptr_t x, uintptr_t weight, int threads, uintptr_t out, uintptr_t thresholds, uintptr_t flip,
                     int64_t classes, uintptr_t row_class, uintptr_t column_class) {
  Conv2d call = make_call(g, n, h, w, out_h, out_w, x, weight, threads);
  call.digits = at<uint32_t>(out);
  call.thresholds = at<const int32_t>(thresholds);
  call.flip = at<const uint8_t>(flip);
  call.classes = classes;
  call.row_class = at<const int32_t>(row_class);
  call.column_class = at<const int32_t>(column_class);
  return run_conv2d(level, call);
}

int pack(int level, uintptr_t x, uintptr_t out, bool codes, int64_t n, int64_t pixels, int64_t channels, int groups,
         int planes, int words, bool channels_last, double low, double inverse_step, uintptr_t thresholds,
         bool thresholds_shared, int threads) {
  const Pack call{at<const float>(x),
                  codes ? nullptr : at<uint32_t>(out),
                  codes ? at<uint8_t>(out) : nullptr,
                  n,
                  pixels,
                  channels,
                  groups,
                  planes,
                  words,
                  channels_last,
                  static_cast<float>(low),
                  static_cast<float>(inverse_step),
                  at<const float>(thresholds),
                  thresholds_shared,
                  threads};
  nb::gil_scoped_release released;
  return status_of(kLevels[level].pack(call));
}

nb::list levels() {
  nb::list rows;
  for (int i = 0; i < kLevelCount; ++i)
    rows.append(nb::make_tuple(kLevels[i].name, kLevels[i].runs_here(), kLevels[i].planes, kLevels[i].codes));
  return rows;
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Compiled kernels; called through binarize.kernels.ops, which checks what it passes.";
  nb::set_leak_warnings(false);  // the cache of geometries lives as long as the process
  nb::class_<Geometry>(module, "Geometry");
  module.def("geometry", make_geometry);
  module.def("levels", levels);
  module.def("has_threads", has_threads);
  module.def("conv2d_integer", conv2d_integer);
  module.def("conv2d_values", conv2d_values);
  module.def("conv2d_codes", conv2d_codes);
  module.def("conv2d_threshold", conv2d_threshold);
  module.def("pack", pack);
  bind_schedule(module);
}
