// Vectors of one register, by GCC's and Clang's vector extensions: without intrinsics the same source is compiled to
// AVX-512, AVX2, SSE or NEON, depending on -march.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 6;  // of 32 registers: 24 sums, 4 weights and a broadcast value
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 3;  // of 16: 12 sums
#elif defined(__aarch64__)
constexpr int BYTES = 16, ROWS = 6;  // of 32
#else
constexpr int BYTES = 16, ROWS = 3;
#endif

// GCC ignores a type's alignment and may_alias in template arguments, and warns each time.
#pragma GCC diagnostic ignored "-Wignored-attributes"

template <class S>
struct Vectors {
  static constexpr int64_t lanes = BYTES / sizeof(S) < 4 ? 4 : BYTES / sizeof(S);  // at least a unit's four gates
  typedef S V __attribute__((vector_size(lanes * sizeof(S))));
  typedef S Unaligned __attribute__((vector_size(lanes * sizeof(S)), aligned(alignof(S)), may_alias));
};

template <class S>
using Vec = typename Vectors<S>::V;

template <class S>
constexpr int64_t LANES = Vectors<S>::lanes;

template <class S>
inline Vec<S> load(const S* from) {
  return *reinterpret_cast<const typename Vectors<S>::Unaligned*>(from);
}

template <class S>
inline void store(S* to, Vec<S> v) {
  *reinterpret_cast<typename Vectors<S>::Unaligned*>(to) = v;
}

// The first `n` lanes, with zeros after them.
template <class S>
inline Vec<S> load(const S* from, int64_t n) {
  if (n >= LANES<S>) return load(from);
  S lanes[LANES<S>] = {};
  std::memcpy(lanes, from, n * sizeof(S));
  return load(lanes);
}

template <class S>
inline void store(S* to, Vec<S> v, int64_t n) {
  if (n >= LANES<S>) return store(to, v);
  S lanes[LANES<S>];
  store(lanes, v);
  std::memcpy(to, lanes, n * sizeof(S));
}

template <class S>
inline Vec<S> same(S value) {
  return value - Vec<S>{};
}

// The lanes of the first (or second) halves of two rows, alternating.
template <class S, bool second, size_t... k>
inline Vec<S> shuffled(Vec<S> a, Vec<S> b, std::index_sequence<k...>) {
  typedef std::conditional_t<sizeof(S) == 4, int32_t, int64_t> Index;
  typedef Index Indices __attribute__((vector_size(LANES<S> * sizeof(S))));
  constexpr Index from = second ? LANES<S> / 2 : 0;
  return __builtin_shuffle(a, b, Indices{Index(k / 2 + (k % 2) * LANES<S> + from)...});
}

// Transposes in place, by log2(LANES) perfect shuffles of each row with the row LANES / 2 further on.
template <class S>
inline void transpose(Vec<S> (&rows)[LANES<S>]) {
  constexpr auto lanes = std::make_index_sequence<LANES<S>>();
#pragma GCC unroll 4
  for (int half = 1; half < LANES<S>; half *= 2) {
    Vec<S> next[LANES<S>];
#pragma GCC unroll 8
    for (int k = 0; k < LANES<S> / 2; ++k) {
      next[2 * k] = shuffled<S, false>(rows[k], rows[k + LANES<S> / 2], lanes);
      next[2 * k + 1] = shuffled<S, true>(rows[k], rows[k + LANES<S> / 2], lanes);
    }
#pragma GCC unroll 16
    for (int k = 0; k < LANES<S>; ++k) rows[k] = next[k];
  }
}

// exp(x) = 2^n (1 + p), with an integer n, |x - n ln 2| <= ln 2 / 2 and p = expm1(x - n ln 2) by its Taylor series: the
// next term is below 2e-8 of p, a third of float32's rounding. Cody and Waite (1980) split ln 2 in two like this.
struct Power {
  Vec<float> scale, p;
};

inline Power power(Vec<float> x) {
  typedef int32_t Ints __attribute__((vector_size(BYTES)));
  const Vec<float> rounder = same(12582912.0f);  // 1.5 * 2^23: its addition leaves an integer in the low bits
  Vec<float> shifted = x * 1.44269504f + rounder;
  Vec<float> n = shifted - rounder;
  Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> q = same(1.0f / 5040);
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  Ints whole = reinterpret_cast<Ints>(shifted) - reinterpret_cast<Ints>(rounder);
  return {reinterpret_cast<Vec<float>>((whole + 127) << 23), q * r * r + r};
}

// Clamps x to the limit; a NaN stays a NaN, because its comparisons are false.
inline Vec<float> within(Vec<float> x, float limit) {
  x = x > limit ? same(limit) : x;
  return x < -limit ? same(-limit) : x;
}

inline Vec<float> sigmoid(Vec<float> x) {
  Power e = power(within(-x, 87.0f));
  return x < -87.0f ? Vec<float>{} : 1.0f / (1.0f + (e.scale * e.p + e.scale));
}

// tanh(x) = m / (m + 2), m = expm1(2x): as accurate near zero as elsewhere.
inline Vec<float> tanh(Vec<float> x) {
  Power e = power(within(x + x, 30.0f));
  Vec<float> m = e.scale * e.p + (e.scale - 1.0f);
  return m / (m + 2.0f);
}

// float64 is for gradient checks, not for speed: lane by lane, with the C library.
inline Vec<double> sigmoid(Vec<double> x) {
  for (int k = 0; k < LANES<double>; ++k) x[k] = 1.0 / (1.0 + std::exp(-x[k]));
  return x;
}

inline Vec<double> tanh(Vec<double> x) {
  for (int k = 0; k < LANES<double>; ++k) x[k] = std::tanh(x[k]);
  return x;
}
