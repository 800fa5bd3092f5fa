// The matmul on the tensor cores of any GPU since Ampere: blocks of 128 x 128, mma.sync on 16 x 8 x 16, operands through
// a ring in shared memory that cp.async fills. Any strides and sizes; FP32 accumulation, or FP16 with the sum rounded
// after every `chunk` values of k, a multiple of 16.
#pragma once
#include "mm_tally.cuh"

namespace amplint {
namespace tile {

constexpr int kSide = 128;     // of a block's part of the result
constexpr int kDepth = 32;     // values of k in a stage
constexpr int kStages = 4;
constexpr int kThreads = 256;  // 8 warps, 2 down and 4 across: each 64 x 32
// Pitches, in halves, that spread the 8 rows of ldmatrix over all banks.
constexpr int kDeepPitch = kDepth + 8, kWidePitch = kSide + 8;
constexpr int kStage = kSide * kDeepPitch > kDepth * kWidePitch ? kSide * kDeepPitch : kDepth * kWidePitch;
constexpr int kSums = kSide * kSide / kThreads;  // of a thread
constexpr int kShared = 2 * kStages * kStage * int(sizeof(__half));
static_assert(kShared >= kSide * kSide * int(sizeof(float)), "the ring holds the sums at the end");

__device__ inline unsigned shared_address(const void* x) { return unsigned(__cvta_generic_to_shared(x)); }

__device__ inline void copy(__half* to, const __half* from, int bytes) {  // the rest of 16 is zero
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}

template <bool Transposed>
__device__ inline void load_matrices(unsigned (&x)[4], const __half* from) {
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(from)));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(from)));
}

__device__ inline void multiply_add(float* sums, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A stage of one operand: 128 rows of a, or columns of b, times 32 of k. Deep: k runs along memory, and along the rows
// in shared memory; else the other way round. What lies outside is zero.
template <bool Deep>
__device__ inline void fetch(__half* to, const Operand& x, const __half* data, int first, int count, int k0, int k,
                             bool aligned) {
#pragma unroll
  for (int i = 0; i < kSide * kDepth / 8 / kThreads; i++) {
    int piece = threadIdx.x + i * kThreads;
    int side = Deep ? piece / (kDepth / 8) : piece % (kSide / 8) * 8;
    int deep = Deep ? piece % (kDepth / 8) * 8 : piece / (kSide / 8);
    __half* here = to + (Deep ? side * kDeepPitch + deep : deep * kWidePitch + side);
    int left = Deep ? k - k0 - deep : count - first - side;  // along memory
    bool outside = Deep ? first + side >= count : k0 + deep >= k;
    left = outside ? 0 : max(0, min(8, left));
    const __half* from = data + (first + side) * x.stride + (k0 + deep) * x.k_stride;
    if (aligned) {
      copy(here, left ? from : data, 2 * left);
    } else {
      __align__(16) unsigned short each[8];
      long long step = Deep ? x.k_stride : x.stride;
#pragma unroll
      for (int j = 0; j < 8; j++) each[j] = j < left ? __half_as_ushort(from[j * step]) : 0;
      *reinterpret_cast<uint4*>(here) = *reinterpret_cast<uint4*>(each);
    }
  }
}

template <bool DeepA, bool DeepB, bool Rounds>
__global__ void __launch_bounds__(kThreads, 2) kernel(Product it, bool aligned_a, bool aligned_b) {
  extern __shared__ __align__(16) __half memory[];
  __half *of_a = memory, *of_b = memory + kStages * kStage;
  const int rows = (it.m + kSide - 1) / kSide, columns = (it.n + kSide - 1) / kSide;
  const Place place = place_of(blockIdx.x, rows, columns);
  const int top = place.row * kSide, left = place.column * kSide, steps = (it.k + kDepth - 1) / kDepth;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, down = warp / 4 * 64, across = warp % 4 * 32;
  const int per_chunk = Rounds ? it.chunk / 16 : 0;

  for (long long batch = blockIdx.z; batch < it.batch; batch += gridDim.z) {
    const __half *a = it.a.data + batch * it.a.batch_stride, *b = it.b.data + batch * it.b.batch_stride;
    auto fetch_stage = [&](int step) {
      if (step < steps) {
        int stage = step % kStages * kStage;
        fetch<DeepA>(of_a + stage, it.a, a, top, it.m, step * kDepth, it.k, aligned_a);
        fetch<DeepB>(of_b + stage, it.b, b, left, it.n, step * kDepth, it.k, aligned_b);
      }
      asm volatile("cp.async.commit_group;");  // also an empty one: their number is what is waited for
    };
    float sums[kSums] = {};  // 16 rows down, 8 columns across, and a lane's 4 of a product
    int in_chunk = 0;
    for (int i = 0; i < kStages - 1; i++) fetch_stage(i);
    for (int step = 0; step < steps; step++) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
      __syncthreads();
      fetch_stage(step + kStages - 1);  // into what was read in the last round
      const __half *stage_a = of_a + step % kStages * kStage, *stage_b = of_b + step % kStages * kStage;
#pragma unroll
      for (int deep = 0; deep < kDepth; deep += 16) {
        unsigned x[4][4], y[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {  // quarters: rows 0 and 8 at k 0, then at k 8
          int side = down + i * 16 + (DeepA ? lane % 16 : lane / 8 % 2 * 8);
          int at = deep + (DeepA ? lane / 16 * 8 : lane / 16 * 8 + lane % 8);
          load_matrices<!DeepA>(x[i], stage_a + (DeepA ? side * kDeepPitch + at : at * kWidePitch + side));
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {  // quarters: columns 0 at k 0 and 8, then columns 8
          int side = across + j * 16 + lane / 16 * 8 + (DeepB ? lane % 8 : 0);
          int at = deep + lane / 8 % 2 * 8 + (DeepB ? 0 : lane % 8);
          load_matrices<!DeepB>(y[j], stage_b + (DeepB ? side * kDeepPitch + at : at * kWidePitch + side));
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 4; j++)
            multiply_add(sums + (i * 4 + j) * 4, x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
        if (Rounds && ++in_chunk == per_chunk) {
          in_chunk = 0;
          if (step * kDepth + deep + 16 < it.k)  // the last one is the result's own
#pragma unroll
            for (float& sum : sums) sum = __half2float(__float2half_rn(sum));
        }
      }
    }
    // The ring is free now: it holds the sums while they are rounded, a few at a time. In registers beside their places
    // in the result they would not fit.
    __syncthreads();
    float* parked = reinterpret_cast<float*>(memory) + threadIdx.x;
    unsigned most = 0, least = ~0u;
#pragma unroll
    for (int i = 0; i < kSums; i++) {
      most = max(most, size_of(sums[i])), least = min(least, size_of(sums[i]));
      parked[i * kThreads] = sums[i];
    }
    const bool whole = top + kSide <= it.m && left + kSide <= it.n, even = it.n % 2 == 0;
    const bool special = !whole || most >= kHalfHere.overflow || (it.counted && least < kHalfHere.normal);
    __half* out = it.out + batch * it.m * (long long)it.n;
    Tally tally;
    if (!special) tally.top = most;
#pragma unroll 4
    for (int i = 0; i < kSums; i += 2) {
      const int row = top + down + i / 16 * 16 + lane / 4 + i % 4 / 2 * 8;
      const int column = left + across + i / 4 % 4 * 8 + lane % 4 * 2;
      if (row >= it.m || column >= it.n) continue;
      const float low = parked[i * kThreads], high = parked[(i + 1) * kThreads];
      __half* to = out + row * (long long)it.n + column;
      const bool both = column + 1 < it.n;
      if (special) {
        tally.add(size_of(low), kHalfHere);
        if (both) tally.add(size_of(high), kHalfHere);
      }
      const unsigned pair = special ? half_of(low) | unsigned(half_of(high)) << 16 : pair_of(low, high);
      if (even) {
        *reinterpret_cast<unsigned*>(to) = pair;
      } else {
        to[0] = __ushort_as_half(pair & 0xffffu);
        if (both) to[1] = __ushort_as_half(pair >> 16);
      }
    }
    if (it.counted) tally.into(it.counters, special);
    __syncthreads();  // before the next of the batch fills the ring
  }
}

}  // namespace tile
}  // namespace amplint
