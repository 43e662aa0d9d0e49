#include "route.h"

#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <limits>
#include <mutex>

namespace binarize::ort {
namespace {

constexpr int kChannels = 128, kSize = 14, kTaps = 9, kTurns = 3;

const char* asked(const char* variable) {
  const char* value = getenv(variable);
  return value == nullptr || *value == '\0' ? nullptr : value;
}

// Whether a list of names with commas in between has this one; no list has all.
bool lists(const char* names, const char* name) {
  if (names == nullptr) return true;
  const size_t length = strlen(name);
  for (const char* at = names; at != nullptr; at = strchr(at, ',')) {
    while (*at == ',' || *at == ' ') ++at;
    if (strncmp(at, name, length) == 0 && strchr(", ", at[length]) != nullptr) return true;
  }
  return false;
}

const Level* best(bool (*fits)(const Level&)) {
  const char* forced = asked("BINARIZE_KERNEL");
  for (int i = 0; i < kLevelCount; ++i)
    if (lists(forced, kLevels[i].name) && kLevels[i].runs_here() && fits(kLevels[i])) return &kLevels[i];
  return nullptr;
}

const Level* multiplier_or_null(bool codes) {
  return codes ? best([](const Level& level) { return level.codes; })
               : best([](const Level& level) { return level.planes; });
}

[[noreturn]] void refuse_level(const Node& node, const char* form) {
  const char* forced = asked("BINARIZE_KERNEL");
  std::string known;
  for (int i = 0; i < kLevelCount; ++i) known += std::string(i == 0 ? "" : ", ") + kLevels[i].name;
  node.refuse(std::string("no kernel here takes ") + form +
              (forced ? std::string(", BINARIZE_KERNEL is ") + forced : "") + "; this library has " + known);
}

// Products per nanosecond of one thread, of the quickest of some turns.
double measure(const Level& level, bool codes) {
  Geometry g{};
  g.codes = codes;
  g.groups = g.stride_h = g.stride_w = g.padding_h = g.padding_w = g.dilation_h = g.dilation_w = 1;
  g.kernel_h = g.kernel_w = 3;
  g.words = codes ? kChannels / 4 : kChannels / 32;
  g.out_channels = kChannels;
  g.weight_terms = g.activation_terms = g.weight_strips = g.activation_strips = 1;
  g.weight_planes[0] = g.activation_planes[0] = 1;
  const std::vector<uint32_t> x(static_cast<size_t>(kSize * kSize * g.words), 0x01010101u);
  const std::vector<uint32_t> weight(static_cast<size_t>(kChannels / 32 * kTaps * g.words * 32));
  std::vector<int32_t> sums(static_cast<size_t>(kSize * kSize * kChannels));
  Conv2d call{};
  call.geometry = &g;
  call.n = call.threads = 1;
  call.h = call.w = call.out_h = call.out_w = kSize;
  call.x = x.data();
  call.weight = weight.data();
  call.integers = sums.data();
  double quickest = std::numeric_limits<double>::infinity();
  for (int turn = 0; turn <= kTurns; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    level.conv2d(call);
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    if (turn > 0 && taken.count() < quickest) quickest = taken.count();
  }
  return static_cast<double>(kSize) * kSize * kTaps * kChannels * kChannels / quickest;
}

// Measured once in a process, so that all nodes of all sessions choose alike.
double speed(const Level* level, bool codes) {
  static std::mutex guard;
  static std::vector<double> known(static_cast<size_t>(2 * kLevelCount));
  if (level == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(guard);
  double& found = known[static_cast<size_t>(2 * (level - kLevels) + codes)];
  if (found == 0) found = measure(*level, codes);
  return found;
}

}  // namespace

Work work_of(const Node& node, const char* attribute) {
  const Sizes given = node.integers_or_none(attribute);
  if (given.empty()) return {1, 1};
  node.require(given.size() == 2 && given[0] > 0 && given[1] > 0,
               std::string(attribute) + " is " + text(given) + ", not two positive numbers");
  return {given[0], given[1]};
}

bool as_codes(const Node& node, Work work) {
  const double planes = speed(multiplier_or_null(false), false), codes = speed(multiplier_or_null(true), true);
  if (planes == 0 && codes == 0) refuse_level(node, "planes or codes");
  if (planes == 0 || codes == 0) return planes == 0;
  const char* route = asked("BINARIZE_ROUTE");
  if (route != nullptr && strcmp(route, "popcount") == 0) return false;
  if (route != nullptr && strcmp(route, "int8") == 0) return true;
  node.require(route == nullptr, "BINARIZE_ROUTE is neither popcount nor int8");
  return static_cast<double>(work.codes) / codes < static_cast<double>(work.planes) / planes;
}

const Level& multiplier(const Node& node, bool codes) {
  const Level* level = multiplier_or_null(codes);
  if (level == nullptr) refuse_level(node, codes ? "codes" : "planes");
  return *level;
}

const Level& packer(const Node& node) {
  const Level* level = best([](const Level&) { return true; });
  if (level == nullptr) refuse_level(node, "anything");
  return *level;
}

}  // namespace binarize::ort
