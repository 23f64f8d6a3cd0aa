// Packs weights into panels, and unpacks the gradients of weights from panels.
#pragma once

#include <algorithm>

#include "products.h"

// Packs row `k` of panel `p`: `weight[k][p * WIDTH ...]`, with zeros after its `columns`.
template <class S>
void pack_row(S* to, const S* row, int64_t columns) {
  for (int64_t n = 0; n < WIDTH<S>; n += LANES<S>)
    store(to + n, columns > n ? load(row + n, columns - n) : Vec<S>{});
}

// Packs `weight [4H, K]` into one gate panel: columns (gate, unit) of the units `j * LANES ...`, transposed.
template <class S>
void pack_gates(S* to, const S* weight, int64_t K, int64_t H, int64_t j) {
  const int64_t first = j * LANES<S>, number = std::min(LANES<S>, H - first);
  for (int gate = 0; gate < 4; ++gate)
    for (int64_t k = 0; k < K; k += LANES<S>) {
      Vec<S> square[LANES<S>];
      const S* from = weight + (gate * H + first) * K + k;
      if (number == LANES<S> && K - k >= LANES<S>)
#pragma GCC unroll 16
        for (int u = 0; u < LANES<S>; ++u) square[u] = load(from + u * K);
      else
        for (int u = 0; u < LANES<S>; ++u) square[u] = u < number ? load(from + u * K, K - k) : Vec<S>{};
      transpose<S>(square);
      for (int64_t n = 0; n < std::min(LANES<S>, K - k); ++n)
        store(to + (k + n) * WIDTH<S> + gate * LANES<S>, square[n]);
    }
}

// The inverse: `number` panel rows from `from` on, with columns (gate, unit), to columns of `weight [4H, number]`.
template <class S>
void unpack_gates(S* weight, const S* from, int64_t number, int64_t H, int64_t j) {
  const int64_t first = j * LANES<S>, units = std::min(LANES<S>, H - first);
  for (int gate = 0; gate < 4; ++gate)
    for (int64_t k = 0; k < number; k += LANES<S>) {
      Vec<S> square[LANES<S>] = {};
      for (int64_t n = 0; n < std::min(LANES<S>, number - k); ++n)
        square[n] = load(from + (k + n) * WIDTH<S> + gate * LANES<S>);
      transpose<S>(square);
      for (int64_t u = 0; u < units; ++u)
        store(weight + (gate * H + first + u) * number + k, square[u], number - k);
    }
}

// Packs panel `p` of the columns of `weight [4H, N]`; its rows are in the gates' order (unit register, gate, unit).
template <class S>
void pack_back(S* to, const S* weight, int64_t N, int64_t H, int64_t p) {
  const int64_t units = divided_up(H, LANES<S>), column = p * WIDTH<S>;
  for (int64_t j = 0; j < units; ++j)
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t u = 0; u < LANES<S>; ++u, to += WIDTH<S>) {
        const int64_t unit = j * LANES<S> + u;
        pack_row(to, weight + (gate * H + unit) * N + column, unit < H ? N - column : 0);
      }
}
