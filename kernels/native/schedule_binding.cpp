// Schedules as Python sees them. What is built here was checked in binarize/kernels/schedule.py; the GIL is released
// while one runs.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>

#include "binding.h"
#include "schedule.h"

namespace nb = nanobind;

namespace binarize {
namespace {

using Where = std::pair<int, int64_t>;
using Sizes = std::vector<int64_t>;

Place place_of(const Where& where) {
  Place place;
  place.kind = where.first;
  place.value = where.second;
  return place;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void require(bool fits, const char* what) {
  if (!fits) throw nb::value_error(what);
}

// Tables: scale, bias (or thresholds), flip, row classes, column classes; as addresses.
void add_conv2d(Schedule& schedule, int level, const Geometry& geometry, const Sizes& size, uintptr_t weight,
                const std::vector<uintptr_t>& tables, int64_t classes, double minimum, double maximum, int form,
                int64_t code_depth, double low, double inverse_step, int bits, Where x, Where residual, Where out,
                int64_t cleared) {
  require(size.size() == 5 && tables.size() == 5 && level >= 0 && level < kLevelCount, "bad step");
  Conv2d call{};
  call.n = size[0];
  call.h = size[1];
  call.w = size[2];
  call.out_h = size[3];
  call.out_w = size[4];
  call.weight = at<const uint32_t>(weight);
  const bool digits = static_cast<Form>(form) == Form::digits;
  call.scale = at<const float>(tables[0]);
  call.bias = digits ? nullptr : at<const float>(tables[1]);
  call.thresholds = digits ? at<const int32_t>(tables[1]) : nullptr;
  call.flip = at<const uint8_t>(tables[2]);
  call.row_class = at<const int32_t>(tables[3]);
  call.column_class = at<const int32_t>(tables[4]);
  call.classes = classes;
  call.minimum = static_cast<float>(minimum);
  call.maximum = static_cast<float>(maximum);
  call.code_depth = code_depth;
  call.low = static_cast<float>(low);
  call.inverse_step = static_cast<float>(inverse_step);
  call.top = static_cast<float>((1 << bits) - 1);
  schedule.add(conv_step(level, geometry, call, static_cast<Form>(form), place_of(x), place_of(residual), place_of(out),
                         cleared));
}

Pack pack_of(int level, const Sizes& size, int groups, int planes, int words, bool channels_last, double low,
             double inverse_step, uintptr_t thresholds, bool shared) {
  require(size.size() == 3 && level >= 0 && level < kLevelCount, "bad step");
  Pack call{};
  call.n = size[0];
  call.pixels = size[1];
  call.channels = size[2];
  call.groups = groups;
  call.planes = planes;
  call.words = words;
  call.channels_last = channels_last;
  call.low = static_cast<float>(low);
  call.inverse_step = static_cast<float>(inverse_step);
  call.thresholds = at<const float>(thresholds);
  call.thresholds_shared = shared;
  return call;
}

void add_pack(Schedule& schedule, int level, bool codes, const Sizes& size, int groups, int planes, int words,
              bool channels_last, double low, double inverse_step, uintptr_t thresholds, bool shared, Where x,
              Where out) {
  const Pack call = pack_of(level, size, groups, planes, words, channels_last, low, inverse_step, thresholds, shared);
  schedule.add(pack_step(level, call, codes, place_of(x), place_of(out)));
}

// Window: kernel, stride, padding and dilation, rows before columns.
template <class Call>
void set_window(Call& call, const Sizes& size, const std::vector<int>& window) {
  require(size.size() == 5 && window.size() == 8, "bad step");
  call.n = size[0];
  call.h = size[1];
  call.w = size[2];
  call.out_h = size[3];
  call.out_w = size[4];
  int* const fields[] = {&call.kernel_h,  &call.kernel_w,  &call.stride_h,   &call.stride_w,
                         &call.padding_h, &call.padding_w, &call.dilation_h, &call.dilation_w};
  for (size_t i = 0; i < 8; ++i) *fields[i] = window[i];
}

void add_dense(Schedule& schedule, int level, const Sizes& size, const std::vector<int>& window, int groups,
               int channels, int out_channels, bool channels_last, uintptr_t weight, uintptr_t bias, double minimum,
               double maximum, Where x, Where out) {
  require(level >= 0 && level < kDenseLevelCount, "bad step");
  DenseConv2d call{};
  set_window(call, size, window);
  call.groups = groups;
  call.channels = channels;
  call.out_channels = out_channels;
  call.channels_last = channels_last;
  call.weight = at<const float>(weight);
  call.bias = at<const float>(bias);
  call.minimum = static_cast<float>(minimum);
  call.maximum = static_cast<float>(maximum);
  schedule.add(dense_step(level, call, place_of(x), place_of(out)));
}

Pool pool_of(int level, const Sizes& size, const std::vector<int>& window, int64_t channels, bool largest,
             int64_t divisor) {
  require(level >= 0 && level < kDenseLevelCount, "bad step");
  Pool call{};
  set_window(call, size, window);
  call.channels = channels;
  call.largest = largest;
  call.divisor = divisor;
  return call;
}

void add_pool(Schedule& schedule, int level, const Sizes& size, const std::vector<int>& window, int64_t channels,
              bool largest, int64_t divisor, Where x, Where out) {
  schedule.add(pool_step(level, pool_of(level, size, window, channels, largest, divisor), place_of(x), place_of(out)));
}

void add_pool_pack(Schedule& schedule, int dense, const Sizes& size, const std::vector<int>& window, int64_t channels,
                   bool largest, int64_t divisor, int level, bool codes, const Sizes& packed_size, int groups,
                   int planes, int words, double low, double inverse_step, uintptr_t thresholds, bool shared, Where x,
                   Where out, Where packed) {
  const Pool pool = pool_of(dense, size, window, channels, largest, divisor);
  const Pack pack = pack_of(level, packed_size, groups, planes, words, true, low, inverse_step, thresholds, shared);
  require(pack.channels == pool.channels && pack.n == pool.n && pack.pixels == pool.out_h * pool.out_w, "bad step");
  schedule.add(pool_pack_step(dense, pool, level, pack, codes, place_of(x), place_of(out), place_of(packed)));
}

void add_sum(Schedule& schedule, int level, int64_t count, double minimum, double maximum, double a_share,
             double b_share, Where a, Where b, Where out) {
  require(level >= 0 && level < kDenseLevelCount, "bad step");
  const Sum call{count,
                 nullptr,
                 nullptr,
                 nullptr,
                 static_cast<float>(minimum),
                 static_cast<float>(maximum),
                 static_cast<float>(a_share),
                 static_cast<float>(b_share)};
  schedule.add(sum_step(level, call, place_of(a), place_of(b), place_of(out)));
}

void add_channelwise(Schedule& schedule, int level, int64_t pixels, int64_t channels, uintptr_t scale, uintptr_t shift,
                     uintptr_t slope, double minimum, double maximum, Where x, Where out) {
  require(level >= 0 && level < kDenseLevelCount, "bad step");
  const auto floats = [](uintptr_t address) { return reinterpret_cast<const float*>(address); };
  const Channelwise call{pixels,
                         channels,
                         nullptr,
                         floats(scale),
                         floats(shift),
                         floats(slope),
                         nullptr,
                         static_cast<float>(minimum),
                         static_cast<float>(maximum)};
  schedule.add(channelwise_step(level, call, place_of(x), place_of(out)));
}

void add_placing(Schedule& schedule, int64_t rows, int64_t width, int64_t stride, int64_t offset, Where x, Where out) {
  schedule.add(placing_step({rows, width, stride, nullptr, nullptr}, place_of(x), place_of(out), offset));
}

void add_transpose(Schedule& schedule, int level, int64_t n, int64_t rows, int64_t columns, Where x, Where out) {
  require(level >= 0 && level < kDenseLevelCount, "bad step");
  const Transpose call{n, rows, columns, nullptr, nullptr};
  schedule.add(transpose_step(level, call, place_of(x), place_of(out)));
}

int run(const Schedule& schedule, uintptr_t arena, const std::vector<uintptr_t>& inputs,
        const std::vector<uintptr_t>& outputs, int threads) {
  Status status;
  {
    nb::gil_scoped_release released;
    status = schedule.run({at<char>(arena), inputs, outputs, threads});
  }
  if (status == Status::no_memory) throw std::bad_alloc();
  return static_cast<int>(status);
}

std::vector<int64_t> run_timed(const Schedule& schedule, uintptr_t arena, const std::vector<uintptr_t>& inputs,
                               const std::vector<uintptr_t>& outputs, int threads) {
  std::vector<int64_t> nanoseconds;
  nb::gil_scoped_release released;
  schedule.run({at<char>(arena), inputs, outputs, threads}, &nanoseconds);
  return nanoseconds;
}

nb::list dense_levels() {
  nb::list rows;
  for (int i = 0; i < kDenseLevelCount; ++i)
    rows.append(nb::make_tuple(kDenseLevels[i].name, kDenseLevels[i].runs_here()));
  return rows;
}

}  // namespace

void bind_schedule(nb::module_& module) {
  module.def("dense_levels", dense_levels);
  nb::class_<Schedule>(module, "Schedule")
      .def(nb::init<>())
      .def("__len__", &Schedule::size)
      .def("conv2d", add_conv2d)
      .def("pack", add_pack)
      .def("dense", add_dense)
      .def("pool", add_pool)
      .def("pool_pack", add_pool_pack)
      .def("sum", add_sum)
      .def("channelwise", add_channelwise)
      .def("place", add_placing)
      .def("transpose", add_transpose)
      .def("run", run)
      .def("run_timed", run_timed);
}

}  // namespace binarize
