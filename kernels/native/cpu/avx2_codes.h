// Codes times folded weights with registers of 256 bits, sixteen channels at a time.
//
// Products is a struct of static functions
//   kTile, kWordsPerMicrosecond   see tile.h
//   Weight, weight_at(from)       eight words of the weight, made ready
//   add(sums, codes, weight)      sums and four products in each lane
#pragma once

#include "avx2.h"

namespace binarize {
namespace {

template <class Products>
struct Avx2Codes : Avx2 {
  static constexpr int kTile = Products::kTile;
  static constexpr int kVectors = 2;
  static constexpr double kWordsPerMicrosecond = Products::kWordsPerMicrosecond;

  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int lane = 0; lane < kLanes; lane += 8 * kVectors) count_lanes<P>(operands, pixels, lane, counts);
  }

  template <int P>
  static void count_lanes(const Operands& operands, const uint32_t* const* pixels, int lane,
                          uint32_t (*counts)[kLanes]) {
    __m256i sums[P][kVectors];
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector) sums[pixel][vector] = _mm256_setzero_si256();
    for (int index = 0; index < operands.pass_count; ++index) {
      const Pass& pass = operands.passes[index];
      const uint32_t* weight = operands.weight + pass.weight + lane;
      for (int run = 0; run < operands.run_count; ++run) {
        const uint32_t* codes[P];
#pragma GCC unroll 8
        for (int pixel = 0; pixel < P; ++pixel) codes[pixel] = pixels[pixel] + pass.digits + operands.runs[run].offset;
        const int64_t words = operands.runs[run].words;
        for (int64_t word = 0; word < words; ++word, weight += kLanes) {
          const auto first = Products::weight_at(weight), second = Products::weight_at(weight + 8);
#pragma GCC unroll 8
          for (int pixel = 0; pixel < P; ++pixel) {
            const __m256i four = broadcast(codes[pixel] + word);
            sums[pixel][0] = Products::add(sums[pixel][0], four, first);
            sums[pixel][1] = Products::add(sums[pixel][1], four, second);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int pixel = 0; pixel < P; ++pixel)
#pragma GCC unroll 2
      for (int vector = 0; vector < kVectors; ++vector)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts[pixel] + lane + 8 * vector), sums[pixel][vector]);
  }
};

}  // namespace
}  // namespace binarize
