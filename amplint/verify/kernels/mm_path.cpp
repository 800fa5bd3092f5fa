// One path of the CPU's matmul; compiled with -DAMPLINT_PATH=0 (any CPU), 1 (AVX2, FMA, F16C) or 2 (AVX-512), each
// with the compiler's flags for it. Nothing of the standard library's is used here: an inline function compiled for
// AVX-512 must not become the one that every path calls.
#include "mm_path.h"

#if AMPLINT_PATH > 0
#include <immintrin.h>
#endif

namespace amplint {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// -- one value ------------------------------------------------------------------------------------------------------

inline float widen(uint16_t half) {
  uint32_t sign = uint32_t(half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest < 0x400u) return float_of(sign | bits_of(float(rest) * 0x1p-24f));
  return float_of(sign | (rest >= 0x7c00u ? kInfinity | (rest & 0x3ffu) << 13 : (rest << 13) + (112u << 23)));
}

inline uint16_t half_of(float x) {
  uint32_t bits = bits_of(x), absolute = bits & 0x7fffffffu;
  uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  if (absolute > kInfinity) return 0x7e00u;
  if (absolute >= kHalf.overflow) return sign | 0x7c00u;
  if (absolute < 0x38800000u)  // below 2^-14; the sum's last place is 2^-24, so the addition rounds as half does
    return sign | uint16_t(bits_of(float_of(absolute) + 0.5f) - bits_of(0.5f));
  return sign | uint16_t((absolute + 0xfffu + (absolute >> 13 & 1u) - (112u << 23)) >> 13);
}

inline uint16_t bfloat_of(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > kInfinity) return 0x7fc0u;
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void count(uint32_t absolute, const Limit& limit, Counts& counts) {
  if (absolute > kInfinity) {
    counts.nan++;
    return;
  }
  counts.inf += absolute >= limit.overflow;
  counts.flushed += absolute - 1u < limit.flushed;
  counts.subnormal += absolute > limit.flushed && absolute < limit.normal;
  counts.absmax = absolute > counts.absmax ? absolute : counts.absmax;
}

// -- a vector of values ---------------------------------------------------------------------------------------------

#if AMPLINT_PATH == 2
constexpr int kRows = 14, kWidth = 16;
using Lane = __m512;
using Bits = __m512i;
inline Lane zero() { return _mm512_setzero_ps(); }
inline Lane load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* to, Lane x) { _mm512_storeu_ps(to, x); }
inline Lane fma(float a, Lane b, Lane c) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c); }
inline __m256i to_half(Lane x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store_half(uint16_t* to, Lane x) { _mm256_storeu_si256((__m256i*)to, to_half(x)); }
inline Lane load_half(const uint16_t* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }
inline Lane rounded(Lane x) { return _mm512_cvtph_ps(to_half(x)); }
inline Bits all(uint32_t x) { return _mm512_set1_epi32(int(x)); }
inline Bits absolute(Lane x) { return _mm512_and_si512(_mm512_castps_si512(x), all(0x7fffffffu)); }
inline Bits larger(Bits a, Bits b) { return _mm512_max_epi32(a, b); }
inline Bits smaller(Bits a, Bits b) { return _mm512_min_epi32(a, b); }
inline Bits plus_if_more(Bits sum, Bits a, Bits b) {  // sum + (a > b)
  return _mm512_mask_sub_epi32(sum, _mm512_cmpgt_epi32_mask(a, b), sum, all(0xffffffffu));
}
inline Bits zero_if_more(Bits a, Bits b) { return _mm512_maskz_mov_epi32(_mm512_cmple_epi32_mask(a, b), a); }
inline void store(uint32_t* to, Bits x) { _mm512_storeu_si512(to, x); }
#elif AMPLINT_PATH == 1
constexpr int kRows = 6, kWidth = 8;
using Lane = __m256;
using Bits = __m256i;
inline Lane zero() { return _mm256_setzero_ps(); }
inline Lane load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* to, Lane x) { _mm256_storeu_ps(to, x); }
inline Lane fma(float a, Lane b, Lane c) { return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c); }
inline __m128i to_half(Lane x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store_half(uint16_t* to, Lane x) { _mm_storeu_si128((__m128i*)to, to_half(x)); }
inline Lane load_half(const uint16_t* from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)); }
inline Lane rounded(Lane x) { return _mm256_cvtph_ps(to_half(x)); }
inline Bits all(uint32_t x) { return _mm256_set1_epi32(int(x)); }
inline Bits absolute(Lane x) { return _mm256_and_si256(_mm256_castps_si256(x), all(0x7fffffffu)); }
inline Bits larger(Bits a, Bits b) { return _mm256_max_epi32(a, b); }
inline Bits smaller(Bits a, Bits b) { return _mm256_min_epi32(a, b); }
inline Bits plus_if_more(Bits sum, Bits a, Bits b) { return _mm256_sub_epi32(sum, _mm256_cmpgt_epi32(a, b)); }
inline Bits zero_if_more(Bits a, Bits b) { return _mm256_andnot_si256(_mm256_cmpgt_epi32(a, b), a); }
inline void store(uint32_t* to, Bits x) { _mm256_storeu_si256((__m256i*)to, x); }
#else  // the compiler's vectors: SSE2 on x86-64, NEON on Arm
constexpr int kRows = 4, kWidth = 4;
using Lane = float __attribute__((vector_size(16)));
using Bits = int32_t __attribute__((vector_size(16)));
inline Lane zero() { return Lane{}; }
inline Lane load(const float* x) { return Lane{x[0], x[1], x[2], x[3]}; }
inline void store(float* to, Lane x) { for (int i = 0; i < 4; i++) to[i] = x[i]; }
inline Lane fma(float a, Lane b, Lane c) { return a * b + c; }  // contracted or not: see mm_path.h
inline void store_half(uint16_t* to, Lane x) { for (int i = 0; i < 4; i++) to[i] = half_of(x[i]); }
inline Lane load_half(const uint16_t* from) { return Lane{widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])}; }
inline Lane rounded(Lane x) { for (int i = 0; i < 4; i++) x[i] = widen(half_of(x[i])); return x; }
inline Bits all(uint32_t x) { return Bits{int(x), int(x), int(x), int(x)}; }
inline Bits absolute(Lane x) { return (Bits)x & all(0x7fffffffu); }
inline Bits larger(Bits a, Bits b) { Bits more = a > b; return (a & more) | (b & ~more); }
inline Bits smaller(Bits a, Bits b) { Bits more = a > b; return (b & more) | (a & ~more); }
inline Bits plus_if_more(Bits sum, Bits a, Bits b) { return sum - (Bits)(a > b); }
inline Bits zero_if_more(Bits a, Bits b) { return a & ~(Bits)(a > b); }
inline void store(uint32_t* to, Bits x) { for (int i = 0; i < 4; i++) to[i] = uint32_t(x[i]); }
#endif
constexpr int kColumns = 2 * kWidth;

// Counts of many vectors, a counter a lane; at most 2^31 vectors.
struct Tally {
  Bits nan = all(0), over = all(0), zero_free = all(0), unflushed = all(0), normal = all(0), most = all(0);

  inline void add(Bits x, const Limit& limit) {
    nan = plus_if_more(nan, x, all(kInfinity));
    over = plus_if_more(over, x, all(limit.overflow - 1));
    zero_free = plus_if_more(zero_free, x, all(0));
    unflushed = plus_if_more(unflushed, x, all(limit.flushed));
    normal = plus_if_more(normal, x, all(limit.normal - 1));
    most = larger(most, zero_if_more(x, all(kInfinity)));
  }

  static int64_t sum(Bits x) {
    uint32_t each[kWidth];
    store(each, x);
    int64_t total = 0;
    for (int i = 0; i < kWidth; i++) total += each[i];
    return total;
  }

  void into(Counts& counts) const {
    int64_t nans = sum(nan);
    counts.nan += nans;
    counts.inf += sum(over) - nans;
    counts.flushed += sum(zero_free) - sum(unflushed);
    counts.subnormal += sum(unflushed) - sum(normal);
    uint32_t each[kWidth];
    store(each, most);
    for (int i = 0; i < kWidth; i++) counts.absmax = each[i] > counts.absmax ? each[i] : counts.absmax;
  }
};

inline uint32_t largest(Bits x) {
  uint32_t each[kWidth], most = 0;
  store(each, x);
  for (int i = 0; i < kWidth; i++) most = each[i] > most ? each[i] : most;
  return most;
}

inline uint32_t smallest(Bits x) {
  uint32_t each[kWidth], least = 0xffffffffu;
  store(each, x);
  for (int i = 0; i < kWidth; i++) least = each[i] < least ? each[i] : least;
  return least;
}

// -- the matmul -----------------------------------------------------------------------------------------------------

// A tile whose columns are fewer than a tile's, or that holds a NaN: value by value.
void finish(uint16_t* out, int64_t stride, const float* sums, int rows, int64_t columns, Counts* counts) {
  for (int i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) {
      float x = sums[i * kColumns + j];
      out[i * stride + j] = half_of(x);
      if (counts) count(bits_of(x) & 0x7fffffffu, kHalf, *counts);
    }
}

template <int R, bool Rounds>
void tile(uint16_t* out, int64_t stride, const float* a, const float* b, int64_t columns, int64_t k, int64_t chunk,
          Counts* counts) {
  Lane sums[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) sums[i][0] = sums[i][1] = zero();
  for (int64_t begin = 0; begin < k;) {
    int64_t end = Rounds && k - begin > chunk ? begin + chunk : k;
    for (int64_t p = begin; p < end; p++, a += kRows, b += kColumns) {
      Lane left = load(b), right = load(b + kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < R; i++) {
        sums[i][0] = fma(a[i], left, sums[i][0]);
        sums[i][1] = fma(a[i], right, sums[i][1]);
      }
    }
    if (Rounds && end < k) {  // the last one is the result's own, below
#pragma GCC unroll 16
      for (int i = 0; i < R; i++) sums[i][0] = rounded(sums[i][0]), sums[i][1] = rounded(sums[i][1]);
    }
    begin = end;
  }
  Bits most = all(0), least = all(0x7fffffffu);
  if (columns == kColumns) {
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) {
      store_half(out + i * stride, sums[i][0]), store_half(out + i * stride + kWidth, sums[i][1]);
      Bits left = absolute(sums[i][0]), right = absolute(sums[i][1]);
      most = larger(most, larger(left, right)), least = smaller(least, smaller(left, right));
    }
    uint32_t top = largest(most);
    if (top < kHalf.overflow && (!counts || smallest(least) >= kHalf.normal)) {  // nothing to count, which is usual
      if (counts && top > counts->absmax) counts->absmax = top;
      return;
    }
    if (top <= kInfinity) {
      if (!counts) return;
      Tally tally;
#pragma GCC unroll 16
      for (int i = 0; i < R; i++) {
        tally.add(absolute(sums[i][0]), kHalf);
        tally.add(absolute(sums[i][1]), kHalf);
      }
      tally.into(*counts);
      return;
    }
  }
  float each[R * kColumns];
  for (int i = 0; i < R; i++) {
    store(each + i * kColumns, sums[i][0]);
    store(each + i * kColumns + kWidth, sums[i][1]);
  }
  finish(out, stride, each, R, columns, counts);
}

template <int R>
void tile_of(int64_t rows, uint16_t* out, int64_t stride, const float* a, const float* b, int64_t columns, int64_t k,
             int64_t chunk, Counts* counts) {
  if constexpr (R > 1)
    if (rows < R) return tile_of<R - 1>(rows, out, stride, a, b, columns, k, chunk, counts);
  if (chunk) return tile<R, true>(out, stride, a, b, columns, k, chunk, counts);
  return tile<R, false>(out, stride, a, b, columns, k, 0, counts);
}

void multiply(uint16_t* out, int64_t stride, const float* a, const float* b, int64_t m, int64_t n, int64_t k,
              int64_t chunk, Counts* counts) {
  for (int64_t j = 0; j < n; j += kColumns)  // a panel of b stays in the cache while those of a pass by
    for (int64_t i = 0; i < m; i += kRows)
      tile_of<kRows>(m - i, out + i * stride + j, stride, a + i * k, b + j * k, n - j < kColumns ? n - j : kColumns, k,
                     chunk, counts);
}

inline void widen(float* to, const uint16_t* from, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(to + i, load_half(from + i));
  for (; i < n; i++) to[i] = widen(from[i]);
}

void pack(float* to, const uint16_t* from, int64_t count, int64_t k, int64_t stride, int64_t k_stride, int width) {
  constexpr int kSteps = 16;
  float block[2 * 16][kSteps];  // no panel is wider than 32
  for (int64_t first = 0; first < count; first += width, to += width * k) {
    int here = int(count - first < width ? count - first : width);
    const uint16_t* panel = from + first * stride;
    if (here < width)
      for (int64_t i = 0; i < width * k; i++) to[i] = 0;
    if (stride == 1) {
      for (int64_t p = 0; p < k; p++) widen(to + p * width, panel + p * k_stride, here);
      continue;
    }
    for (int64_t p = 0; p < k; p += kSteps) {  // in two strides: each line of memory is read once, whole
      int steps = int(k - p < kSteps ? k - p : kSteps);
      for (int i = 0; i < here; i++) {
        const uint16_t* line = panel + i * stride + p * k_stride;
        if (k_stride == 1)
          widen(block[i], line, steps);
        else
          for (int s = 0; s < steps; s++) block[i][s] = widen(line[s * k_stride]);
      }
      for (int s = 0; s < steps; s++)
        for (int i = 0; i < here; i++) to[(p + s) * width + i] = block[i][s];
    }
  }
}

// -- values that are there already ----------------------------------------------------------------------------------

void narrow(uint16_t* out, const float* x, int64_t n, bool bfloat, Counts* counts) {
  const Limit& limit = bfloat ? kBfloat : kHalf;
  Tally tally;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    Lane here = load(x + i);
    tally.add(absolute(here), limit);
    if (bfloat)
      for (int j = 0; j < kWidth; j++) out[i + j] = bfloat_of(x[i + j]);
    else
      store_half(out + i, here);
  }
  if (!bfloat && largest(tally.nan))  // a NaN of F16C's keeps its sign and payload
    for (int64_t j = 0; j < i; j++) out[j] = half_of(x[j]);
  tally.into(*counts);
  for (; i < n; i++) {
    out[i] = bfloat ? bfloat_of(x[i]) : half_of(x[i]);
    count(bits_of(x[i]) & 0x7fffffffu, limit, *counts);
  }
}

void statistics(const uint16_t* x, int64_t n, bool bfloat, Counts* counts) {
  const Limit& limit = bfloat ? kBfloat : kHalf;
  Tally tally;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    if (bfloat) {
      float wide[kWidth];
      for (int j = 0; j < kWidth; j++) wide[j] = float_of(uint32_t(x[i + j]) << 16);
      tally.add(absolute(load(wide)), limit);
    } else {
      tally.add(absolute(load_half(x + i)), limit);
    }
  }
  tally.into(*counts);
  for (; i < n; i++) count(bits_of(bfloat ? float_of(uint32_t(x[i]) << 16) : widen(x[i])) & 0x7fffffffu, limit, *counts);
}

}  // namespace

#if AMPLINT_PATH == 2
extern const Path kAvx512 = {"AVX-512", kRows, kColumns, pack, multiply, narrow, statistics};
#elif AMPLINT_PATH == 1
extern const Path kAvx2 = {"AVX2, F16C", kRows, kColumns, pack, multiply, narrow, statistics};
#else
extern const Path kGeneric = {"any CPU", kRows, kColumns, pack, multiply, narrow, statistics};
#endif

}  // namespace amplint
