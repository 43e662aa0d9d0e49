#include "dispatch.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace binarize {

#if defined(__x86_64__) && defined(__linux__)
namespace {

bool ask_for_tiles() {
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // of register edx
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kTile) == 0 || (edx & kInt8) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool may_use_tiles() {
  static const bool may = ask_for_tiles();
  return may;
}
#else
bool may_use_tiles() { return false; }
#endif

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
