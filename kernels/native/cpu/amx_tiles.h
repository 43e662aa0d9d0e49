// The matrix registers of AMX: eight tiles of up to 16 rows of 64 bytes.
//
// With BINARIZE_EMULATED_TILES the same operations work on plain memory: machines without AMX then check what is
// loaded, multiplied and stored, though not how fast.
#pragma once

#include <stdint.h>
#include <string.h>

#ifndef BINARIZE_EMULATED_TILES
#include <immintrin.h>
#endif

namespace binarize {
namespace {

// What LDTILECFG reads.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int row_count, int bytes) {
    rows[tile] = static_cast<uint8_t>(row_count);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

#ifdef BINARIZE_EMULATED_TILES

struct EmulatedTiles {
  TileShapes shapes;
  uint8_t bytes[8][16][64];
};
thread_local EmulatedTiles emulated_tiles;

inline void tile_shapes(const TileShapes& shapes) {
  emulated_tiles.shapes = shapes;
  memset(emulated_tiles.bytes, 0, sizeof(emulated_tiles.bytes));
}

inline void tile_fence() {}

inline void tile_release() { emulated_tiles.shapes = TileShapes(); }

inline void tile_zero(int tile) { memset(emulated_tiles.bytes[tile], 0, sizeof(emulated_tiles.bytes[tile])); }

inline void tile_load(int tile, const void* from, int64_t stride) {
  const TileShapes& shapes = emulated_tiles.shapes;
  tile_zero(tile);
  for (int row = 0; row < shapes.rows[tile]; ++row)
    memcpy(emulated_tiles.bytes[tile][row], static_cast<const uint8_t*>(from) + row * stride, shapes.row_bytes[tile]);
}

inline void tile_store(int tile, void* to, int64_t stride) {
  const TileShapes& shapes = emulated_tiles.shapes;
  for (int row = 0; row < shapes.rows[tile]; ++row)
    memcpy(static_cast<uint8_t*>(to) + row * stride, emulated_tiles.bytes[tile][row], shapes.row_bytes[tile]);
}

// sums[m][n] += a[m][4 k + i] * b[k][4 n + i], unsigned by signed bytes. As the machine does, it faults where shapes do
// not fit: a wrong shape must not pass for a right product.
inline void tile_multiply(int sums, int a, int b) {
  const TileShapes& shapes = emulated_tiles.shapes;
  if (shapes.rows[sums] != shapes.rows[a] || shapes.row_bytes[a] != 4 * shapes.rows[b] ||
      shapes.row_bytes[sums] != shapes.row_bytes[b] || shapes.rows[a] == 0 || shapes.rows[b] == 0)
    __builtin_trap();
  for (int m = 0; m < shapes.rows[sums]; ++m)
    for (int n = 0; n < shapes.row_bytes[sums] / 4; ++n) {
      uint32_t sum;
      memcpy(&sum, &emulated_tiles.bytes[sums][m][4 * n], 4);
      for (int k = 0; k < shapes.row_bytes[a]; ++k)
        sum += static_cast<uint32_t>(emulated_tiles.bytes[a][m][k] *
                                     static_cast<int8_t>(emulated_tiles.bytes[b][k / 4][4 * n + k % 4]));
      memcpy(&emulated_tiles.bytes[sums][m][4 * n], &sum, 4);
    }
}

#else

// The compiler's header tells it too little of what these read and write, so memory is fenced off by hand. Tiles are
// numbers in the code, for which only macros will do.
inline void tile_fence() { asm volatile("" ::: "memory"); }

inline void tile_shapes(const TileShapes& shapes) {
  asm volatile("" ::"r"(&shapes) : "memory");
  _tile_loadconfig(&shapes);
  tile_fence();
}

inline void tile_release() { _tile_release(); }

#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_multiply(sums, a, b) _tile_dpbusd(sums, a, b)

#endif

}  // namespace
}  // namespace binarize
