#include "dense.h"

namespace binarize {

#define DENSE_LEVEL(name, condition)            \
  {#name,                                       \
   [] { return static_cast<bool>(condition); }, \
   dense_conv2d_##name,                         \
   dense_pool_##name,                           \
   dense_sum_##name,                            \
   dense_transpose_##name,                      \
   dense_channelwise_##name},
const DenseLevel kDenseLevels[] = {
#include "dense_levels.inc"
};
#undef DENSE_LEVEL

const int kDenseLevelCount = sizeof(kDenseLevels) / sizeof(kDenseLevels[0]);

}  // namespace binarize
