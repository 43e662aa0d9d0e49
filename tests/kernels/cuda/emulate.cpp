// One kernel on the emulated thread block. What a GPU compiles in as constants are variables here, so that one build
// runs every geometry; tile sizes are constants in both. KERNEL_FILE and KERNEL_NAME say which kernel.
#include "emulate.h"

static int kCodes, kXor, kGroups, kWords, kOut, kKernelH, kKernelW, kStrideH, kStrideW, kPaddingH, kPaddingW,
    kDilationH, kDilationW, kStrips, kWeightStrips, kProducts, kEpilogue, kThresholds, kPackCodes, kChannelsLast,
    kStored, kAdded, kSlopes, kAlso, kAlsoBits, kAlsoThresholds, kRead;

struct Name {
  const char* name;
  int* value;
};
#define NAME(variable) {#variable, &variable}
static const Name names[] = {
    NAME(kCodes),          NAME(kXor),       NAME(kGroups),     NAME(kWords),     NAME(kOut),
    NAME(kKernelH),        NAME(kKernelW),   NAME(kStrideH),    NAME(kStrideW),   NAME(kPaddingH),
    NAME(kPaddingW),       NAME(kDilationH), NAME(kDilationW),  NAME(kStrips),    NAME(kWeightStrips),
    NAME(kProducts),       NAME(kEpilogue),  NAME(kThresholds), NAME(kPackCodes), NAME(kChannelsLast),
    NAME(kStored),         NAME(kAdded),     NAME(kSlopes),     NAME(kAlso),      NAME(kAlsoBits),
    NAME(kAlsoThresholds), NAME(kRead)};

#include "call.cuh"

static std::vector<Pass> pass_table;
static std::vector<Product> product_table;
static inline Pass passes(int index) { return pass_table.at(static_cast<size_t>(index)); }
static inline Product products(int index) { return product_table.at(static_cast<size_t>(index)); }

TILE  // constants, on the command line

#include KERNEL_FILE

    static KERNEL_CALL argument;
static void body() { KERNEL_NAME(argument); }

extern "C" int set_constant(const char* name, int value) {
  for (const Name& known : names)
    if (strcmp(known.name, name) == 0) return *known.value = value, 0;
  return 1;
}

extern "C" void set_tables(const int* rows, int pass_count, int product_count) {
  const Pass* first = reinterpret_cast<const Pass*>(rows);
  pass_table.assign(first, first + pass_count);
  const Product* product = reinterpret_cast<const Product*>(rows + 5 * pass_count);
  product_table.assign(product, product + product_count);
}

// Returns what went wrong, or an empty string.
extern "C" const char* run(const void* call, size_t call_bytes, const uint64_t* ranges, int range_count, int blocks,
                           int threads, size_t shared_bytes, unsigned seed) {
  if (call_bytes != sizeof argument) return "Python and C++ do not agree on the size of the arguments";
  memcpy(&argument, call, sizeof argument);
  emulator::machine().memory.clear();
  for (int i = 0; i < range_count; ++i)
    emulator::machine().memory.push_back(
        {reinterpret_cast<const char*>(ranges[2 * i]), reinterpret_cast<const char*>(ranges[2 * i + 1])});
  emulator::run(body, blocks, threads, (shared_bytes + 3) / 4, seed);
  return emulator::machine().fault.c_str();
}
