#include "dispatch.h"

namespace binarize {

#define LEVEL(name, condition) {#name, [] { return static_cast<bool>(condition); }, conv2d_##name, pack_##name},
const Level kLevels[] = {
#include "levels.inc"
};
#undef LEVEL

const int kLevelCount = sizeof(kLevels) / sizeof(kLevels[0]);

}  // namespace binarize
