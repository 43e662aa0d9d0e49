#include "dispatch.h"

namespace binarize {

#define PLANES true, false
#define CODES false, true
#define BOTH true, true
#define LEVEL(name, forms, condition) \
  {#name, [] { return static_cast<bool>(condition); }, forms, conv2d_##name, pack_##name},
const Level kLevels[] = {
#include "levels.inc"
};
#undef LEVEL

const int kLevelCount = sizeof(kLevels) / sizeof(kLevels[0]);

}  // namespace binarize
