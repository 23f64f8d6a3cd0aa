// Matrix products by tiles: up to ROWS rows times four registers of columns, summed in registers.
//
// A panel is K rows of WIDTH = 4 * LANES columns, consecutive in memory. In a gate panel a column is (gate, unit): the
// four registers of a tile are i, f, g, o of the same units, so the cell is computed from its sums in registers.
#pragma once

#include "vectors.h"

template <class S>
constexpr int64_t WIDTH = 4 * LANES<S>;

// The operands of a tile: for each row r, element k of segment s is `rows[r][s * jump + k * step]`; the panel is read
// in order.
template <class S>
struct Run {
  const S* rows[ROWS];
  const S* panel;
  int64_t length;
  int64_t segments = 1;
  int64_t jump = 0;
  int64_t step = 1;
};

template <class S>
using Sums = Vec<S>[ROWS][4];

template <class S, int R, int N>
inline void add_run(Vec<S> (&sum)[R][N], const Run<S>& run) {
  const S* w = run.panel;
  for (int64_t s = 0; s < run.segments; ++s) {
    const S* a[R];
    for (int r = 0; r < R; ++r) a[r] = run.rows[r] + s * run.jump;
    for (int64_t k = 0, at = 0; k < run.length; ++k, at += run.step, w += WIDTH<S>) {
      Vec<S> columns[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) columns[n] = load(w + n * LANES<S>);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        Vec<S> value = same(a[r][at]);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[r][n] += value * columns[n];
      }
    }
  }
}

template <class S, int R, int N>
__attribute__((noinline)) void tile(Sums<S>& sums, const Run<S>* runs, int number) {
  Vec<S> sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[r][n] = sums[r][n];
  for (int k = 0; k < number; ++k) add_run<S, R, N>(sum, runs[k]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sums[r][n] = sum[r][n];
}

template <class S, int R>
inline void tile_of(int n, Sums<S>& sums, const Run<S>* runs, int number) {
  switch (n) {
    case 1: return tile<S, R, 1>(sums, runs, number);
    case 2: return tile<S, R, 2>(sums, runs, number);
    case 3: return tile<S, R, 3>(sums, runs, number);
    default: return tile<S, R, 4>(sums, runs, number);
  }
}

// Adds the products of the runs to `rows` rows and `n` registers of the sums.
template <class S>
inline void add_tile(int rows, int n, Sums<S>& sums, const Run<S>* runs, int number) {
  switch (rows) {
    case 1: return tile_of<S, 1>(n, sums, runs, number);
    case 2: return tile_of<S, 2>(n, sums, runs, number);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3: return tile_of<S, 3>(n, sums, runs, number);
    case 4: return tile_of<S, 4>(n, sums, runs, number);
    case 5: return tile_of<S, 5>(n, sums, runs, number);
#endif
    default: return tile_of<S, ROWS>(n, sums, runs, number);
  }
}

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The beginning of part `k` of `parts` parts of `n`, as even as possible.
inline int64_t share(int64_t n, int64_t parts, int64_t k) { return n * k / parts; }

// Calls `work(first, number)` for groups of at most ROWS of `n` rows, of even size: a tile of one row costs as much as
// one of two.
template <class Work>
inline void in_groups(int64_t n, Work work) {
  const int64_t groups = divided_up(n, ROWS);
  for (int64_t g = 0; g < groups; ++g) work(share(n, groups, g), int(share(n, groups, g + 1) - share(n, groups, g)));
}
