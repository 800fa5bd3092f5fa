// amplint's FP16 matmul on the CPU: the operators of ops.py on LibTorch's stable ABI, blocks and threads. The order of
// operations is mm_path.h's; how the work is cut into blocks has no part in it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "mm_path.h"

namespace amplint {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kDefaultChunk = 16;            // what one tensor core instruction sums
constexpr int64_t kBlockOfA = 128 * 1024;        // values: half of a level 2 cache of 1 MiB
constexpr int64_t kBlockOfB = 4 * 1024 * 1024;   // values: 16 MiB
constexpr int64_t kSmall = 32 * 32 * 32;         // multiplications under which a thread is not worth its start

// -- paths ----------------------------------------------------------------------------------------------------------

std::vector<const Path*> paths() {  // that run here, best first
  std::vector<const Path*> found;
#if defined(__x86_64__)
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // all that have AVX2 have F16C
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    found.push_back(&kAvx512);
  if (avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kGeneric);
  return found;
}

const Path& path_named(const std::string& name) {  // "": the best one
  static const std::vector<const Path*> here = paths();
  if (name.empty()) return *here.front();
  for (const Path* path : here)
    if (name == path->name) return *path;
  STD_TORCH_CHECK(false, "amplint: this CPU has no path named ", name);
}

// -- memory and counts ----------------------------------------------------------------------------------------------

struct Free {
  void operator()(float* x) const { std::free(x); }
};

// At least `size` values for this thread, kept for the next call unless they are many.
class Scratch {
 public:
  float* get(int64_t size) {
    if (size > size_) {
      memory_.reset(static_cast<float*>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64)));
      STD_TORCH_CHECK(memory_ != nullptr, "amplint: no memory for a packed operand");
      size_ = size;
    }
    return memory_.get();
  }
  void shrink() {
    if (size_ > 2 * kBlockOfB) memory_.reset(), size_ = 0;
  }

 private:
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};
thread_local Scratch scratch_a, scratch_b;

class Total {
 public:
  void add(const Counts& counts) {
    std::lock_guard<std::mutex> lock(mutex_);
    counts_.add(counts);
  }
  Tensor tensor(const Tensor& like, int64_t elements) const {
    Tensor counts = torch::stable::new_empty(like, {6}, ScalarType::Long);
    int64_t values[] = {counts_.inf, counts_.nan, counts_.flushed, counts_.subnormal, elements, counts_.absmax};
    std::copy(values, values + 6, static_cast<int64_t*>(counts.data_ptr()));
    return counts;
  }

 private:
  std::mutex mutex_;
  Counts counts_;
};

int64_t up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// -- one matrix product ---------------------------------------------------------------------------------------------

struct Operand {
  const uint16_t* data;
  int64_t stride, k_stride;  // from one row of a (column of b) to the next; from one k to the next
};

void product(const Path& path, const Operand& a, const Operand& b, uint16_t* out, int64_t m, int64_t n, int64_t k,
             int64_t chunk, Total* total) {
  const int64_t depth = std::max<int64_t>(k, 1), threads = torch::stable::get_num_threads();
  const int64_t rows = std::clamp(kBlockOfA / depth / path.rows * path.rows, int64_t(path.rows), up(m, path.rows));
  const int64_t wide = std::clamp(up(kBlockOfB / depth, path.columns), int64_t(path.columns), up(n, path.columns));
  for (int64_t left = 0; left < n; left += wide) {
    const int64_t columns = std::min(wide, n - left), panels = up(columns, path.columns) / path.columns;
    float* packed = scratch_b.get(panels * path.columns * depth);
    torch::stable::parallel_for(0, panels, std::max<int64_t>(1, kSmall / (path.columns * depth)), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * path.columns;
      path.pack(packed + first * k, b.data + (left + first) * b.stride, std::min(end * path.columns, columns) - first, k,
                b.stride, b.k_stride, path.columns);
    });
    // A block of rows is a task; where those are too few for the threads, each is cut into groups of panels.
    const int64_t blocks = up(m, rows) / rows, groups = std::min(panels, std::max<int64_t>(1, 2 * threads / blocks));
    const int64_t cost = std::max<int64_t>(1, std::min(rows, m) * (columns / groups) * depth);
    torch::stable::parallel_for(0, blocks * (threads > 1 ? groups : 1), std::max<int64_t>(1, kSmall / cost), [&](int64_t begin, int64_t end) {
      const int64_t cuts = threads > 1 ? groups : 1;
      Counts counts;
      int64_t block_here = -1;
      float* block = scratch_a.get(up(std::min(rows, m), path.rows) * depth);
      for (int64_t task = begin; task < end; task++) {
        const int64_t top = task / cuts * rows, height = std::min(rows, m - top);
        if (task / cuts != block_here)
          path.pack(block, a.data + top * a.stride, height, k, a.stride, a.k_stride, path.rows);
        block_here = task / cuts;
        const int64_t from = panels * (task % cuts) / cuts * path.columns;
        const int64_t to = std::min(columns, panels * (task % cuts + 1) / cuts * path.columns);
        path.multiply(out + top * n + left + from, n, block, packed + from * k, height, to - from, k, chunk,
                      total ? &counts : nullptr);
      }
      if (total) total->add(counts);
    });
  }
}

std::tuple<Tensor, Tensor> mm_on(const Tensor& a, const Tensor& b, const std::string& accumulate, int64_t chunk,
                                 const Path& path, bool counted) {
  const int64_t dims = a.dim();
  STD_TORCH_CHECK((dims == 2 || dims == 3) && b.dim() == dims, "amplint: mm takes two matrices or two batches of them");
  STD_TORCH_CHECK(a.scalar_type() == ScalarType::Half && b.scalar_type() == ScalarType::Half,
                  "amplint: mm takes float16");
  STD_TORCH_CHECK(a.is_cpu() && b.is_cpu(), "amplint: mm's operands are on different devices");
  STD_TORCH_CHECK(accumulate == "float32" || accumulate == "float16", "amplint: accumulate is float32 or float16");
  STD_TORCH_CHECK(chunk >= 0, "amplint: chunk is not negative");
  const int64_t m = a.size(dims - 2), k = a.size(dims - 1), n = b.size(dims - 1), batch = dims == 3 ? a.size(0) : 1;
  STD_TORCH_CHECK(b.size(dims - 2) == k && (dims == 2 || b.size(0) == batch), "amplint: mm's shapes do not go together");
  chunk = accumulate == "float32" ? 0 : chunk ? chunk : kDefaultChunk;
  std::vector<int64_t> sizes = dims == 3 ? std::vector<int64_t>{batch, m, n} : std::vector<int64_t>{m, n};
  Tensor out = torch::stable::new_empty(a, sizes);
  Total total;
  if (batch && m && n) {
    const auto *of_a = static_cast<const uint16_t*>(a.data_ptr()), *of_b = static_cast<const uint16_t*>(b.data_ptr());
    auto* to = static_cast<uint16_t*>(out.data_ptr());
    const int64_t step_a = dims == 3 ? a.stride(0) : 0, step_b = dims == 3 ? b.stride(0) : 0;
    auto some = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        product(path, {of_a + i * step_a, a.stride(dims - 2), a.stride(dims - 1)},
                {of_b + i * step_b, b.stride(dims - 1), b.stride(dims - 2)}, to + i * m * n, m, n, k, chunk,
                counted ? &total : nullptr);
    };
    if (batch < int64_t(torch::stable::get_num_threads()))
      some(0, batch);  // threads inside each
    else
      torch::stable::parallel_for(0, batch, std::max<int64_t>(1, kSmall / std::max<int64_t>(1, m * n * k)), some);
    scratch_b.shrink();
  }
  return {out, total.tensor(a, batch * m * n)};
}

std::tuple<Tensor, Tensor> mm(Tensor a, Tensor b, std::string accumulate, int64_t chunk) {
  return mm_on(a, b, accumulate, chunk, path_named(""), true);
}

// For tests and benchmarks: a path by its name, and without counting.
std::tuple<Tensor, Tensor> mm_path(Tensor a, Tensor b, std::string accumulate, int64_t chunk, std::string path,
                                   bool counted) {
  return mm_on(a, b, accumulate, chunk, path_named(path), counted);
}

std::string cpu_paths(int64_t) {
  std::string names;
  for (const Path* path : paths()) names += std::string(names.empty() ? "" : "; ") + path->name;
  return names;
}

// -- values that are there already ----------------------------------------------------------------------------------

constexpr int64_t kGrain = 1 << 15;

std::tuple<Tensor, Tensor> narrow(Tensor x, std::string dtype) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "amplint: narrow takes float32");
  STD_TORCH_CHECK(dtype == "float16" || dtype == "bfloat16", "amplint: narrow makes float16 or bfloat16");
  const bool bfloat = dtype == "bfloat16";
  Tensor from = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(from, from.sizes(), bfloat ? ScalarType::BFloat16 : ScalarType::Half);
  const auto* values = static_cast<const float*>(from.data_ptr());
  auto* to = static_cast<uint16_t*>(out.data_ptr());
  Total total;
  torch::stable::parallel_for(0, from.numel(), kGrain, [&](int64_t begin, int64_t end) {
    Counts counts;
    path_named("").narrow(to + begin, values + begin, end - begin, bfloat, &counts);
    total.add(counts);
  });
  return {out, total.tensor(x, x.numel())};
}

Tensor statistics(Tensor x) {
  const bool bfloat = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(bfloat || x.scalar_type() == ScalarType::Half, "amplint: statistics takes float16 or bfloat16");
  Tensor from = torch::stable::contiguous(x);
  const auto* values = static_cast<const uint16_t*>(from.data_ptr());
  Total total;
  torch::stable::parallel_for(0, from.numel(), kGrain, [&](int64_t begin, int64_t end) {
    Counts counts;
    path_named("").statistics(values + begin, end - begin, bfloat, &counts);
    total.add(counts);
  });
  return total.tensor(x, x.numel());
}

}  // namespace
}  // namespace amplint

STABLE_TORCH_LIBRARY_FRAGMENT(amplint, library) {
  library.def("_mm_path(Tensor a, Tensor b, str accumulate, int chunk, str path, bool counted) -> (Tensor, Tensor)");
  library.def("_cpu_paths(int unused=0) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(amplint, CPU, library) {
  library.impl("mm", TORCH_BOX(&amplint::mm));
  library.impl("statistics", TORCH_BOX(&amplint::statistics));
  library.impl("narrow", TORCH_BOX(&amplint::narrow));
  library.impl("_mm_path", TORCH_BOX(&amplint::mm_path));
}

STABLE_TORCH_LIBRARY_IMPL(amplint, CompositeExplicitAutograd, library) {
  library.impl("_cpu_paths", TORCH_BOX(&amplint::cpu_paths));
}
