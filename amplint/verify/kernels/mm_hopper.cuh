// The matmul on Hopper's tensor cores (sm_90a): wgmma on operands that the copy engine (TMA) brings into a ring in
// shared memory. A block makes 128 rows of the result: one warp fills the ring, two groups of four warps multiply 64 rows each.
// FP32 accumulation. Operands may be transposed; they start at, and their lines are, multiples of 16 bytes.
//
// Layouts and encodings: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" (matrix descriptor, strides of
// K-major and MN-major tiles in the 128-byte swizzle) and "Tensor copies".
#pragma once
#include <cuda.h>

#include "mm_tally.cuh"

namespace amplint {
namespace hopper {

constexpr int kRows = 128;                  // of a block's part of the result; its columns are a template's
constexpr int kDepth = 64;                  // values of k in a stage: a line of 128 bytes
constexpr int kLines = kDepth * kDepth;     // halves in a tile of 64 lines, 8 KiB
constexpr int kThreads = 3 * 128;
constexpr int kStages = 4;

template <int Columns>
constexpr int stage_size() { return (kRows + Columns) * kDepth; }  // in halves

template <int Columns>
constexpr int shared_size() { return 1024 + kStages * stage_size<Columns>() * int(sizeof(__half)); }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline unsigned shared_address(const void* x) { return unsigned(__cvta_generic_to_shared(x)); }

// -- barriers and copies --------------------------------------------------------------------------------------------

__device__ inline void start(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again; }" ::"r"(shared_address(barrier)), "r"(parity)
      : "memory");
}
__device__ inline void copy(__half* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
      ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// A stage of one operand, Side rows of a or columns of b. Deep: k runs along its lines of 64 values, Side lines; else a
// tile of 64 lines, one a value of k, for each 64 of Side.
template <int Side, bool Deep>
__device__ inline void fetch(__half* to, const CUtensorMap* map, uint64_t* barrier, int first, int k, int batch) {
  if constexpr (Deep) {
    copy(to, map, barrier, k, first, batch);
  } else {
#pragma unroll
    for (int i = 0; i < Side / 64; i++) copy(to + i * kLines, map, barrier, first + i * 64, k, batch);
  }
}

// -- wgmma ----------------------------------------------------------------------------------------------------------

// Where an operand of one instruction is: 8 lines of 128 bytes are 1024; MN-major tiles of 64 are 8 KiB apart.
__device__ inline uint64_t descriptor(const __half* at) {
  uint64_t address = (shared_address(at) & 0x3ffffu) >> 4;
  return address | uint64_t(kLines * sizeof(__half) >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

#define OF_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OF_16(d, i) OF_4(d, i), OF_4(d, i + 4), OF_4(d, i + 8), OF_4(d, i + 12)
#define OF_32(d, i) OF_16(d, i), OF_16(d, i + 16)
#define OF_64(d, i) OF_32(d, i), OF_32(d, i + 32)
#define OF_128(d, i) OF_64(d, i), OF_64(d, i + 64)

// d (64 x 64, 128 or 256; a lane's part of it) = a b, plus d where `accumulate`.
template <int TransposedA, int TransposedB>
__device__ inline void multiply_add(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, %35, %36; }"
      : OF_32(d, 0)
      : "l"(a), "l"(b), "r"(accumulate), "n"(TransposedA), "n"(TransposedB));
}

template <int TransposedA, int TransposedB>
__device__ inline void multiply_add(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, %67, %68; }"
      : OF_64(d, 0)
      : "l"(a), "l"(b), "r"(accumulate), "n"(TransposedA), "n"(TransposedB));
}

template <int TransposedA, int TransposedB>
__device__ inline void multiply_add(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, p, 1, 1, %131, %132; }"
      : OF_128(d, 0)
      : "l"(a), "l"(b), "r"(accumulate), "n"(TransposedA), "n"(TransposedB));
}

#undef OF_4
#undef OF_16
#undef OF_32
#undef OF_64
#undef OF_128

#endif  // sm_90a

// -- the kernel -----------------------------------------------------------------------------------------------------

template <int Columns, bool DeepA, bool DeepB>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(Product it, const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  __shared__ uint64_t full[kStages], empty[kStages];
  constexpr int kStage = stage_size<Columns>();
  __half* ring = reinterpret_cast<__half*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int rows = (it.m + kRows - 1) / kRows, columns = (it.n + Columns - 1) / Columns;
  const Place place = place_of(blockIdx.x, rows, columns);
  const int top = place.row * kRows, left = place.column * Columns, steps = (it.k + kDepth - 1) / kDepth;
  const int group = threadIdx.x / 128, batch = blockIdx.z;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) start(full + i, 1), start(empty + i, 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();

  if (group == 0) {  // fills the ring
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      for (int step = 0; step < steps; step++) {
        const int stage = step % kStages;
        if (step >= kStages) wait(empty + stage, (step / kStages - 1) & 1);
        expect(full + stage, kStage * int(sizeof(__half)));
        __half* to = ring + stage * kStage;
        const int of_a = it.a.batch_stride ? batch : 0, of_b = it.b.batch_stride ? batch : 0;
        fetch<kRows, DeepA>(to, &map_a, full + stage, top, step * kDepth, of_a);
        fetch<Columns, DeepB>(to + kRows * kDepth, &map_b, full + stage, left, step * kDepth, of_b);
      }
    }
  } else {  // multiplies
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int half = group - 1, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
    float sums[Columns / 2];
    for (int step = 0; step < steps; step++) {
      const int stage = step % kStages;
      const __half *a = ring + stage * kStage + half * kLines, *b = ring + stage * kStage + kRows * kDepth;
      wait(full + stage, (step / kStages) & 1);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int i = 0; i < kDepth / 16; i++)  // 16 of k: 32 bytes along a line, or 16 lines
        multiply_add<!DeepA, !DeepB>(sums, descriptor(a + (DeepA ? i * 16 : i * 16 * kDepth)),
                                     descriptor(b + (DeepB ? i * 16 : i * 16 * kDepth)), step > 0 || i > 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");  // the one before is over: its stage is free
      if (step > 0 && lane == 0) arrive(empty + (step - 1) % kStages);
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < Columns / 2; i++) asm volatile("" : "+f"(sums[i])::"memory");

    // A warp has 16 rows of the result. They go through shared memory, so that whole lines go out.
    constexpr int kPitch = Columns + 8;
    asm volatile("bar.sync 1, 256;" ::: "memory");  // nobody reads the ring any more
    __half* mine = ring + (half * 4 + warp) * 16 * kPitch;
    auto row_of = [&](int i) { return lane / 4 + i % 4 / 2 * 8; };
    auto column_of = [&](int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; };
    const int first = top + half * 64 + warp * 16;
    const bool whole = top + kRows <= it.m && left + Columns <= it.n;
    finish(
        sums, whole, it.counted, it.counters,
        [&](int i, unsigned pair) { *reinterpret_cast<unsigned*>(mine + row_of(i) * kPitch + column_of(i)) = pair; },
        [&](int i) { return first + row_of(i) < it.m && left + column_of(i) < it.n; });
    __syncwarp();
    __half* out = it.out + batch * it.m * (long long)it.n;
    constexpr int kPieces = Columns / 8;  // of 16 bytes in a row
    for (int i = lane; i < 16 * kPieces; i += 32) {
      const int row = i / kPieces, column = i % kPieces * 8;
      if (first + row >= it.m || left + column >= it.n) continue;
      __half *to = out + (first + row) * (long long)it.n + left + column, *from = mine + row * kPitch + column;
      if (it.n % 8 == 0)
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4*>(from);
      else
        for (int j = 0; j < 8 && left + column + j < it.n; j++) to[j] = from[j];
    }
  }
#endif
}

}  // namespace hopper
}  // namespace amplint
