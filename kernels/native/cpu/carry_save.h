// Popcounts where no instruction counts the bits of a lane: two words of a lane are added as bits first, so that one
// look-up of nibbles serves both. Counts of bytes are widened before they can exceed 255: a carry has at most 8 set
// bits in a byte, so after kMostAdditions pairs at the latest.
//
// V is a struct of static functions on one kind of vector
//   Vector, kWidth           32-bit lanes in it, a divisor of 16
//   zero, load, broadcast    a word of a pixel in every lane
//   both(a, b)               a & b
//   add_bits(ones, a, b)     adds two bits to `ones`, in place; returns the carry
//   popcount                 of each byte
//   add_bytes, add_words     lane by lane
//   sum_bytes                of each lane
//   store
#pragma once

#include "tile.h"

namespace binarize {
namespace {

constexpr int kMostAdditions = 31;

// Counts of P pixels for the channels of one vector: carries count twice, ones once.
template <class V, int P>
struct CarrySaveCounter {
  typename V::Vector pairs[P], carries[P], ones[P];
  int room = kMostAdditions;

  CarrySaveCounter() {
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) pairs[pixel] = carries[pixel] = ones[pixel] = V::zero();
  }

  void widen() {
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) {
      pairs[pixel] = V::add_words(pairs[pixel], V::sum_bytes(carries[pixel]));
      carries[pixel] = V::zero();
    }
    room = kMostAdditions;
  }

  __attribute__((always_inline)) void add(const uint32_t* const* digits, const uint32_t* weight, int words) {
    for (int word = 0; word < words; word += 2, weight += kPairWords) {
      const auto first_signs = V::load(weight), second_signs = V::load(weight + 16);
#pragma GCC unroll 8
      for (int pixel = 0; pixel < P; ++pixel) {
        const auto first = V::both(V::broadcast(digits[pixel] + word), first_signs);
        const auto second = V::both(V::broadcast(digits[pixel] + word + 1), second_signs);
        const auto carry = V::add_bits(ones[pixel], first, second);
        carries[pixel] = V::add_bytes(carries[pixel], V::popcount(carry));
      }
    }
  }

  void close() {
    widen();
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel) {
      const auto twice = V::add_words(pairs[pixel], pairs[pixel]);
      pairs[pixel] = V::add_words(twice, V::sum_bytes(V::popcount(ones[pixel])));
      ones[pixel] = V::zero();
    }
  }
};

// The counts of P pixels for the channels of one vector, from `lane` on.
template <class V, int P>
void count_carry_save(const Operands& operands, const uint32_t* const* pixels, int lane, uint32_t (*counts)[kLanes]) {
  CarrySaveCounter<V, P> counter;
  for (int index = 0; index < operands.pass_count; ++index) {
    const Pass& pass = operands.passes[index];
    const uint32_t* weight = operands.weight + pass.weight + lane / 16 * 32 + lane % 16;
    for (int run = 0; run < operands.run_count; ++run) {
      const uint32_t* digits[P];
#pragma GCC unroll 8
      for (int pixel = 0; pixel < P; ++pixel) digits[pixel] = pixels[pixel] + pass.digits + operands.runs[run].offset;
      for (int left = operands.runs[run].words; left > 0;) {
        const int words = left < 2 * counter.room ? left : 2 * counter.room;
        counter.add(digits, weight, words);
        weight += words / 2 * kPairWords;
        left -= words;
        counter.room -= words / 2;
        if (counter.room == 0) counter.widen();
#pragma GCC unroll 8
        for (int pixel = 0; pixel < P; ++pixel) digits[pixel] += words;
      }
    }
    if (pass.closes) counter.close();
  }
#pragma GCC unroll 8
  for (int pixel = 0; pixel < P; ++pixel) V::store(counts[pixel] + lane, counter.pairs[pixel]);
}

}  // namespace
}  // namespace binarize
