// A packed convolution on tensor cores, as an implicit matrix product: rows are output channels, columns output pixels,
// the depth all words of a window. A thread block takes kTileO x kTileP outputs; words come kStep at a time, through
// kStages buffers of shared memory. Tile sizes stand in front of this text, like the constants of call.cuh.
//
// Words of planes and words of codes lie alike in the fragments of the instructions: eight of them, of 16 channels and
// 8 pixels. Lane l of a warp holds words l % 4 and l % 4 + 4 of channels l / 4 and l / 4 + 8 and of pixel l / 4, and
// the sums of channels l / 4 and l / 4 + 8 with pixels 2 (l % 4) and 2 (l % 4) + 1.
#include "epilogue.cuh"
#include "window.cuh"

constexpr int kThreads = 32 * kWarpsO * kWarpsP;
constexpr int kWarpO = kTileO / kWarpsO, kWarpP = kTileP / kWarpsP;  // outputs of a warp
constexpr int kRows = kWarpO / 16, kColumns = kWarpP / 8;            // fragments of a warp
constexpr int kPixelTile = kTileP * kStep, kWeightTile = kTileO * kStep, kStage = kPixelTile + kWeightTile;
constexpr int kPitch = kTileO + 4;  // of the sums of a pixel: no two lanes then store to one bank
constexpr int kBuffer = kStages * kStage > kTileP* kPitch ? kStages * kStage : kTileP * kPitch;
constexpr int kUnits = kTileP * kTileO / 32;   // warps' worth of outputs
#define kSteps ((kDepth + kStep - 1) / kStep)  // of the depth
constexpr int kTurns = kUnits / (kThreads / 32);
static_assert(kWarpO % 16 == 0 && kWarpP % 16 == 0 && kTileO % 32 == 0 && kStages >= 2, "no such tile");
static_assert(!kTogether || (kWarpsO % 4 == 0 && kWarpsP == 1 && (kColumns == 8 || kColumns == 16)), "no such tile");
static_assert(kUnits % (kThreads / 32) == 0 && (kStep == 8 || kStep == 16 || kStep == 32), "no such tile");

struct Shared {
  u32* stages;   // each: kTileP x kStep words of pixels, then the weights
  u32* windows;  // (kTileP,)
  u32* weights;  // (kTileO,) sums of weights, for `xor`
  Origin* origins;
};

DEVICE Shared lay_out(u32* words) {
  u32* windows = words + kBuffer;
  return {words, windows, windows + kTileP, reinterpret_cast<Origin*>(windows + kTileP + kTileO)};
}

// The place of a word of a pixel in shared memory: eight pixels' sixteen bytes lie in 32 banks.
DEVICE int swizzled_pixel(int pixel, int word) {
  constexpr int kChunks = kStep / 4, kRowsOfBanks = 8 / kChunks;
  return pixel * kStep + (word ^ (pixel / kRowsOfBanks % kChunks * 4));
}

struct Tile {
  int group, first_block;
  u32 first_pixel;
};

DEVICE Tile tile_of(int index) {
  constexpr int kTileBlocks = kTileO / 32;
  const int per_group = (kBlocks + kTileBlocks - 1) / kTileBlocks, all = kGroups * per_group;
  const int unit = index % all;
  return {unit / per_group, unit % per_group * kTileBlocks, static_cast<u32>(index / all) * kTileP};
}

template <int kVector>
DEVICE void load_pixels(const Call& call, const Tile& tile, const Origin* origins, int first, int strip, u32* to) {
  constexpr int kParts = kStep / kVector, kLoads = kTileP * kParts;
  for (int i = thread_index(); i < kLoads; i += kThreads) {
    const int pixel = i / kParts, word = i % kParts * kVector, k = first + word;
    const u32* from = k < kDepth ? words_of(call, origins[pixel], k / kWords, tile.group, strip) : nullptr;
    copy_async<4 * kVector>(to + swizzled_pixel(pixel, word), from == nullptr ? call.x : from + k % kWords,
                            from != nullptr);
  }
}

DEVICE void load_weights(const Call& call, const Tile& tile, int first, int strip, u32* to) {
  constexpr int kParts = kStep * 8, kLoads = kTileO / 32 * kParts;  // of four words
  for (int i = thread_index(); i < kLoads; i += kThreads) {
    const int block = tile.first_block + i / kParts, place = i % kParts * 4;
    const bool valid = block < kBlocks && place < (kDepth - first) * 32;
    const u32* from = block_of(call, tile.group, strip, valid ? block : 0) + (valid ? first * 32 + place : 0);
    copy_async<16>(to + i / kParts * (kStep * 32) + swizzled_weight(place), from, valid);
  }
}

DEVICE void load_stage(const Call& call, const Tile& tile, const Shared& shared, const Product& product, int turn) {
  const Pass pass = passes(product.first + turn / kSteps);
  const int first = turn % kSteps * kStep;
  u32* to = shared.stages + turn % kStages * kStage;
  if (kWords % 4 == 0)
    load_pixels<4>(call, tile, shared.origins, first, pass.strip, to);
  else if (kWords % 2 == 0)
    load_pixels<2>(call, tile, shared.origins, first, pass.strip, to);
  else
    load_pixels<1>(call, tile, shared.origins, first, pass.strip, to);
  if (product.multiplies) load_weights(call, tile, first, pass.weight_strip, to + kPixelTile);
}

struct Sums {
  u32 counts[kRows][kColumns][4];
  u32 windows[kColumns];  // of pixel lane / 4, over this lane's words
  u32 weights[kRows][2];  // of channels lane / 4 and lane / 4 + 8, for `xor`
};

struct Warp {
  int lane, row, column;  // its place in the block of warps
};

DEVICE void read_pixels(const u32* stage, const Warp& warp, int step, u32 (&b)[kColumns][2]) {
  const int matrix = warp.lane / 8;
  UNROLL for (int column = 0; column < kColumns; column += 2) {
    const int pixel = warp.column * kWarpP + (column + matrix / 2) * 8 + warp.lane % 8;
    u32 four[4];
    load_matrices(four, stage + swizzled_pixel(pixel, step * 8 + matrix % 2 * 4));
    b[column][0] = four[0], b[column][1] = four[1], b[column + 1][0] = four[2], b[column + 1][1] = four[3];
  }
}

DEVICE void read_weights(const u32* weights, const Warp& warp, int step, int row, u32 (&a)[4]) {
  const int first = warp.row * kWarpO + row * 16, k = step * 8 + warp.lane % 4;
  const u32* block = weights + first / 32 * (kStep * 32);
  UNROLL for (int i = 0; i < 4; ++i) {
    const int lane = first % 32 + warp.lane / 4 + i % 2 * 8;
    a[i] = block[swizzled_weight(weight_place(k + i / 2 * 4, lane))];
  }
}

// Warps of the same pixels share this.
DEVICE void count_windows(const u32 (&b)[kColumns][2], const Pass& pass, Sums& sums) {
  UNROLL for (int i = 0; i < kColumns; ++i) sums.windows[i] += (count_word(b[i][0]) + count_word(b[i][1]))
                                                               << pass.window_shift;
}

DEVICE void multiply_step(const u32* stage, const Warp& warp, int step, const Product& product, const Pass& pass,
                          Sums& sums) {
  u32 b[kColumns][2];
  read_pixels(stage, warp, step, b);
  if (pass.window_shift >= 0 && step % kWarpsO == warp.row) count_windows(b, pass, sums);
  if (!product.multiplies) return;
  UNROLL for (int row = 0; row < kRows; ++row) {
    u32 a[4];
    read_weights(stage + kPixelTile, warp, step, row, a);
    if (kXor && pass.weight_shift >= 0 && step % kWarpsP == warp.column)
      UNROLL for (int i = 0; i < 4; ++i) sums.weights[row][i % 2] += popcount(a[i]) << pass.weight_shift;
    UNROLL for (int column = 0; column < kColumns; ++column) {
      if (kCodes)
        multiply_codes(sums.counts[row][column], a, b[column]);
      else if (kXor)
        multiply_xor(sums.counts[row][column], a, b[column]);
      else
        multiply_and(sums.counts[row][column], a, b[column]);
    }
  }
}

// All steps of a stage by four warps together, each with its rows of weights: registers hold them as for a warp alone,
// and the pixels lie in shared memory as these instructions want them. Past the depth there are zeros.
DEVICE void multiply_stage_together(const u32* stage, const Warp& warp, const Product& product, const Pass& pass,
                                    Sums& sums) {
  u32 a[kStep / 8][kRows][4];
  if (product.multiplies) {
    UNROLL for (int step = 0; step < kStep / 8; ++step) UNROLL for (int row = 0; row < kRows; ++row)
        read_weights(stage + kPixelTile, warp, step, row, a[step][row]);
    open_together();
    UNROLL for (int step = 0; step < kStep / 8; ++step) UNROLL for (int row = 0; row < kRows; ++row) {
      const u64 rows = rows_of<4 * kStep>(stage, step * 32);
      if (kCodes)
        multiply_codes_together(sums.counts[row], a[step][row], rows);
      else
        multiply_and_together(sums.counts[row], a[step][row], rows);
    }
    close_together();
  }
  UNROLL for (int step = 0; step < kStep / 8; ++step) if (pass.window_shift >= 0 && step % kWarpsO == warp.row) {
    u32 b[kColumns][2];
    read_pixels(stage, warp, step, b);
    count_windows(b, pass, sums);
  }
  if (!product.multiplies) return;
  wait_together();
  UNROLL for (int row = 0; row < kRows; ++row) take_together(sums.counts[row]);
}

DEVICE void multiply_stage(const Shared& shared, const Warp& warp, const Product& product, int turn, Sums& sums) {
  const Pass pass = passes(product.first + turn / kSteps);
  const int first = turn % kSteps * kStep;
  if (first == 0 && pass.doubles)
    UNROLL for (int row = 0; row < kRows; ++row) UNROLL for (int column = 0; column < kColumns; ++column)
        UNROLL for (int i = 0; i < 4; ++i) sums.counts[row][column][i] *= 2u;
  const u32* stage = shared.stages + turn % kStages * kStage;
  if (kTogether) return multiply_stage_together(stage, warp, product, pass, sums);
  UNROLL for (int step = 0; step < kStep / 8; ++step) if (first + step * 8 < kDepth)
      multiply_step(stage, warp, step, product, pass, sums);
}

DEVICE void multiply(const Call& call, const Tile& tile, const Shared& shared, const Warp& warp, const Product& product,
                     Sums& sums) {
  const int turns = product.count * kSteps;
  for (int turn = 0; turn < kStages - 1; ++turn) {
    if (turn < turns) load_stage(call, tile, shared, product, turn);
    close_copies();
  }
  for (int turn = 0; turn < turns; ++turn) {
    wait_copies<kStages - 2>();
    if (kTogether) show_copies();
    sync_block();
    if (turn + kStages - 1 < turns) load_stage(call, tile, shared, product, turn + kStages - 1);
    close_copies();
    multiply_stage(shared, warp, product, turn, sums);
  }
  wait_copies<0>();
  sync_block();
}

// Puts all that the warps counted where every warp can read it: counts in place of the stages, pixel by pixel.
DEVICE void gather(const Shared& shared, const Warp& warp, const Product& product, const Sums& sums) {
  const int quarter = warp.lane % 4, eighth = warp.lane / 4;
  UNROLL for (int column = 0; column < kColumns; ++column) {
    u32 window = sums.windows[column];
    window += shuffle_xor(window, 1);
    window += shuffle_xor(window, 2);
    const int pixel = warp.column * kWarpP + column * 8;
    if (quarter == 0) add_shared(shared.windows + pixel + eighth, window);
    UNROLL for (int row = 0; row < kRows; ++row) UNROLL for (int i = 0; i < 4; ++i) {
      const int channel = warp.row * kWarpO + row * 16 + i / 2 * 8 + eighth;
      shared.stages[(pixel + 2 * quarter + i % 2) * kPitch + channel] = sums.counts[row][column][i];
    }
  }
  if (!kXor || !product.multiplies) return;
  UNROLL for (int row = 0; row < kRows; ++row) UNROLL for (int i = 0; i < 2; ++i) {
    u32 weights = sums.weights[row][i];
    weights += shuffle_xor(weights, 1);
    weights += shuffle_xor(weights, 2);
    if (quarter == 0) add_shared(shared.weights + warp.row * kWarpO + row * 16 + i * 8 + eighth, weights);
  }
}

// A warp's turn: 32 output channels of a pixel.
DEVICE void emit_turn(const Call& call, const Tile& tile, const Shared& shared, int lane, const Product& product,
                      int index, int turn, float& y) {
  const int unit = thread_index() / 32 + turn * (kThreads / 32);
  const int pixel = unit / (kTileO / 32), inside = unit % (kTileO / 32), block = tile.first_block + inside;
  if (tile.first_pixel + pixel >= call.pixels || block >= kBlocks) return;
  const u32 counts = shared.stages[pixel * kPitch + inside * 32 + lane];
  const int dot = kXor && product.multiplies ? dot_of_xor(product, counts, shared.weights[inside * 32 + lane])
                                             : dot_of_and(product, counts, shared.windows[pixel]);
  emit(call, index, place_of(call, tile.first_pixel + pixel, tile.group, block, lane), dot, lane, y);
}

// Sums over several products stay in registers between them, which only a loop without jumps can do.
DEVICE void emit_tile(const Call& call, const Tile& tile, const Shared& shared, int lane, const Product& product,
                      int index, float (&y)[kTurns]) {
  if (kProducts > 1) {
    UNROLL for (int turn = 0; turn < kTurns; ++turn) emit_turn(call, tile, shared, lane, product, index, turn, y[turn]);
    return;
  }
  UNROLL_4 for (int turn = 0; turn < kTurns; ++turn) {
    float only = 0.0f;
    emit_turn(call, tile, shared, lane, product, index, turn, only);
  }
}

KERNEL BOUNDS(kThreads) tensor(const Call call) {
  SHARED_WORDS(words);
  const Shared shared = lay_out(words);
  const Tile tile = tile_of(block_index());
  const int warps = thread_index() / 32;
  const Warp warp = {thread_index() % 32, warps / kWarpsP, warps % kWarpsP};
  for (int i = thread_index(); i < kTileP; i += kThreads) shared.origins[i] = origin_of(call, tile.first_pixel + i);
  float y[kTurns] = {};
  for (int index = 0; index < kProducts; ++index) {
    for (int i = thread_index(); i < kTileP + kTileO; i += kThreads) shared.windows[i] = 0u;  // and the weights' sums
    sync_block();
    const Product product = products(index);
    Sums sums = {};
    multiply(call, tile, shared, warp, product, sums);
    gather(shared, warp, product, sums);
    sync_block();
    emit_tile(call, tile, shared, warp.lane, product, index, y);
    sync_block();
  }
}
