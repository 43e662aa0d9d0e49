// AVX-512 with AMX: codes times folded weights, 32 pixels times 32 channels in four matrix registers.
//
//   tdpbusd  a tile of codes (pixels x 64 channels) times one of weights (64 input x 16 output channels), added to
//            32-bit sums; takes as many cycles as there are pixels, eight times the products of vpdpbusd in each
//
// Rows of a tile lie at one distance, which the pixels of an output row do, and the prepared weight as it is. Where a
// run has no divisor near sixteen, the registers of AVX-512 multiply.
#include "amx_tiles.h"
#include "avx512_vnni.h"
#include "conv2d.h"
#include "pack.h"

namespace binarize {
namespace {

constexpr int kTileRows = 16;
constexpr int kFewestWords = 4;  // of a step: with fewer, most of a tile is empty

// Pixels whose codes are `stride` words apart.
struct Row {
  const uint32_t* start;
  int64_t stride;
  int pixels;
};

inline Row row_of(const uint32_t* const* pixels, int count) {
  const int64_t stride = count > 1 ? pixels[1] - pixels[0] : 0;
  int length = count > 0 ? 1 : 0;
  while (length < count && length < kTileRows && pixels[length] - pixels[length - 1] == stride) ++length;
  return {count > 0 ? pixels[0] : nullptr, stride, length};
}

thread_local uint32_t shaped_for;  // pixels of both rows and the step that this thread's tiles are shaped for

// Sums: tiles 0 to 3. Codes of the first and the second row: 4 and 5. Weights of 16 channels each: 6 and 7.
inline void shape_tiles(int first, int second, int step) {
  const uint32_t wanted = static_cast<uint32_t>(first << 16 | second << 8 | step);
  if (wanted == shaped_for) return;
  shaped_for = wanted;
  TileShapes shapes;
  for (int half = 0; half < 2; ++half) {
    shapes.set(half, first, 64);
    shapes.set(6 + half, step, 64);
    if (second > 0) shapes.set(2 + half, second, 64);
  }
  shapes.set(4, first, 4 * step);
  if (second > 0) shapes.set(5, second, 4 * step);
  tile_shapes(shapes);
}

template <bool kSecond>
__attribute__((noinline)) void multiply(const Operands& operands, const Row& first, const Row& second,
                                        uint32_t (*counts)[kLanes]) {
  constexpr int64_t kBytes = kLanes * 4;
  tile_fence();
  tile_zero(0);
  tile_zero(1);
  if (kSecond) {
    tile_zero(2);
    tile_zero(3);
  }
  for (int index = 0; index < operands.pass_count; ++index) {
    const Pass& pass = operands.passes[index];
    const uint32_t* weight = operands.weight + pass.weight;
    for (int run = 0; run < operands.run_count; ++run) {
      const int64_t offset = pass.digits + operands.runs[run].offset;
      const int64_t words = operands.runs[run].words;
      for (int64_t word = 0; word < words; word += operands.step, weight += operands.step * kLanes) {
        tile_load(6, weight, kBytes);
        tile_load(7, weight + kLanes / 2, kBytes);
        tile_load(4, first.start + offset + word, 4 * first.stride);
        tile_multiply(0, 4, 6);
        tile_multiply(1, 4, 7);
        if (!kSecond) continue;
        tile_load(5, second.start + offset + word, 4 * second.stride);
        tile_multiply(2, 5, 6);
        tile_multiply(3, 5, 7);
      }
    }
  }
  tile_store(0, counts[0], kBytes);
  tile_store(1, counts[0] + kLanes / 2, kBytes);
  if (kSecond) {
    tile_store(2, counts[first.pixels], kBytes);
    tile_store(3, counts[first.pixels] + kLanes / 2, kBytes);
  }
  tile_fence();
}

struct Avx512Amx : Avx512Vnni {
  static constexpr int kTile = 2 * kTileRows;
  static constexpr bool kRows = true;
  static constexpr int kFields = 0;  // tiles are loaded from memory
  static constexpr double kWordsPerMicrosecond = 250000;

  // Other libraries of the process shape the tiles as they need them, so nothing is left from the call before.
  static void open() { shaped_for = 0; }
  static void close() {
    if (shaped_for != 0) tile_release();
  }

  static void count_rows(const Operands& operands, const uint32_t* const* pixels, int count,
                         uint32_t (*counts)[kLanes]) {
    if (operands.step < kFewestWords) {
      for (int done = 0; done < count; done += Avx512Vnni::kTile) {
        const int taken = static_cast<int>(smaller(Avx512Vnni::kTile, count - done));
        counter_of<Avx512Vnni>(taken)(operands, pixels + done, counts + done);
      }
      return;
    }
    // Part of one output row or two short ones: two tiles hold them.
    const Row first = row_of(pixels, count), second = row_of(pixels + first.pixels, count - first.pixels);
    shape_tiles(first.pixels, second.pixels, operands.step);
    if (second.pixels > 0)
      multiply<true>(operands, first, second, counts);
    else
      multiply<false>(operands, first, second, counts);
  }
};

}  // namespace

Status conv2d_avx512_amx(const Conv2d& call) { return conv2d<Avx512Amx>(call); }
Status pack_avx512_amx(const Pack& call) { return pack<Avx512Amx>(call); }

}  // namespace binarize
