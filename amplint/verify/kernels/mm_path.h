// What the paths of the CPU's matmul (mm_path.cpp, compiled once per instruction set) offer to mm_cpu.cpp.
//
// The order of operations, the same on every path: out[i][j] = half(s), where s is an FP32 sum over k ascending of
// fma(a[i][k], b[k][j], s), from +0. With FP16 accumulation s is also rounded to half after every `chunk` values of k.
// A product of two halves has 22 significant bits and an exponent in FP32's normal range, so FP32 holds it exactly:
// fma, and multiply then add, are the same. Rounding is to nearest, ties to even. A NaN is stored as 0x7e00.
#pragma once
#include <cstdint>

namespace amplint {

// Of the values of one result. What half makes of an FP32 value x hangs on |x| alone; see Limit.
struct Counts {
  int64_t inf = 0, nan = 0;
  int64_t flushed = 0;     // not zero before it was rounded, zero after
  int64_t subnormal = 0;   // after
  uint32_t absmax = 0;     // bits of the largest |x| before rounding that is no NaN; they sort as the values do

  void add(const Counts& other) {
    inf += other.inf, nan += other.nan, flushed += other.flushed, subnormal += other.subnormal;
    absmax = other.absmax > absmax ? other.absmax : absmax;
  }
};

// Bits of |x| in FP32, for a format with that many bits after the point and its smallest normal 2^exponent.
struct Limit {
  uint32_t flushed;    // largest that becomes 0: half the smallest subnormal, a tie
  uint32_t normal;     // smallest that becomes normal
  uint32_t overflow;   // smallest that becomes inf
};
constexpr Limit kHalf = {0x33000000u, 0x387fe000u, 0x477ff000u};      // 2^-25, 2^-14 - 2^-25, 65520
constexpr Limit kBfloat = {0x00008000u, 0x007f8000u, 0x7f7f8000u};    // 2^-134, 2^-126 - 2^-134, 2^128 - 2^119
constexpr uint32_t kInfinity = 0x7f800000u;

struct Path {
  const char* name;
  int rows, columns;  // of the tile of the result that the registers hold

  // to[panel][p][i] = from[(panel * width + i) * stride + p * k_stride], zero where that is past `count`.
  void (*pack)(float* to, const uint16_t* from, int64_t count, int64_t k, int64_t stride, int64_t k_stride, int width);

  // out (m x n, rows `stride` apart) from packed panels of a and b; chunk 0: FP32 accumulation. Null counts: none.
  void (*multiply)(uint16_t* out, int64_t stride, const float* a, const float* b, int64_t m, int64_t n, int64_t k,
                   int64_t chunk, Counts* counts);

  // out = x rounded to half, or to bfloat16.
  void (*narrow)(uint16_t* out, const float* x, int64_t n, bool bfloat, Counts* counts);

  // Of values that are half, or bfloat16, already.
  void (*statistics)(const uint16_t* x, int64_t n, bool bfloat, Counts* counts);
};

extern const Path kGeneric;
#if defined(__x86_64__)
extern const Path kAvx2, kAvx512;
#endif

}  // namespace amplint
