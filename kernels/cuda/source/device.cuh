// What a kernel may ask of the machine: one thin function per instruction. tests/kernels/cuda/emulate.h defines the
// same functions for a thread block that is emulated on a CPU; the kernels are the same text in both.
#pragma once

#ifdef __CUDACC__

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define BOUNDS(threads) __launch_bounds__(threads)
#define UNROLL _Pragma("unroll")
#define UNROLL_4 _Pragma("unroll 4")
#define SHARED_WORDS(name) extern __shared__ __align__(1024) u32 name[]

DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
DEVICE void sync_block() { __syncthreads(); }
DEVICE u32 ballot(bool bit) { return __ballot_sync(~0u, bit); }
DEVICE u32 shuffle_xor(u32 value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
DEVICE void add_shared(u32* to, u32 value) { atomicAdd(to, value); }
DEVICE void or_global(u32* to, u32 bits) { atomicOr(to, bits); }
DEVICE u32 popcount(u32 word) { return static_cast<u32>(__popc(word)); }

// Four unsigned codes times four signed weights, added to `sum`.
DEVICE u32 dot_codes(u32 codes, u32 weights, u32 sum) {
  u32 out;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(codes), "r"(weights), "r"(sum));
  return out;
}

// Each operation rounded by itself, whatever the compiler may fuse.
DEVICE float times(float a, float b) { return __fmul_rn(a, b); }
DEVICE float plus(float a, float b) { return __fadd_rn(a, b); }
DEVICE float minus(float a, float b) { return __fsub_rn(a, b); }
DEVICE float floor_of(float a) { return floorf(a); }
DEVICE float float_of(int a) { return __int2float_rn(a); }

DEVICE u32 bits_of(float a) { return __float_as_uint(a); }
DEVICE float float_of_bits(u32 a) { return __uint_as_float(a); }
// IEEE's 16 bits, rounded to the nearest, even.
DEVICE u16 half_of(float a) {
  u16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(a));
  return out;
}
DEVICE float float_of_half(u16 a) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(a));
  return out;
}

// Copies `kBytes` (4, 8 or 16) to shared memory without waiting, or zeros where `valid` is false.
template <int kBytes>
DEVICE void copy_async(u32* to, const u32* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const u32 place = static_cast<u32>(__cvta_generic_to_shared(to));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
#else
  UNROLL for (int i = 0; i < kBytes / 4; ++i) to[i] = valid ? from[i] : 0u;
#endif
}
DEVICE void close_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most `kPending` of this thread's closed groups of copies are under way.
template <int kPending>
DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Four 8x8 matrices of 16 bits from shared memory: lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void load_matrices(u32 (&out)[4], const u32* row) {
  const u32 place = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(place)
               : "memory");
}

// sums (16x8) += a (16 rows of 8 words) times b (8 columns of 8 words), a product of words being the popcount of their
// `and`. One instruction from sm_80 to sm_90; from sm_100 on it would be emulated, and nothing may call it there.
DEVICE void multiply_and(u32 (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same with `xor`, of four instructions of 8x8 and 4 words: what sm_75 has.
DEVICE void multiply_xor(u32 (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 750 && __CUDA_ARCH__ < 900
  UNROLL for (int part = 0; part < 4; ++part) {
    const int half = 2 * (part & 1);  // a[0], a[2] are rows 0 to 7, a[1], a[3] rows 8 to 15
    asm volatile("mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%0,%1},{%2},{%3},{%0,%1};"
                 : "+r"(sums[half]), "+r"(sums[half + 1])
                 : "r"(a[part]), "r"(b[part / 2]));
  }
#endif
}

// The same of words that hold four bytes each: signed weights in `a`, unsigned codes in `b`.
DEVICE void multiply_codes(u32 (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  UNROLL for (int part = 0; part < 4; ++part) {
    const int half = 2 * (part & 1);
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32 {%0,%1},{%2},{%3},{%0,%1};"
                 : "+r"(sums[half]), "+r"(sums[half + 1])
                 : "r"(a[part]), "r"(b[part / 2]));
  }
#endif
}

// Four warps together (sm_90a): sums (64 rows, 16 of each warp, x all columns) += a, in registers as above, times b, of
// which the tensor cores read `kRowBytes` apart rows of 32 bytes themselves. Runs on while the warps go on, until
// `wait_together`.

// What copies wrote is seen by the tensor cores only after this, by each thread that waited for its copies.
DEVICE void show_copies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Describes rows of 32, 64 or 128 bytes, whose chunks of 16 lie at the place of their number `xor` the row's (of 128
// bytes; of 64 that of pairs, of 32 of fours), from byte `first` of each row on. Eight rows begin at a multiple of
// their size.
template <int kRowBytes>
DEVICE u64 rows_of(const u32* rows, int first) {
  constexpr u64 kSwizzle = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
  const u32 place = static_cast<u32>(__cvta_generic_to_shared(rows)) + first;
  return (place & 0x3ffffu) >> 4 | 1ull << 16 | static_cast<u64>(8 * kRowBytes >> 4) << 32 | kSwizzle << 62;
}

DEVICE void open_together() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
DEVICE void close_together() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

#define SUMS_1(c) "+r"(sums[c][0]), "+r"(sums[c][1]), "+r"(sums[c][2]), "+r"(sums[c][3])
#define SUMS_4(c) SUMS_1(c), SUMS_1(c + 1), SUMS_1(c + 2), SUMS_1(c + 3)
#define NAMES_32                                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31"
#define NAMES_64                                                                                              \
  NAMES_32                                                                                                    \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
  "%58,%59,%60,%61,%62,%63"
#define TOGETHER_64(kind)                                                                                     \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64" kind " {" NAMES_32 \
               "}, {%32,%33,%34,%35}, %36, p;}"                                                               \
               : SUMS_4(0), SUMS_4(4)                                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "r"(1))
#define TOGETHER_128(kind)                                                                                     \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128" kind " {" NAMES_64 \
               "}, {%64,%65,%66,%67}, %68, p;}"                                                                \
               : SUMS_4(0), SUMS_4(4), SUMS_4(8), SUMS_4(12)                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "r"(1))

// Of 64 columns, or 128, by eights.
template <int kColumns>
DEVICE void multiply_and_together(u32 (&sums)[kColumns][4], const u32 (&a)[4], u64 rows) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kColumns == 8) TOGETHER_64("k256.s32.b1.b1.and.popc");
  if constexpr (kColumns == 16) TOGETHER_128("k256.s32.b1.b1.and.popc");
#endif
}
template <int kColumns>
DEVICE void multiply_codes_together(u32 (&sums)[kColumns][4], const u32 (&a)[4], u64 rows) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kColumns == 8) TOGETHER_64("k32.s32.s8.u8");
  if constexpr (kColumns == 16) TOGETHER_128("k32.s32.s8.u8");
#endif
}

DEVICE void wait_together() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
// The compiler may touch sums from here on, and not before.
template <int kColumns>
DEVICE void take_together(u32 (&sums)[kColumns][4]) {
  UNROLL for (int column = 0; column < kColumns; ++column) asm volatile("" : SUMS_1(column)::"memory");
}

#endif
