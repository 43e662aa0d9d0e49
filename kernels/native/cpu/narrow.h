// Weights of few planes lie in memory as fields of 1, 2 or 4 bits and become bytes block by block, when they are used.
//
// Of the 128 weights that one word of 32 channels takes, field i of byte j holds number i * 16 * bits + j: whole
// registers of fields then become whole registers of bytes. docs/packed_format.md describes the layout.
#pragma once

#include <stdint.h>

#include "tile.h"

namespace binarize {
namespace {

template <int kBits>
void widen_fields(const uint8_t* from, int64_t words, int8_t* to) {
  constexpr int kBytes = 16 * kBits, kMask = (1 << kBits) - 1, kHalf = 1 << (kBits - 1);
  for (int64_t word = 0; word < words; ++word, from += kBytes)
    for (int shift = 0; shift < 8; shift += kBits, to += kBytes)
#pragma GCC ivdep
#pragma GCC unroll 1  // unrolled, sixteen turns are no loop any more that becomes vectors
      for (int byte = 0; byte < kBytes; ++byte) to[byte] = static_cast<int8_t>((from[byte] >> shift & kMask) - kHalf);
}

// `words` words of every lane.
inline void widen(const uint32_t* from, int bits, int64_t words, uint32_t* to) {
  const uint8_t* fields = reinterpret_cast<const uint8_t*>(from);
  int8_t* bytes = reinterpret_cast<int8_t*>(to);
  if (bits == 1)
    widen_fields<1>(fields, words, bytes);
  else if (bits == 2)
    widen_fields<2>(fields, words, bytes);
  else
    widen_fields<4>(fields, words, bytes);
}

}  // namespace
}  // namespace binarize
