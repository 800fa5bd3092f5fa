// Counting and rounding on the GPU: what one thread holds of a result, and how the counts of many meet.
#pragma once
#include <cuda_fp16.h>

#include "mm_path.h"

namespace amplint {

// The counters in memory, an int64[6] as ops.py reads it: inf, nan, flushed, subnormal, elements, bits of absmax.
using Counters = unsigned long long;

// A GPU's own copies of mm_path.h's constants, whose addresses it may take.
static __device__ constexpr Limit kHalfHere = kHalf, kBfloatHere = kBfloat;

struct Tally {
  unsigned inf = 0, nan = 0, flushed = 0, subnormal = 0, top = 0;

  __device__ void add(unsigned size, const Limit& limit) {  // bits of |x| in FP32
    bool is_nan = size > kInfinity;
    nan += is_nan;
    inf += !is_nan && size >= limit.overflow;
    flushed += size - 1u < limit.flushed;
    subnormal += size > limit.flushed && size < limit.normal;
    top = max(top, is_nan ? 0u : size);
  }

  // All threads of the warp call it. `special`: whether this thread counted anything but `top`.
  __device__ void into(Counters* counters, bool special) const {
    if (__any_sync(~0u, special)) {
      unsigned each[] = {inf, nan, flushed, subnormal};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        unsigned sum = warp_sum(each[i]);
        if (sum && threadIdx.x % 32 == 0) atomicAdd(counters + i, Counters(sum));
      }
    }
    unsigned most = warp_max(top);
    if (threadIdx.x % 32 == 0 && most > *(volatile Counters*)(counters + 5)) atomicMax(counters + 5, Counters(most));
  }

 private:
#if __CUDA_ARCH__ >= 800
  static __device__ unsigned warp_sum(unsigned x) { return __reduce_add_sync(~0u, x); }
  static __device__ unsigned warp_max(unsigned x) { return __reduce_max_sync(~0u, x); }
#else
  static __device__ unsigned warp_sum(unsigned x) { return x; }
  static __device__ unsigned warp_max(unsigned x) { return x; }
#endif
};

__device__ inline unsigned size_of(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ inline unsigned short half_of(float x) {  // NaN: 0x7e00, as on the CPU
  return size_of(x) > kInfinity ? 0x7e00 : __half_as_ushort(__float2half_rn(x));
}

__device__ inline unsigned pair_of(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<unsigned*>(&pair);
}

// Rounds what a thread holds of a tile of the result: `sums` in pairs of neighbours, which go to `to(i, pair)`.
// `inside(i)`: whether sums[i] is part of the result; asked only where the tile is not `whole`.
template <int N, class To, class Inside>
__device__ inline void finish(float (&sums)[N], bool whole, bool counted, Counters* counters, To to,
                              Inside inside) {
  unsigned top = 0, least = ~0u;
#pragma unroll
  for (int i = 0; i < N; i++) top = max(top, size_of(sums[i])), least = min(least, size_of(sums[i]));
  Tally tally;
  bool special = !whole || top >= kHalfHere.overflow || (counted && least < kHalfHere.normal);
  if (!special) {
    tally.top = top;
#pragma unroll
    for (int i = 0; i < N; i += 2) to(i, pair_of(sums[i], sums[i + 1]));
  } else {
#pragma unroll
    for (float& sum : sums) asm volatile("" : "+f"(sum));  // or the compiler keeps every |x| from above, and spills
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      if (whole || inside(i)) tally.add(size_of(sums[i]), kHalfHere);
      if (whole || inside(i + 1)) tally.add(size_of(sums[i + 1]), kHalfHere);
      to(i, half_of(sums[i]) | unsigned(half_of(sums[i + 1])) << 16);
    }
  }
  if (counted) tally.into(counters, special);
}

// Which tile of the result a block makes: groups of kGroup rows of tiles, down the columns, so that blocks that run at
// the same time read the same operands from the level 2 cache.
struct Place {
  int row, column;
};
__device__ inline Place place_of(unsigned block, unsigned rows, unsigned columns) {
  constexpr unsigned kGroup = 16;
  unsigned group = block / (kGroup * columns), first = group * kGroup;
  unsigned height = min(kGroup, rows - first), inside = block - group * kGroup * columns;
  return {int(first + inside % height), int(inside / height)};
}

// An operand as a kernel reads it: rows of a, or columns of b, side by side along `stride`, k along `k_stride`.
struct Operand {
  const __half* data;
  long long stride, k_stride, batch_stride;  // in halves
};

struct Product {
  Operand a, b;
  __half* out;  // [batch, m, n], contiguous
  Counters* counters;
  long long batch;
  int m, n, k;
  int chunk;  // 0: FP32 accumulation
  bool counted;
};

}  // namespace amplint
