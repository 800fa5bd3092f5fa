// amplint's FP16 matmul on NVIDIA GPUs: the operators of ops.py on LibTorch's stable ABI, and which kernel does what.
//
//   hopper  FP32 accumulation on compute capability 9.0, operands aligned to 16 bytes (mm_hopper.cuh)
//   tile    FP32 accumulation elsewhere, and FP16 accumulation in chunks of a multiple of 16 (mm_tile.cuh)
//   plain   other chunks: a thread a value, bit-equal to the CPU (mm_path.h)
//
// Tensor cores sum the 16 products of an instruction in an order and a width of their own: hopper and tile are as close
// to float64 as the CPU's kernel, and not bit-equal to it.
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "mm_hopper.cuh"
#include "mm_tally.cuh"
#include "mm_tile.cuh"

namespace amplint {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kDefaultChunk = 16;
constexpr int kMostBlocks = 65535;  // of a grid's second and third dimensions

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "amplint: ", what, ": ", cudaGetErrorString(error));
}

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  const auto error = aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream);
  STD_TORCH_CHECK(error == 0, "amplint: torch has no current stream");
  return static_cast<cudaStream_t>(stream);
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "a device's attribute");
  return value;
}

// -- plain kernels --------------------------------------------------------------------------------------------------

__global__ void plain(Product it) {
  const long long column = blockIdx.x * (long long)blockDim.x + threadIdx.x, row = blockIdx.y + blockIdx.z * (long long)gridDim.y;
  const bool inside = column < it.n && row < it.m * it.batch;
  Tally tally;
  if (inside) {
    const long long batch = row / it.m;
    const __half* a = it.a.data + batch * it.a.batch_stride + row % it.m * it.a.stride;
    const __half* b = it.b.data + batch * it.b.batch_stride + column * it.b.stride;
    float sum = 0;
    for (int p = 0; p < it.k; p++) {
      if (it.chunk && p && p % it.chunk == 0) sum = __half2float(__float2half_rn(sum));
      sum = fmaf(__half2float(a[p * it.a.k_stride]), __half2float(b[p * it.b.k_stride]), sum);
    }
    it.out[row * it.n + column] = __ushort_as_half(half_of(sum));
    tally.add(size_of(sum), kHalfHere);
  }
  if (it.counted) tally.into(it.counters, true);
}

__device__ inline unsigned short bfloat_of(float x) {
  unsigned bits = __float_as_uint(x);
  return size_of(x) > kInfinity ? 0x7fc0 : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

__device__ inline float widen(unsigned short x, bool bfloat) {
  return bfloat ? __uint_as_float(unsigned(x) << 16) : __half2float(__ushort_as_half(x));
}

struct alignas(16) Eight {
  unsigned short each[8];
};
struct alignas(16) Four {
  float each[4];
};

__global__ void narrow_kernel(unsigned short* out, const float* x, long long n, bool bfloat, Counters* counters) {
  const Limit limit = bfloat ? kBfloatHere : kHalfHere;
  Tally tally;
  auto one = [&](float value) {
    tally.add(size_of(value), limit);
    return bfloat ? bfloat_of(value) : half_of(value);
  };
  const long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x, step = gridDim.x * (long long)blockDim.x;
  for (long long i = first; i < n / 8; i += step) {
    Four low = reinterpret_cast<const Four*>(x)[2 * i], high = reinterpret_cast<const Four*>(x)[2 * i + 1];
    Eight made;
#pragma unroll
    for (int j = 0; j < 4; j++) made.each[j] = one(low.each[j]), made.each[j + 4] = one(high.each[j]);
    reinterpret_cast<Eight*>(out)[i] = made;
  }
  for (long long i = n / 8 * 8 + first; i < n; i += step) out[i] = one(x[i]);
  tally.into(counters, true);
}

__global__ void statistics_kernel(const unsigned short* x, long long n, bool bfloat, bool aligned, Counters* counters) {
  const Limit limit = bfloat ? kBfloatHere : kHalfHere;
  Tally tally;
  const long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x, step = gridDim.x * (long long)blockDim.x;
  const long long eights = aligned ? n / 8 : 0;
  for (long long i = first; i < eights; i += step) {
    Eight here = reinterpret_cast<const Eight*>(x)[i];
#pragma unroll
    for (int j = 0; j < 8; j++) tally.add(size_of(widen(here.each[j], bfloat)), limit);
  }
  for (long long i = eights * 8 + first; i < n; i += step) tally.add(size_of(widen(x[i], bfloat)), limit);
  tally.into(counters, true);
}

__global__ void set_elements(Counters* counters, long long elements) {  // and the others zero
  if (threadIdx.x < 6) counters[threadIdx.x] = threadIdx.x == 4 ? elements : 0;
}

// -- tensors and launches -------------------------------------------------------------------------------------------

Counters* data_of(const Tensor& counts) { return static_cast<Counters*>(counts.data_ptr()); }

Tensor new_counts(const Tensor& like, int64_t elements, cudaStream_t stream) {
  Tensor counts = torch::stable::new_empty(like, {6}, ScalarType::Long);
  set_elements<<<1, 32, 0, stream>>>(data_of(counts), elements);
  return counts;
}

bool deep(const Operand& x) { return x.k_stride == 1; }

bool aligned(const Operand& x) {  // to 16 bytes, every line of it
  const long long line = deep(x) ? x.stride : x.k_stride;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && line % 8 == 0 && x.batch_stride % 8 == 0 &&
         (deep(x) || x.stride == 1);
}

template <class Kernel>
void allow_shared(Kernel kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "a block's shared memory");
}

template <bool DeepA, bool DeepB, bool Rounds>
void launch_tile(const Product& it, cudaStream_t stream) {
  auto* kernel = tile::kernel<DeepA, DeepB, Rounds>;
  allow_shared(kernel, tile::kShared);
  const unsigned blocks = unsigned((it.m + tile::kSide - 1) / tile::kSide) * ((it.n + tile::kSide - 1) / tile::kSide);
  const dim3 grid(blocks, 1, unsigned(std::min<long long>(it.batch, kMostBlocks)));
  kernel<<<grid, tile::kThreads, tile::kShared, stream>>>(it, aligned(it.a), aligned(it.b));
}

template <bool DeepA, bool DeepB>
void launch_tile(const Product& it, cudaStream_t stream) {
  it.chunk ? launch_tile<DeepA, DeepB, true>(it, stream) : launch_tile<DeepA, DeepB, false>(it, stream);
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode encoder() {  // the driver's, found without linking to it
  static Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result), "TMA");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &result), "TMA");
#endif
    return reinterpret_cast<Encode>(entry);
  }();
  STD_TORCH_CHECK(found, "amplint: the driver does not know cuTensorMapEncodeTiled");
  return found;
}

// How the copy engine finds a stage of an operand: boxes of 64 values along memory and `side` (deep) or 64 lines.
CUtensorMap map_of(const Operand& x, long long count, long long k, long long batch, int side) {
  const long long along = deep(x) ? k : count, lines = deep(x) ? count : k, line = deep(x) ? x.stride : x.k_stride;
  const cuuint64_t sizes[] = {cuuint64_t(along), cuuint64_t(lines), cuuint64_t(x.batch_stride ? batch : 1)};
  const cuuint64_t strides[] = {cuuint64_t(line) * 2, cuuint64_t(x.batch_stride ? x.batch_stride : 8) * 2};
  const cuuint32_t box[] = {64, cuuint32_t(deep(x) ? side : 64), 1}, steps[] = {1, 1, 1};
  CUtensorMap map;
  CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, const_cast<__half*>(x.data), sizes, strides, box,
                              steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, "amplint: cuTensorMapEncodeTiled gave ", int(result));
  return map;
}

template <int Columns, bool DeepA, bool DeepB>
void launch_hopper(const Product& it, cudaStream_t stream) {
  auto* kernel = hopper::kernel<Columns, DeepA, DeepB>;
  constexpr int kShared = hopper::shared_size<Columns>();
  allow_shared(kernel, kShared);
  const unsigned blocks = unsigned((it.m + hopper::kRows - 1) / hopper::kRows) * ((it.n + Columns - 1) / Columns);
  kernel<<<dim3(blocks, 1, unsigned(it.batch)), hopper::kThreads, kShared, stream>>>(
      it, map_of(it.a, it.m, it.k, it.batch, hopper::kRows), map_of(it.b, it.n, it.k, it.batch, Columns));
}

template <bool DeepA, bool DeepB>
void launch_hopper(const Product& it, int processors, cudaStream_t stream) {
  // The widest blocks that still give most processors one.
  auto blocks = [&](int columns) { return it.batch * ((it.m + 127) / 128) * ((it.n + columns - 1) / columns); };
  if (blocks(256) >= processors * 3 / 4) return launch_hopper<256, DeepA, DeepB>(it, stream);
  if (blocks(128) >= processors * 3 / 4) return launch_hopper<128, DeepA, DeepB>(it, stream);
  launch_hopper<64, DeepA, DeepB>(it, stream);
}

bool for_hopper(const Product& it, int device) {
  // A copy's lines must be multiples of 16 bytes, also where there is only one.
  return it.chunk == 0 && it.batch <= kMostBlocks && aligned(it.a) && aligned(it.b) &&
         it.a.stride > 0 && it.a.k_stride > 0 && it.b.stride > 0 && it.b.k_stride > 0 && it.a.batch_stride >= 0 &&
         it.b.batch_stride >= 0 && attribute(cudaDevAttrComputeCapabilityMajor, device) == 9;
}

void launch(const Product& it, std::string path, int device, cudaStream_t stream) {
  if (path.empty()) path = it.chunk % 16 ? "plain" : for_hopper(it, device) ? "hopper" : "tile";
  const bool deep_a = deep(it.a), deep_b = deep(it.b);
  if (path == "hopper") {
    STD_TORCH_CHECK(for_hopper(it, device), "amplint: these operands, or this GPU, are not for the path hopper");
    const int processors = attribute(cudaDevAttrMultiProcessorCount, device);
    deep_a ? deep_b ? launch_hopper<true, true>(it, processors, stream) : launch_hopper<true, false>(it, processors, stream)
           : deep_b ? launch_hopper<false, true>(it, processors, stream) : launch_hopper<false, false>(it, processors, stream);
  } else if (path == "tile") {
    STD_TORCH_CHECK(it.chunk % 16 == 0, "amplint: the path tile rounds after a multiple of 16");
    deep_a ? deep_b ? launch_tile<true, true>(it, stream) : launch_tile<true, false>(it, stream)
           : deep_b ? launch_tile<false, true>(it, stream) : launch_tile<false, false>(it, stream);
  } else {
    STD_TORCH_CHECK(path == "plain", "amplint: there is no path named ", path);
    const long long rows = it.m * it.batch;
    const unsigned y = unsigned(std::min<long long>(rows, kMostBlocks)), z = unsigned((rows + y - 1) / y);
    plain<<<dim3(unsigned((it.n + 127) / 128), y, z), 128, 0, stream>>>(it);
  }
  check(cudaGetLastError(), "the start of a kernel");
}

// An operand's strides; one that has a single row or column of it, or a single k, may be seen as if its lines were
// aligned, since there is no next line.
Operand operand(const Tensor& x, int64_t side_dim, int64_t k_dim) {
  Operand found{static_cast<const __half*>(x.data_ptr()), x.stride(side_dim), x.stride(k_dim),
                x.dim() == 3 ? x.stride(0) : 0};
  const int64_t side = x.size(side_dim), k = x.size(k_dim);
  if (k == 1 && side > 1 && found.stride == 1) found.k_stride = (side + 7) / 8 * 8;
  else if (k == 1) found.k_stride = 1;
  if (side == 1 && found.k_stride == 1) found.stride = (k + 7) / 8 * 8;
  if (x.dim() == 3 && x.size(0) == 1) found.batch_stride = 0;
  return found;
}

std::tuple<Tensor, Tensor> mm_on(const Tensor& a, const Tensor& b, const std::string& accumulate, int64_t chunk,
                                 const std::string& path, bool counted) {
  const int64_t dims = a.dim();
  STD_TORCH_CHECK((dims == 2 || dims == 3) && b.dim() == dims, "amplint: mm takes two matrices or two batches of them");
  STD_TORCH_CHECK(a.scalar_type() == ScalarType::Half && b.scalar_type() == ScalarType::Half,
                  "amplint: mm takes float16");
  STD_TORCH_CHECK(a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index(),
                  "amplint: mm's operands are on different devices");
  STD_TORCH_CHECK(accumulate == "float32" || accumulate == "float16", "amplint: accumulate is float32 or float16");
  STD_TORCH_CHECK(chunk >= 0, "amplint: chunk is not negative");
  const int64_t m = a.size(dims - 2), k = a.size(dims - 1), n = b.size(dims - 1), batch = dims == 3 ? a.size(0) : 1;
  STD_TORCH_CHECK(b.size(dims - 2) == k && (dims == 2 || b.size(0) == batch), "amplint: mm's shapes do not go together");
  STD_TORCH_CHECK(std::max({m, k, n}) <= std::numeric_limits<int>::max() / 2, "amplint: mm's matrices are too large");
  chunk = accumulate == "float32" || k == 0 ? 0 : std::min(chunk ? chunk : int64_t(kDefaultChunk), (k + 15) / 16 * 16);
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const cudaStream_t stream = stream_of(a);
  std::vector<int64_t> sizes = dims == 3 ? std::vector<int64_t>{batch, m, n} : std::vector<int64_t>{m, n};
  Tensor out = torch::stable::new_empty(a, sizes), counts = new_counts(a, batch * m * n, stream);
  if (batch && m && n && !k) check(cudaMemsetAsync(out.data_ptr(), 0, batch * m * n * 2, stream), "memory");
  if (batch && m && n && k)
    launch({operand(a, dims - 2, dims - 1), operand(b, dims - 1, dims - 2), static_cast<__half*>(out.data_ptr()),
            data_of(counts), batch, int(m), int(n), int(k), int(chunk), counted},
           path, a.get_device_index(), stream);
  return {out, counts};
}

std::tuple<Tensor, Tensor> mm(Tensor a, Tensor b, std::string accumulate, int64_t chunk) {
  return mm_on(a, b, accumulate, chunk, "", true);
}

// For tests and benchmarks: a path by its name, and without counting.
std::tuple<Tensor, Tensor> mm_cuda(Tensor a, Tensor b, std::string accumulate, int64_t chunk, std::string path,
                                   bool counted) {
  return mm_on(a, b, accumulate, chunk, path, counted);
}

std::tuple<Tensor, Tensor> narrow(Tensor x, std::string dtype) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "amplint: narrow takes float32");
  STD_TORCH_CHECK(dtype == "float16" || dtype == "bfloat16", "amplint: narrow makes float16 or bfloat16");
  const bool bfloat = dtype == "bfloat16";
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const cudaStream_t stream = stream_of(x);
  Tensor from = torch::stable::contiguous(x), counts = new_counts(x, x.numel(), stream);
  if (reinterpret_cast<uintptr_t>(from.data_ptr()) % 16) from = torch::stable::clone(from);
  Tensor out = torch::stable::new_empty(from, from.sizes(), bfloat ? ScalarType::BFloat16 : ScalarType::Half);
  const int blocks = int(std::min<int64_t>((x.numel() + 2047) / 2048, 2048));
  if (blocks)
    narrow_kernel<<<blocks, 256, 0, stream>>>(static_cast<unsigned short*>(out.data_ptr()),
                                              static_cast<const float*>(from.data_ptr()), x.numel(), bfloat,
                                              data_of(counts));
  check(cudaGetLastError(), "the start of a kernel");
  return {out, counts};
}

Tensor statistics(Tensor x) {
  const bool bfloat = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(bfloat || x.scalar_type() == ScalarType::Half, "amplint: statistics takes float16 or bfloat16");
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const cudaStream_t stream = stream_of(x);
  Tensor from = torch::stable::contiguous(x), counts = new_counts(x, x.numel(), stream);
  const bool aligned = reinterpret_cast<uintptr_t>(from.data_ptr()) % 16 == 0;
  const int blocks = int(std::min<int64_t>((x.numel() + 2047) / 2048, 2048));
  if (blocks)
    statistics_kernel<<<blocks, 256, 0, stream>>>(static_cast<const unsigned short*>(from.data_ptr()), x.numel(), bfloat,
                                                  aligned, data_of(counts));
  check(cudaGetLastError(), "the start of a kernel");
  return counts;
}

}  // namespace
}  // namespace amplint

STABLE_TORCH_LIBRARY_FRAGMENT(amplint, library) {
  library.def("_mm_cuda(Tensor a, Tensor b, str accumulate, int chunk, str path, bool counted) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(amplint, CUDA, library) {
  library.impl("mm", TORCH_BOX(&amplint::mm));
  library.impl("narrow", TORCH_BOX(&amplint::narrow));
  library.impl("statistics", TORCH_BOX(&amplint::statistics));
  library.impl("_mm_cuda", TORCH_BOX(&amplint::mm_cuda));
}
