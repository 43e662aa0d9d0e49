#include "weights.h"

#include <stdlib.h>
#include <string.h>

namespace binarize::ort {
namespace {

constexpr int64_t kBlock = 32;

// Words whose every byte is `byte`.
Words filled(int64_t words, int byte) {
  const size_t bytes = (static_cast<size_t>(words) * 4 + 63) / 64 * 64;
  void* memory = aligned_alloc(64, bytes);
  if (memory == nullptr) throw Refusal{"cannot load a packed layer: there is no memory for its weight"};
  return Words(static_cast<uint32_t*>(memset(memory, byte, bytes)));
}

int64_t blocks_of(const LayerSizes& sizes) { return (sizes.outputs / sizes.groups + kBlock - 1) / kBlock; }

// Call visit(channel, tap) for every set bit of one output's plane.
template <class Visit>
void each_set(const uint8_t* row, const LayerSizes& sizes, const Visit& visit) {
  const int64_t depth = sizes.depth(), taps = sizes.taps();
  int64_t channel = 0, tap = 0;
  for (int64_t first = 0; first < depth; first += 8, ++row) {
    const int64_t left = depth - first < 8 ? depth - first : 8;
    unsigned bits = *row & ((1u << left) - 1u);
    int64_t here_channel = channel, here_tap = tap, at = 0;
    while (bits != 0) {
      const int64_t next = __builtin_ctz(bits);
      bits &= bits - 1;
      here_tap += next - at;
      at = next;
      while (here_tap >= taps) here_tap -= taps, ++here_channel;
      visit(here_channel, here_tap);
    }
    tap += 8;
    while (tap >= taps) tap -= taps, ++channel;
  }
}

}  // namespace

void Free::operator()(void* memory) const { free(memory); }

int64_t LayerSizes::weight_planes() const {
  int64_t sum = 0;
  for (const int planes : weight_terms) sum += planes;
  return sum;
}

int narrow_bits(const LayerSizes& sizes) {
  int most = 0;
  for (const int planes : sizes.weight_terms) most = planes > most ? planes : most;
  return most > 4 ? 0 : most > 2 ? 4 : most > 1 ? 2 : 1;
}

Geometry geometry_of(const LayerSizes& sizes, bool codes) {
  Geometry g{};
  g.codes = codes;
  g.narrow = codes ? narrow_bits(sizes) : 0;
  g.groups = static_cast<int>(sizes.groups);
  g.words = static_cast<int>(sizes.words(codes));
  g.out_channels = static_cast<int>(sizes.outputs / sizes.groups);
  const int64_t numbers[] = {sizes.kernel_h,  sizes.kernel_w,  sizes.stride_h,   sizes.stride_w,
                             sizes.padding_h, sizes.padding_w, sizes.dilation_h, sizes.dilation_w};
  int* const fields[] = {&g.kernel_h,  &g.kernel_w,  &g.stride_h,   &g.stride_w,
                         &g.padding_h, &g.padding_w, &g.dilation_h, &g.dilation_w};
  for (int i = 0; i < 8; ++i) *fields[i] = static_cast<int>(numbers[i]);
  for (const int planes : sizes.weight_terms) g.weight_strips += g.weight_planes[g.weight_terms++] = planes;
  for (const int planes : sizes.activation_terms)
    g.activation_strips += g.activation_planes[g.activation_terms++] = planes;
  if (codes) {
    g.weight_strips = g.weight_terms;
    g.activation_strips = g.activation_terms;
  }
  return g;
}

Words prepare_weight(const LayerSizes& sizes, const uint8_t* bits) {
  const int64_t planes = sizes.weight_planes(), blocks = blocks_of(sizes), per_group = sizes.outputs / sizes.groups;
  const int64_t pairs = sizes.words(false) / 2, taps = sizes.taps(), row_bytes = (sizes.depth() + 7) / 8;
  Words made = filled(sizes.groups * planes * blocks * taps * pairs * 64, 0);
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int64_t output = 0; output < sizes.outputs; ++output) {
      const int64_t group = output / per_group, lane = output % per_group;
      const int64_t block = (group * planes + plane) * blocks + lane / kBlock;
      uint32_t* to = made.get() + block * taps * pairs * 64 + lane % kBlock / 16 * 32 + lane % 16;
      each_set(bits + (plane * sizes.outputs + output) * row_bytes, sizes, [=](int64_t channel, int64_t tap) {
        to[(tap * pairs + channel / 64) * 64 + channel / 32 % 2 * 16] |= 1u << channel % 32;
      });
    }
  return made;
}

Words fold_weight(const LayerSizes& sizes, const uint8_t* bits) {
  const int64_t terms = static_cast<int64_t>(sizes.weight_terms.size()), blocks = blocks_of(sizes);
  const int64_t quads = sizes.words(true), taps = sizes.taps(), row_bytes = (sizes.depth() + 7) / 8;
  const int64_t per_group = sizes.outputs / sizes.groups;
  const int narrow = narrow_bits(sizes), field = narrow > 0 ? narrow : 8, bytes = 16 * field;
  const int zeros_of[] = {0, 0xff, 0xaa, 0, 0x88};  // a byte of fields of weight 0
  Words made = filled(sizes.groups * terms * blocks * taps * quads * kBlock * field / 8, zeros_of[narrow]);
  int64_t plane = 0;
  for (int64_t term = 0; term < terms; ++term) {
    const int planes = sizes.weight_terms[static_cast<size_t>(term)];
    const int half = planes == 0 ? 1 : 1 << (planes - 1);
    for (int64_t output = 0; output < sizes.outputs; ++output) {
      const int64_t group = output / per_group, lane = output % per_group;
      const int64_t block = (group * terms + term) * blocks + lane / kBlock;
      uint8_t* to = reinterpret_cast<uint8_t*>(made.get()) + block * taps * quads * bytes;
      const auto add = [=](int64_t channel, int64_t tap, int value) {
        const int64_t number = lane % kBlock * 4 + channel % 4;
        uint8_t& byte = to[(tap * quads + channel / 4) * bytes + number % bytes];
        byte = static_cast<uint8_t>(byte + value * (1 << number / bytes * field));
      };
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t channel = 0; channel < sizes.channels; ++channel) add(channel, tap, -half);
      for (int place = 0; place < planes; ++place)
        each_set(bits + ((plane + place) * sizes.outputs + output) * row_bytes, sizes,
                 [=](int64_t channel, int64_t tap) { add(channel, tap, 1 << place); });
    }
    plane += planes;
  }
  return made;
}

std::vector<int64_t> sum_taps(const LayerSizes& sizes, const uint8_t* bits) {
  const int64_t taps = sizes.taps(), row_bytes = (sizes.depth() + 7) / 8;
  std::vector<int64_t> sums;
  int64_t plane = 0;
  for (const int planes : sizes.weight_terms) {
    const int64_t all = sizes.channels * (planes == 0 ? 1 : (1 << planes) - 1);
    for (int64_t output = 0; output < sizes.outputs; ++output) {
      const size_t first = sums.size();
      sums.resize(first + static_cast<size_t>(taps), all);
      for (int place = 0; place < planes; ++place)
        each_set(bits + ((plane + place) * sizes.outputs + output) * row_bytes, sizes,
                 [&](int64_t, int64_t tap) { sums[first + static_cast<size_t>(tap)] -= 2 << place; });
    }
    plane += planes;
  }
  return sums;
}

}  // namespace binarize::ort
