// A thread block on one CPU thread: what device.cuh asks of the machine, for the kernels compiled as plain C++.
//
// Every CUDA thread is a fiber. It runs until it asks for something that others take part in (a barrier, a ballot, a
// tensor-core product); what a warp asks for is worked out when its 32 lanes have asked for the same. The meaning of
// each instruction is written here from the PTX manual, not from the kernels.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <string>
#include <vector>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

#define DEVICE static inline
#define KERNEL static void
#define BOUNDS(threads)
#define UNROLL
#define UNROLL_4
#define __constant__
#define SHARED_WORDS(name) u32* name = emulator::shared_words()

namespace emulator {

enum class Ask { nothing, barrier, ballot, shuffle, matrices, multiply_and, multiply_xor, multiply_codes, together };

// A lane's part of a product by four warps: under way until it is waited for.
struct Together {
  Ask kind;
  u32* sums;
  int columns;
  u32 a[4];
  u64 rows;
  std::vector<u32> before;  // the sums as they were, where this product is the first to change them
};

struct Request {
  Ask ask = Ask::nothing;
  u32 value = 0;
  int mask = 0;
  const u32* row = nullptr;
  u32* out = nullptr;
  const u32 *a = nullptr, *b = nullptr;
  std::vector<Together>* products = nullptr;
};

struct Copy {
  u32* to;
  const u32* from;
  int words;
  bool valid;
};

struct Fiber {
  ucontext_t start;
  jmp_buf place;
  bool begun = false, done = false;
  bool shown = true;                   // whether the tensor cores see all copies that were waited for
  bool opened = false, closed = true;  // products by four warps: may begin; were handed over
  std::vector<Together> products;
  Request request;
  std::vector<std::vector<Copy>> copies = std::vector<std::vector<Copy>>(1);  // closed groups, then the open one
  std::vector<char> stack = std::vector<char>(128 << 10);
};

struct Range {
  const char *first, *last;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<u32> shared;
  std::vector<Range> memory;  // where asynchronous copies may read; empty: anywhere
  jmp_buf scheduler;
  int current = 0, block = 0;
  size_t shared_words = 0;
  std::string fault;
  bool hidden = false;  // a barrier was passed with copies that the tensor cores do not see
  void (*body)() = nullptr;
};

inline Machine& machine() {
  static Machine made;
  return made;
}

inline void fail(const std::string& what) {
  if (machine().fault.empty()) machine().fault = what;
}

inline u32* shared_words() {  // aligned as the kernels ask for
  return reinterpret_cast<u32*>((reinterpret_cast<uintptr_t>(machine().shared.data()) + 1023) / 1024 * 1024);
}

inline Fiber& current() { return machine().fibers[static_cast<size_t>(machine().current)]; }

inline void yield() {
  if (_setjmp(current().place) == 0) _longjmp(machine().scheduler, 1);
}

inline u32 ask(Request request) {
  current().request = request;
  yield();
  return current().request.value;
}

inline void enter() {
  machine().body();
  current().done = true;
  _longjmp(machine().scheduler, 1);
}

inline void resume(int index) {
  Machine& m = machine();
  m.current = index;
  Fiber& fiber = m.fibers[static_cast<size_t>(index)];
  if (_setjmp(m.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

// Bytes and bits of fragments, by the tables of the PTX manual.
inline u32 product_of(Ask kind, u32 a, u32 b) {
  if (kind == Ask::multiply_and) return static_cast<u32>(__builtin_popcount(a & b));
  if (kind == Ask::multiply_xor) return static_cast<u32>(__builtin_popcount(a ^ b));
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int>(b >> 8 * i & 255u);
  return static_cast<u32>(sum);
}

// m16n8: word k of row r of a is register r / 8 + 2 (k / 4) of lane 4 (r % 8) + k % 4; of column c of b, register k / 4
// of lane 4 c + k % 4; row r, column c of the result is register 2 (r / 8) + c % 2 of lane 4 (r % 8) + c / 2.
inline void multiply(Request* const* lanes) {
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 8; ++c) {
      u32 sum = 0;
      for (int k = 0; k < 8; ++k)
        sum += product_of(lanes[0]->ask, lanes[4 * (r % 8) + k % 4]->a[r / 8 + 2 * (k / 4)],
                          lanes[4 * c + k % 4]->b[k / 4]);
      lanes[4 * (r % 8) + c / 2]->out[2 * (r / 8) + c % 2] += sum;
    }
}

// The four bytes at a place of a described matrix: rows of the swizzle's size, eights of rows at the given distance;
// bits 4 to 6 of the address, as many as the swizzle has, `xor` the bits from 7 on.
inline u32 described(u64 rows, int row, int word) {
  static const int sizes[] = {0, 128, 64, 32}, masks[] = {0, 7, 3, 1};
  const int swizzle = static_cast<int>(rows >> 62);
  if (swizzle == 0 || (rows >> 49 & 7) != 0) return fail("rows that are described in no way that is known here"), 0u;
  const u32 eight = static_cast<u32>(rows >> 32 & 0x3fff) << 4;
  u32 place = (static_cast<u32>(rows & 0x3fff) << 4) + static_cast<u32>(row / 8) * eight;
  place += static_cast<u32>(row % 8 * sizes[swizzle] + 4 * word);
  place ^= (place >> 7 & static_cast<u32>(masks[swizzle])) << 4;
  if (place + 4 > 4 * machine().shared_words) return fail("tensor cores read past the shared memory"), 0u;
  u32 found;
  memcpy(&found, reinterpret_cast<const char*>(shared_words()) + place, 4);
  return found;
}

// A warp's part: its sixteen rows, as in `multiply`, times every column; columns are rows of the described matrix.
inline void finish(Request* const* lanes) {
  const size_t count = lanes[0]->products->size();
  for (int i = 0; i < 32; ++i) {
    if (lanes[i]->products->size() != count) return fail("the lanes of a warp wait for different products");
    for (Together& product : *lanes[i]->products)
      if (!product.before.empty()) memcpy(product.sums, product.before.data(), 4 * product.before.size());
  }
  for (size_t index = 0; index < count; ++index) {
    const Together& first = lanes[0]->products->at(index);
    for (int r = 0; r < 16; ++r)
      for (int c = 0; c < first.columns; ++c) {
        u32 sum = 0;
        for (int k = 0; k < 8; ++k)
          sum += product_of(first.kind, lanes[4 * (r % 8) + k % 4]->products->at(index).a[r / 8 + 2 * (k / 4)],
                            described(first.rows, c, k));
        lanes[4 * (r % 8) + c % 8 / 2]->products->at(index).sums[4 * (c / 8) + 2 * (r / 8) + c % 2] += sum;
      }
  }
  for (int i = 0; i < 32; ++i) lanes[i]->products->clear();
}

// Matrix i's row r is given by lane 8 i + r; lane l receives the l % 4-th four bytes of row l / 4 of each.
inline void load(Request* const* lanes) {
  for (int i = 0; i < 4; ++i)
    for (int lane = 0; lane < 32; ++lane) {
      const u32* row = lanes[8 * i + lane / 4]->row;
      if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix of a row that is not aligned to 16 bytes");
      lanes[lane]->out[i] = row[lane % 4];
    }
}

inline void answer(Request* const* lanes) {
  const Ask kind = lanes[0]->ask;
  for (int i = 0; i < 32; ++i)
    if (lanes[i]->ask != kind) fail("the lanes of a warp ask for different things");
  u32 values[32], bits = 0;
  for (int i = 0; i < 32; ++i) values[i] = lanes[i]->value, bits |= (lanes[i]->value != 0 ? 1u : 0u) << i;
  if (kind == Ask::matrices) load(lanes);
  if (kind == Ask::together) finish(lanes);
  if (kind == Ask::multiply_and || kind == Ask::multiply_xor || kind == Ask::multiply_codes) multiply(lanes);
  for (int i = 0; i < 32; ++i) {
    if (kind == Ask::ballot) lanes[i]->value = bits;
    if (kind == Ask::shuffle) lanes[i]->value = values[i ^ lanes[i]->mask];
    lanes[i]->ask = Ask::nothing;
  }
}

// Runs a warp until it is done or waits at a barrier. True if anything happened.
inline bool run_warp(int warp) {
  Machine& m = machine();
  bool moved = false;
  while (m.fault.empty()) {
    Request* lanes[32];
    int done = 0, barrier = 0;
    for (int i = 0; i < 32; ++i) {
      const int index = 32 * warp + i;
      Fiber& fiber = m.fibers[static_cast<size_t>(index)];
      if (!fiber.done && fiber.request.ask == Ask::nothing) resume(index), moved = true;
      done += fiber.done, barrier += !fiber.done && fiber.request.ask == Ask::barrier;
      lanes[i] = &fiber.request;
    }
    if (done == 32 || done + barrier == 32) return moved;
    if (done + barrier > 0) return fail("some lanes of a warp wait for others that will not come"), moved;
    answer(lanes);
    moved = true;
  }
  return moved;
}

inline void run_block(int threads, unsigned seed) {
  Machine& m = machine();
  const auto random = [&seed] { return (seed = seed * 1664525u + 1013904223u) >> 16; };
  std::vector<int> order(static_cast<size_t>(threads / 32));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  while (m.fault.empty()) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    for (const int warp : order) run_warp(warp);
    bool all = true;
    for (Fiber& fiber : m.fibers) all = all && fiber.done;
    if (all) break;
    for (Fiber& fiber : m.fibers)
      if (!fiber.done) fiber.request.ask = Ask::nothing;  // every warp has come to the barrier
  }
  for (Fiber& fiber : m.fibers)
    for (auto& group : fiber.copies)
      if (!group.empty()) fail("the kernel ends while copies are under way");
}

constexpr u32 kGuard = 0xdeadbeefu;
constexpr size_t kGuardWords = 64;

inline void run(void (*body)(), int blocks, int threads, size_t words, unsigned seed) {
  Machine& m = machine();
  m.fault.clear();
  m.hidden = false;
  m.body = body;
  m.shared_words = words;
  m.fibers.resize(static_cast<size_t>(threads));
  for (m.block = 0; m.block < blocks && m.fault.empty(); ++m.block) {
    m.shared.assign(words + 256 + kGuardWords, kGuard);
    for (Fiber& fiber : m.fibers) {
      fiber.begun = fiber.done = fiber.opened = false;
      fiber.shown = fiber.closed = true;
      fiber.products.clear();
      fiber.request = Request();
      fiber.copies.assign(1, {});
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = fiber.stack.data();
      fiber.start.uc_stack.ss_size = fiber.stack.size();
      fiber.start.uc_link = nullptr;
      makecontext(&fiber.start, reinterpret_cast<void (*)()>(enter), 0);
    }
    run_block(threads, seed + static_cast<unsigned>(m.block));
    const u32* end = shared_words() + words;
    for (const u32* guard = end; guard < m.shared.data() + m.shared.size(); ++guard)
      if (*guard != kGuard) fail("a kernel writes past its shared memory");
  }
}

inline bool readable(const void* from, size_t bytes) {
  const char* first = static_cast<const char*>(from);
  for (const Range& range : machine().memory)
    if (first >= range.first && first + bytes <= range.last) return true;
  return machine().memory.empty();
}

}  // namespace emulator

DEVICE int thread_index() { return emulator::machine().current; }
DEVICE int block_index() { return emulator::machine().block; }
DEVICE void sync_block() {
  emulator::Request request;
  emulator::machine().hidden |= !emulator::current().shown;
  request.ask = emulator::Ask::barrier;
  emulator::ask(request);
}
DEVICE u32 ballot(bool bit) {
  emulator::Request request;
  request.ask = emulator::Ask::ballot, request.value = bit;
  return emulator::ask(request);
}
DEVICE u32 shuffle_xor(u32 value, int mask) {
  emulator::Request request;
  request.ask = emulator::Ask::shuffle, request.value = value, request.mask = mask;
  return emulator::ask(request);
}
DEVICE void add_shared(u32* to, u32 value) { *to += value; }
DEVICE void or_global(u32* to, u32 bits) { *to |= bits; }
DEVICE u32 popcount(u32 word) { return static_cast<u32>(__builtin_popcount(word)); }
DEVICE u32 dot_codes(u32 codes, u32 weights, u32 sum) {
  return sum + emulator::product_of(emulator::Ask::multiply_codes, weights, codes);
}
DEVICE float times(float a, float b) { return a * b; }  // compiled without contraction
DEVICE float plus(float a, float b) { return a + b; }
DEVICE float minus(float a, float b) { return a - b; }
DEVICE float floor_of(float a) { return std::floor(a); }
DEVICE float float_of(int a) { return static_cast<float>(a); }

DEVICE u32 bits_of(float a) {
  u32 bits;
  memcpy(&bits, &a, 4);
  return bits;
}
DEVICE float float_of_bits(u32 a) {
  float value;
  memcpy(&value, &a, 4);
  return value;
}
// Eleven bits of mantissa from 2^-14 on, whole multiples of 2^-24 below; from 65520 on infinite.
DEVICE u16 half_of(float a) {
  const u32 sign = bits_of(a) >> 16 & 0x8000u, size = bits_of(a) & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<u16>(sign | 0x7fffu);
  if (size >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);
  if (size < 0x38800000u) return static_cast<u16>(sign | static_cast<u32>(std::nearbyint(std::fabs(a) * 0x1p24f)));
  return static_cast<u16>(sign | (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13);
}
DEVICE float float_of_half(u16 a) {
  const u32 sign = (a & 0x8000u) << 16, size = a & 0x7fffu;
  if (size < 0x400u) return (sign != 0 ? -1.0f : 1.0f) * static_cast<float>(size) * 0x1p-24f;
  return float_of_bits(sign | (size >= 0x7c00u ? 0x7f800000u | size << 13 : (size << 13) + 0x38000000u));
}

// A copy happens when it is waited for; until then its place holds garbage.
template <int kBytes>
DEVICE void copy_async(u32* to, const u32* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % kBytes != 0 || reinterpret_cast<uintptr_t>(from) % kBytes != 0)
    emulator::fail("an asynchronous copy that is not aligned to its size");
  if (valid && !emulator::readable(from, kBytes)) emulator::fail("an asynchronous copy from outside its tensor");
  for (int i = 0; i < kBytes / 4; ++i) to[i] = 0xa5a5a5a5u;
  emulator::current().copies.back().push_back({to, from, kBytes / 4, valid});
}
DEVICE void close_copies() { emulator::current().copies.emplace_back(); }
template <int kPending>
DEVICE void wait_copies() {
  auto& groups = emulator::current().copies;
  for (size_t i = 0; i + 1 + kPending < groups.size(); ++i) {
    for (const emulator::Copy& copy : groups[i])
      for (int word = 0; word < copy.words; ++word) copy.to[word] = copy.valid ? copy.from[word] : 0u;
    if (!groups[i].empty()) emulator::current().shown = false;
    groups[i].clear();
  }
}

DEVICE void load_matrices(u32 (&out)[4], const u32* row) {
  emulator::Request request;
  request.ask = emulator::Ask::matrices, request.row = row, request.out = out;
  emulator::ask(request);
}
DEVICE void multiply_as(emulator::Ask kind, u32 (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  emulator::Request request;
  request.ask = kind, request.out = sums, request.a = a, request.b = b;
  emulator::ask(request);
}
DEVICE void multiply_and(u32 (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  multiply_as(emulator::Ask::multiply_and, sums, a, b);
}
DEVICE void multiply_xor(u32 (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  multiply_as(emulator::Ask::multiply_xor, sums, a, b);
}
DEVICE void multiply_codes(u32 (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  multiply_as(emulator::Ask::multiply_codes, sums, a, b);
}

DEVICE void show_copies() { emulator::current().shown = true; }
template <int kRowBytes>
DEVICE u64 rows_of(const u32* rows, int first) {
  const i64 place = reinterpret_cast<const char*>(rows) - reinterpret_cast<const char*>(emulator::shared_words());
  if (place % (8 * kRowBytes) != 0) emulator::fail("rows that do not begin at a multiple of eight of them");
  constexpr u64 kSwizzle = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
  return static_cast<u64>(place + first) >> 4 | 1ull << 16 | static_cast<u64>(8 * kRowBytes >> 4) << 32 |
         kSwizzle << 62;
}
DEVICE void open_together() { emulator::current().opened = true; }
DEVICE void close_together() { emulator::current().closed = true; }

// Until they are waited for, sums are garbage.
template <int kColumns>
DEVICE void multiply_together(emulator::Ask kind, u32 (&sums)[kColumns][4], const u32 (&a)[4], u64 rows) {
  emulator::Fiber& fiber = emulator::current();
  if (!fiber.opened) emulator::fail("a product by four warps that was not opened");
  if (emulator::machine().hidden) emulator::fail("tensor cores read copies that they were not shown");
  emulator::Together product = {kind, &sums[0][0], 8 * kColumns, {a[0], a[1], a[2], a[3]}, rows, {}};
  bool known = false;
  for (const emulator::Together& other : fiber.products) known = known || other.sums == product.sums;
  if (!known) product.before.assign(product.sums, product.sums + 4 * kColumns);
  for (int i = 0; i < 4 * kColumns; ++i) product.sums[i] = 0xa5a5a5a5u;
  fiber.products.push_back(product);
  fiber.closed = false;
}
template <int kColumns>
DEVICE void multiply_and_together(u32 (&sums)[kColumns][4], const u32 (&a)[4], u64 rows) {
  multiply_together(emulator::Ask::multiply_and, sums, a, rows);
}
template <int kColumns>
DEVICE void multiply_codes_together(u32 (&sums)[kColumns][4], const u32 (&a)[4], u64 rows) {
  multiply_together(emulator::Ask::multiply_codes, sums, a, rows);
}
DEVICE void wait_together() {
  emulator::Fiber& fiber = emulator::current();
  if (!fiber.closed) emulator::fail("products by four warps are waited for that were not handed over");
  fiber.opened = false;
  emulator::Request request;
  request.ask = emulator::Ask::together, request.products = &fiber.products;
  emulator::ask(request);
}
template <int kColumns>
DEVICE void take_together(u32 (&)[kColumns][4]) {}
