#pragma once

#include "problem.h"

namespace binarize {

struct Level {
  const char* name;
  bool (*runs_here)();
  bool planes, codes;  // the forms of operands that its convolution takes
  Status (*conv2d)(const Conv2d&);
  Status (*pack)(const Pack&);
};

extern const Level kLevels[];  // best first
extern const int kLevelCount;

// Whether this CPU has matrix registers for bytes and the system lets this process use them; asks the system once.
bool may_use_tiles();

#define LEVEL(name, forms, condition)       \
  Status conv2d_##name(const Conv2d& call); \
  Status pack_##name(const Pack& call);
#include "levels.inc"
#undef LEVEL

}  // namespace binarize
