// What a level's inner kernel is given: one tile of pixels times one block of 32 output channels.
//
// A level is a struct with
//   kTile            pixels in a full tile
//   kRows            whether the rows of a tile's pixels lie at even distances: then it counts by
//                    count_rows(operands, pixels, how many, counts), between open() and close(), in place of count<P>
//   kFields          bits of the narrow weights that it multiplies as they are, by Fields::count<P>; 0 for none
//   kWordsPerMicrosecond  products of 32 binary taps per microsecond and core, for sharing out work
//   count<P>(operands, pixels, counts)   counts[p][lane]: of planes, the sum over passes of 2^weight *
//                                        popcount(digits & weight bits); of codes, the sum of code * folded weight
//   at_least(a, b)                       32 comparisons a >= b as one word
//   encode(x, low, inverse_step, top, planes, words)  digit planes of 32 values
//   encode_bytes(x, low, inverse_step, top, to)  the codes of 32 values, a byte each
//   not_below(x, thresholds)             32 comparisons !(x < threshold) as one word
// The whole of cpu/ stands in anonymous namespaces: each instruction set compiles its own copy, and the linker must
// never hand the AVX-512 copy to a machine without it. For the same reason no std:: templates are used there.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace binarize {
namespace {

constexpr int kLanes = 32;              // output channels of a block
constexpr int kMostPixels = 7;          // of the tile of a level that counts single pixels
constexpr int kPairWords = 2 * kLanes;  // weight words that two words of every lane take

// Words that are contiguous both in the activation and in the weight: one tap, or the taps of one kernel row.
struct Run {
  int32_t offset;
  int32_t words;
};

// One (digit plane, weight plane) product. Passes come by falling weight 2^(i + j); after the last of a weight the
// count is closed, and what comes next counts half as much (Horner's rule). Of codes, a pass is a pair of terms.
struct Pass {
  int64_t digits;
  int64_t weight;
  bool closes;
};

struct Operands {
  const uint32_t* weight;
  const Run* runs;
  const Pass* passes;
  int run_count;
  int pass_count;
  bool fields;  // weights are fields of Level::kFields bits
  int step;     // the largest number of words up to sixteen that every run is a multiple of
};

}  // namespace
}  // namespace binarize
