// Between the file's order of an image, channel after channel, and the kernels', pixel after pixel.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "../threads.h"

namespace binarize::ort {

template <class T>
struct Transposition {
  const T* from;  // (images, rows, columns)
  T* to;          // (images, columns, width): the first `rows` of each are written
  int64_t images, rows, columns, width;
};

constexpr int64_t kTile = 32;

template <class T>
void transpose_tile(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to, int64_t to_stride) {
  int64_t row = 0;
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4) {
    for (; row + 4 <= rows; row += 4) {
      const float* at = reinterpret_cast<const float*>(from + row * from_stride);
      float* out = reinterpret_cast<float*>(to + row);
      int64_t column = 0;
      for (; column + 4 <= columns; column += 4) {
        __m128 a = _mm_loadu_ps(at + column), b = _mm_loadu_ps(at + from_stride + column);
        __m128 c = _mm_loadu_ps(at + 2 * from_stride + column), d = _mm_loadu_ps(at + 3 * from_stride + column);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(out + column * to_stride, a);
        _mm_storeu_ps(out + (column + 1) * to_stride, b);
        _mm_storeu_ps(out + (column + 2) * to_stride, c);
        _mm_storeu_ps(out + (column + 3) * to_stride, d);
      }
      for (; column < columns; ++column)
        for (int64_t i = 0; i < 4; ++i) out[column * to_stride + i] = at[i * from_stride + column];
    }
  }
#endif
  for (; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column)
      to[column * to_stride + row] = from[row * from_stride + column];
}

template <class T>
void transpose_part(const void* context, int part, int parts) {
  const Transposition<T>& work = *static_cast<const Transposition<T>*>(context);
  const int64_t bands = (work.columns + kTile - 1) / kTile, all = work.images * bands;
  for (int64_t band = all * part / parts; band < all * (part + 1) / parts; ++band) {
    const int64_t image = band / bands, column = band % bands * kTile;
    const int64_t columns = work.columns - column < kTile ? work.columns - column : kTile;
    for (int64_t row = 0; row < work.rows; row += kTile) {
      const int64_t rows = work.rows - row < kTile ? work.rows - row : kTile;
      transpose_tile(work.from + (image * work.rows + row) * work.columns + column, rows, columns, work.columns,
                     work.to + (image * work.columns + column) * work.width + row, work.width);
    }
  }
}

template <class T>
void transpose(const Transposition<T>& work, int threads) {
  constexpr int64_t kFewest = 1 << 16;  // elements that are worth a thread
  const int64_t worth = work.images * work.rows * work.columns / kFewest + 1;
  run_parts(static_cast<int>(worth < threads ? worth : threads), transpose_part<T>, &work);
}

}  // namespace binarize::ort
