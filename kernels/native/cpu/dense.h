// Float convolutions and pooling around a level's vectors.
//
// A level is a struct with
//   Vector, kWidth        floats in a register
//   kTile                 pixels in a full tile: with two registers of channels each, as many sums as the machine needs
//   load, store, broadcast, multiply_add(a, b, sum), add, divide, clamp(x, minimum, maximum)
//   largest(a, b)         b where b > a or b is NaN, else a: as torch does, NaN stays
#pragma once

#include "dense_conv2d.h"
#include "dense_pool.h"

#define DEFINE_DENSE_LEVEL(name, Level)                                                     \
  namespace binarize {                                                                      \
  Status dense_conv2d_##name(const DenseConv2d& call) { return dense_conv2d<Level>(call); } \
  Status dense_pool_##name(const Pool& call) { return dense_pool<Level>(call); }            \
  void dense_sum_##name(const Sum& call) { dense_sum(call); }                               \
  void dense_transpose_##name(const Transpose& call) { dense_transpose(call); }             \
  void dense_channelwise_##name(const Channelwise& call) { dense_channelwise(call); }       \
  }
