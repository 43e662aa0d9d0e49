// The levels that compare.cpp finds when it is built for the tiles of AMX.
#include "dispatch.h"

namespace binarize {

const Level kLevels[] = {
    {"avx512_amx", [] { return true; }, false, true, conv2d_avx512_amx, pack_avx512_amx},
    {"scalar", [] { return true; }, true, true, conv2d_scalar, pack_scalar},
};
const int kLevelCount = 2;

}  // namespace binarize
