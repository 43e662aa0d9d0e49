// Where the words of a window lie, and those of a block of weights.
#pragma once
#include "call.cuh"
#include "device.cuh"

#define kTaps (kKernelH * kKernelW)
#define kDepth (kTaps * kWords)     // words of a window in one strip
#define kBlocks ((kOut + 31) / 32)  // of 32 output channels, in a group
#define kPixelWords (kGroups * kStrips * kWords)

// Where the window of an output pixel begins; image -1 for a pixel past the last.
struct Origin {
  int image, y, x;
};

DEVICE Origin origin_of(const Call& call, u32 pixel) {
  if (pixel >= call.pixels) return {-1, 0, 0};
  const u32 row = pixel / call.out_w, column = pixel - row * call.out_w;
  const u32 image = row / call.out_h, line = row - image * call.out_h;
  return {static_cast<int>(image), static_cast<int>(line) * kStrideH - kPaddingH,
          static_cast<int>(column) * kStrideW - kPaddingW};
}

// The words of a tap in one strip, or null outside the image.
DEVICE const u32* words_of(const Call& call, const Origin& origin, int tap, int group, int strip) {
  const int ky = tap / kKernelW, kx = tap - ky * kKernelW;
  const int y = origin.y + ky * kDilationH, x = origin.x + kx * kDilationW;
  if (origin.image < 0 || static_cast<u32>(y) >= call.h || static_cast<u32>(x) >= call.w) return nullptr;
  const i64 pixel = (static_cast<i64>(origin.image) * call.h + y) * call.w + x;
  return call.x + (pixel * kPixelWords + (group * kStrips + strip) * kWords);
}

// A block of 32 output channels in one strip: `kDepth` words of each.
DEVICE const u32* block_of(const Call& call, int group, int strip, int block) {
  return call.weight + ((static_cast<i64>(group) * kWeightStrips + strip) * kBlocks + block) * (kDepth * 32);
}

// The place in a block of word `k` of output channel `lane`: by pairs of words and halves of the block, or by words.
DEVICE int weight_place(int k, int lane) {
  return kCodes ? k * 32 + lane : (k >> 1) * 64 + (lane >> 4) * 32 + (k & 1) * 16 + (lane & 15);
}

// The same place in shared memory, where the eight channels and four words that a warp reads at a time lie in 32 banks.
// Sixteen bytes stay together.
DEVICE int swizzled_weight(int place) {
  return kCodes ? place ^ ((place >> 5 & 3) << 3) : place ^ ((place >> 6 & 1) << 3);
}

// The sum that one word adds to that of its window.
DEVICE u32 count_word(u32 word) { return kCodes ? dot_codes(word, 0x01010101u, 0u) : popcount(word); }
