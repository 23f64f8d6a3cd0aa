// One step of few rows, for acting.
#pragma once

#include "layer.h"

constexpr int64_t FEW = 4;          // rows that are taken by the weights as they lie
constexpr int64_t SMALL = 1 << 20;  // weights of so few bytes are not worth a second thread

// The products of R rows with a unit's four rows of weights, over K, before their lanes are summed.
template <class S, int R>
void add_dots(Vec<S> (&sums)[R][4], const S* const (&rows)[R], const S* weight, int64_t K, int64_t H) {
  for (int64_t k = 0; k < K; k += LANES<S>) {
    Vec<S> w[4];
#pragma GCC unroll 4
    for (int gate = 0; gate < 4; ++gate) w[gate] = load(weight + gate * H * K + k, K - k);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec<S> value = load(rows[r] + k, K - k);
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) sums[r][gate] += value * w[gate];
    }
  }
}

// One step of R rows, by the weights as they lie: for so few, to lay them out otherwise would cost more than it gives.
template <class S, int R>
void step_rows(const View<S>& v, int64_t j) {
  constexpr int64_t some = LANES<S> / 4;  // units whose lanes are summed at once: of four gates each, as many as lanes
  const int64_t first = j * LANES<S>, number = std::min(LANES<S>, v.H - first);
  S gates[R][4][LANES<S>] = {};
  const S *x[R], *h[R];
  for (int r = 0; r < R; ++r) x[r] = v.x(0, r), h[r] = v.entry_h(0, r);
  for (int64_t begin = 0; begin < number; begin += some) {
    Vec<S> square[R][LANES<S>] = {};
    for (int64_t u = 0; u < std::min(some, number - begin); ++u) {
      Vec<S> sums[R][4] = {};
      add_dots<S, R>(sums, x, v.as(v.l.w_ih) + (first + begin + u) * v.I, v.I, v.H);
      add_dots<S, R>(sums, h, v.as(v.l.w_hh) + (first + begin + u) * v.P, v.P, v.H);
      for (int r = 0; r < R; ++r)
        for (int gate = 0; gate < 4; ++gate) square[r][gate * some + u] = sums[r][gate];
    }
    for (int r = 0; r < R; ++r) {
      transpose<S>(square[r]);
      Vec<S> sum = square[r][0];
      for (int k = 1; k < LANES<S>; ++k) sum += square[r][k];
      S lanes[LANES<S>];
      store(lanes, sum);
      for (int gate = 0; gate < 4; ++gate) std::copy_n(lanes + gate * some, some, gates[r][gate] + begin);
    }
  }
  for (int r = 0; r < R; ++r) {
    Vec<S> sums[4];
    for (int gate = 0; gate < 4; ++gate) {
      sums[gate] = load(gates[r][gate]);
      if (!v.l.b_ih) continue;
      const int64_t at = gate * v.H + first;
      sums[gate] += load(v.as(v.l.b_ih) + at, number);
      if (v.l.b_hh) sums[gate] += load(v.as(v.l.b_hh) + at, number);
    }
    const Vec<S> c = sigmoid(sums[1]) * load(v.entry_c(0, r) + first, number) + sigmoid(sums[0]) * tanh(sums[2]);
    store(v.c(0, r) + first, c, number);
    store(v.h(0, r) + first, sigmoid(sums[3]) * tanh(c), number);
  }
}
