// AVX-512 without VPOPCNTDQ: sixteen output channels in a register, carry-save addition by ternary logic, popcount by
// two look-ups of nibbles. 12 instructions for 1024 products.
#include <immintrin.h>

#include "avx512.h"
#include "carry_save.h"
#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

struct CarrySave512 {
  using Vector = __m512i;
  static constexpr int kWidth = 16;

  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static Vector broadcast(const uint32_t* from) { return _mm512_set1_epi32(static_cast<int32_t>(*from)); }
  static void store(uint32_t* to, Vector x) { _mm512_storeu_si512(to, x); }
  static Vector both(Vector a, Vector b) { return _mm512_and_si512(a, b); }
  static Vector add_bytes(Vector a, Vector b) { return _mm512_add_epi8(a, b); }
  static Vector add_words(Vector a, Vector b) { return _mm512_add_epi32(a, b); }

  // Immediates of vpternlogd: 0x96 is the parity, 0xE8 the majority.
  static Vector add_bits(Vector& ones, Vector first, Vector second) {
    const Vector carry = _mm512_ternarylogic_epi32(ones, first, second, 0xE8);
    ones = _mm512_ternarylogic_epi32(ones, first, second, 0x96);
    return carry;
  }

  static Vector popcount(Vector x) {
    const Vector nibble = _mm512_set1_epi8(15);
    const Vector table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const Vector low = _mm512_shuffle_epi8(table, _mm512_and_si512(x, nibble));
    const Vector high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble));
    return _mm512_add_epi8(low, high);
  }

  static Vector sum_bytes(Vector bytes) {
    return _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
  }
};

struct Avx512bw : Avx512 {
  static constexpr int kTile = 6;
  static constexpr double kWordsPerMicrosecond = 20000;

  template <int P>
  static void count(const Operands& operands, const uint32_t* const* pixels, uint32_t (*counts)[kLanes]) {
    for (int lane = 0; lane < kLanes; lane += CarrySave512::kWidth)
      count_carry_save<CarrySave512, P>(operands, pixels, lane, counts);
  }
};

}  // namespace

Status conv2d_avx512bw(const Conv2d& call) { return conv2d<Avx512bw>(call); }
Status pack_avx512bw(const Pack& call) { return pack<Avx512bw>(call); }

}  // namespace binarize
