// AVX-VNNI: what avx512_vnni.h does, with registers of 256 bits, for CPUs without AVX-512.
//
// 6 pixels x 2 registers of channels are 12 sums; weights and a broadcast code take three of the other four registers.
#include <immintrin.h>

#include "avx2_codes.h"
#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

struct VnniProducts {
  using Weight = __m256i;
  static constexpr int kTile = 6;
  static constexpr double kWordsPerMicrosecond = 40000;

  static Weight weight_at(const uint32_t* from) { return load(from); }

  static __m256i add(__m256i sums, __m256i codes, Weight weight) {
    return _mm256_dpbusd_avx_epi32(sums, codes, weight);
  }
};

}  // namespace

Status conv2d_avx2_vnni(const Conv2d& call) { return conv2d<Avx2Codes<VnniProducts>>(call); }
Status pack_avx2_vnni(const Pack& call) { return pack<Avx2>(call); }

}  // namespace binarize
