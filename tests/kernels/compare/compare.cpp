// Runs the kernels of one level and the scalar ones on random problems and compares every bit of what they give.
// Built by test_neon.py, for another kind of CPU, and by test_amx.py. Arguments: number of problems, seed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <array>
#include <random>
#include <vector>

#include "dense.h"
#include "dispatch.h"

using namespace binarize;

namespace {

std::mt19937 generator;

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float real() { return std::normal_distribution<float>(0, 2)(generator); }

template <class T, class Draw>
std::vector<T> filled(int64_t count, Draw next) {
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(next());
  return values;
}

std::vector<float> reals(int64_t count) {
  return filled<float>(count, [] { return draw(0, 20) == 0 ? __builtin_nanf("") : real(); });
}

template <class T>
bool same(const char* what, const std::vector<T>& a, const std::vector<T>& b) {
  if (memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0) return true;
  size_t at = 0;
  while (memcmp(&a[at], &b[at], sizeof(T)) == 0) ++at;
  printf("%s: value %zu of %zu differs: %g, not %g\n", what, at, a.size(), static_cast<double>(a[at]),
         static_cast<double>(b[at]));
  return false;
}

// A window on an image that it fits in.
template <class Window>
void draw_window(Window& g, int64_t& h, int64_t& w, int64_t& out_h, int64_t& out_w) {
  g.kernel_h = draw(1, 5), g.kernel_w = draw(1, 5), g.stride_h = draw(1, 3), g.stride_w = draw(1, 3);
  g.padding_h = draw(0, 3), g.padding_w = draw(0, 3), g.dilation_h = draw(1, 2), g.dilation_w = draw(1, 2);
  h = g.dilation_h * (g.kernel_h - 1) + 1 + draw(0, 6);
  w = g.dilation_w * (g.kernel_w - 1) + 1 + draw(0, 12);
  out_h = (h + 2 * g.padding_h - g.dilation_h * (g.kernel_h - 1) - 1) / g.stride_h + 1;
  out_w = (w + 2 * g.padding_w - g.dilation_w * (g.kernel_w - 1) - 1) / g.stride_w + 1;
}

bool conv2d(const Level& level, const Level& plain) {
  Geometry g{};
  Conv2d call{};
  g.codes = draw(0, 1) == 1 || !level.planes;
  g.groups = draw(1, 2), g.out_channels = draw(1, 70), g.words = g.codes ? draw(1, 30) : 2 * draw(1, 8);
  draw_window(g, call.h, call.w, call.out_h, call.out_w);
  g.weight_terms = draw(1, 3), g.activation_terms = draw(1, 3);
  if (g.codes) g.narrow = std::array{0, 1, 2, 4}[static_cast<size_t>(draw(0, 3))];
  const int planes = g.narrow > 0 ? g.narrow : 4;
  for (int term = 0; term < g.weight_terms; ++term) g.weight_planes[term] = draw(term == 0, planes);
  for (int term = 0; term < g.activation_terms; ++term) g.activation_planes[term] = draw(1, 4);
  for (int term = 0; term < g.weight_terms; ++term) g.weight_strips += g.codes ? 1 : g.weight_planes[term];
  for (int term = 0; term < g.activation_terms; ++term) g.activation_strips += g.codes ? 1 : g.activation_planes[term];
  const int64_t channels = static_cast<int64_t>(g.groups) * g.out_channels, blocks = (g.out_channels + 31) / 32;
  const auto word = [] { return generator(); };
  call.geometry = &g;
  call.n = draw(1, 2), call.threads = draw(1, 3);
  const auto x = filled<uint32_t>(call.n * call.h * call.w * g.groups * g.activation_strips * g.words, word);
  const auto weight = filled<uint32_t>(
      static_cast<int64_t>(g.groups) * g.weight_strips * blocks * g.kernel_h * g.kernel_w * g.words * 32, word);
  const int terms = g.weight_terms * g.activation_terms;
  const int64_t pixels = call.n * call.out_h * call.out_w;
  const auto scale = filled<float>(terms * channels, real), bias = filled<float>(3 * channels, real);
  const auto residual = filled<float>(pixels * channels, real);
  const auto rows = filled<int32_t>(call.out_h, [] { return draw(0, 1); });
  const auto columns = filled<int32_t>(call.out_w, [] { return draw(0, 1); });
  const auto thresholds = filled<int32_t>(3 * channels, [] { return draw(-300, 300); });
  const auto flip = filled<uint8_t>(channels, [] { return draw(0, 1); });
  call.x = x.data(), call.weight = weight.data(), call.scale = scale.data(), call.bias = bias.data();
  call.row_class = rows.data(), call.column_class = columns.data(), call.classes = 3;
  call.thresholds = thresholds.data(), call.flip = flip.data();
  call.minimum = -50, call.maximum = 1e6f;
  call.code_depth = channels, call.low = -20, call.inverse_step = 0.4f, call.top = 15;

  bool good = true;
  const auto both = [&](const char* what, auto& out, auto member) {
    auto wanted = out;
    Conv2d mine = call, theirs = call;
    mine.*member = out.data();
    theirs.*member = wanted.data();
    good &= level.conv2d(mine) == Status::ok && plain.conv2d(theirs) == Status::ok && same(what, out, wanted);
  };
  std::vector<int32_t> integers(static_cast<size_t>(pixels * terms * channels));
  both("integers", integers, &Conv2d::integers);
  if (draw(0, 1) == 1) call.residual = residual.data();
  std::vector<float> values(static_cast<size_t>(pixels * channels));
  both("values", values, &Conv2d::values);
  std::vector<uint8_t> codes(static_cast<size_t>(pixels * channels));
  both("codes", codes, &Conv2d::codes);
  if (terms > 1) return good;
  std::vector<uint32_t> digits(static_cast<size_t>(pixels * ((channels + 63) / 64 * 2)));
  both("digits", digits, &Conv2d::digits);
  return good;
}

bool pack(const Level& level, const Level& plain) {
  Pack call{};
  call.n = draw(1, 2), call.pixels = draw(1, 90), call.groups = draw(1, 2), call.channels = call.groups * draw(1, 90);
  call.planes = draw(1, 8), call.channels_last = draw(0, 1) == 1, call.threads = 1;
  call.low = -3, call.inverse_step = 7.3f;
  const int64_t each = call.channels / call.groups;
  const auto x = reals(call.n * call.pixels * call.channels);
  const auto thresholds = filled<float>(call.planes * call.channels, real);
  call.x = x.data();
  if (draw(0, 1) == 1) call.thresholds = thresholds.data();
  call.thresholds_shared = draw(0, 1) == 1;
  const int64_t strips = call.n * call.pixels * call.groups * call.planes;
  bool good = true;
  call.words = static_cast<int>((each + 63) / 64 * 2);
  std::vector<uint32_t> digits(static_cast<size_t>(strips * call.words)), wanted = digits;
  Pack mine = call, theirs = call;
  mine.out = digits.data(), theirs.out = wanted.data();
  good &= level.pack(mine) == Status::ok && plain.pack(theirs) == Status::ok && same("planes", digits, wanted);
  call.words = static_cast<int>((each + 3) / 4);
  std::vector<uint8_t> codes(static_cast<size_t>(strips * 4 * call.words)), wanted_codes = codes;
  mine = theirs = call;
  mine.codes = codes.data(), theirs.codes = wanted_codes.data();
  return level.pack(mine) == Status::ok && plain.pack(theirs) == Status::ok &&
         same("codes of floats", codes, wanted_codes) && good;
}

bool dense(const DenseLevel& level, const DenseLevel& plain) {
  DenseConv2d call{};
  Pool pool{};
  draw_window(call, call.h, call.w, call.out_h, call.out_w);
  call.n = draw(1, 2), call.groups = draw(1, 2), call.channels = draw(1, 20), call.out_channels = draw(1, 70);
  if (draw(0, 3) == 0) call.groups = draw(2, 40), call.channels = call.out_channels = 1;
  call.channels_last = true, call.threads = 1, call.minimum = -4, call.maximum = 9;
  const int64_t inputs = static_cast<int64_t>(call.groups) * call.channels;
  const int64_t outputs = static_cast<int64_t>(call.groups) * call.out_channels;
  const int64_t blocks = (call.out_channels + 31) / 32, taps = call.kernel_h * call.kernel_w;
  const auto x = reals(call.n * call.h * call.w * inputs);
  const auto weight = filled<float>(call.groups * blocks * taps * call.channels * 32, real);
  const auto bias = filled<float>(outputs, real);
  call.x = x.data(), call.weight = weight.data(), call.bias = bias.data();
  std::vector<float> seen(static_cast<size_t>(call.n * call.out_h * call.out_w * outputs)), wanted = seen;
  DenseConv2d mine = call, theirs = call;
  mine.out = seen.data(), theirs.out = wanted.data();
  bool good = level.conv2d(mine) == Status::ok && plain.conv2d(theirs) == Status::ok;
  for (size_t i = 0; i < seen.size(); ++i)  // a NaN is a NaN, whatever its bits
    if (seen[i] != seen[i] && wanted[i] != wanted[i]) seen[i] = wanted[i] = 0;
  good = good && same("float convolution", seen, wanted);

  draw_window(pool, pool.h, pool.w, pool.out_h, pool.out_w);
  pool.padding_h = pool.padding_w = 0;
  pool.out_h = (pool.h - pool.dilation_h * (pool.kernel_h - 1) - 1) / pool.stride_h + 1;
  pool.out_w = (pool.w - pool.dilation_w * (pool.kernel_w - 1) - 1) / pool.stride_w + 1;
  pool.n = 1, pool.channels = draw(1, 40), pool.threads = 1, pool.largest = draw(0, 1) == 1;
  const auto map = reals(pool.h * pool.w * pool.channels);
  std::vector<float> pooled(static_cast<size_t>(pool.out_h * pool.out_w * pool.channels)), wanted_pooled = pooled;
  Pool my_pool = pool, their_pool = pool;
  my_pool.x = their_pool.x = map.data(), my_pool.out = pooled.data(), their_pool.out = wanted_pooled.data();
  good &= level.pool(my_pool) == Status::ok && plain.pool(their_pool) == Status::ok;
  for (size_t i = 0; i < pooled.size(); ++i)
    if (pooled[i] != pooled[i] && wanted_pooled[i] != wanted_pooled[i]) pooled[i] = wanted_pooled[i] = 0;
  return same("pooling", pooled, wanted_pooled) && good;
}

}  // namespace

int main(int count, char** words) {
  const int problems = count > 1 ? atoi(words[1]) : 100;
  const unsigned seed = count > 2 ? static_cast<unsigned>(atoi(words[2])) : 0;
  const Level &level = kLevels[0], &plain = kLevels[kLevelCount - 1];
  const DenseLevel &dense_level = kDenseLevels[0], &dense_plain = kDenseLevels[kDenseLevelCount - 1];
  printf("%s and %s against %s\n", level.name, dense_level.name, plain.name);
  for (int problem = 0; problem < problems; ++problem) {
    generator.seed(seed + static_cast<unsigned>(problem));
    if (conv2d(level, plain) && pack(level, plain) && dense(dense_level, dense_plain)) continue;
    printf("problem %d of seed %u\n", problem, seed);
    return 1;
  }
  return 0;
}
