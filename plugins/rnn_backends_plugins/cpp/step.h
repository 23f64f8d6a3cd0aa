// One step of few rows, forward and backward, with unpacked weights.
#pragma once

#include "layer.h"

constexpr int64_t FEW = 4;          // the most rows with unpacked weights, forward
constexpr int64_t SMALL = 1 << 20;  // bytes of weights below which a second thread does not pay off

// Adds the products of R rows and a unit's four rows of weights, over K, without the sum over lanes.
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

// One step of R rows with unpacked weights: for so few rows, packing costs more than it saves.
template <class S, int R>
void step_rows(const View<S>& v, int64_t j) {
  constexpr int64_t some = LANES<S> / 4;  // units per sum over lanes: with four gates each, as many sums as lanes
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
    const Vec<S> i = sigmoid(sums[0]), f = sigmoid(sums[1]), g = tanh(sums[2]), o = sigmoid(sums[3]);
    const Vec<S> c = f * load(v.entry_c(0, r) + first, number) + i * g;
    store(v.c(0, r) + first, c, number);
    store(v.h(0, r) + first, o * tanh(c), number);
    if (!v.l.gates) continue;
    S* kept = v.gates(0, r) + j * WIDTH<S>;
    store(kept, i), store(kept + LANES<S>, f), store(kept + 2 * LANES<S>, g), store(kept + 3 * LANES<S>, o);
  }
}

constexpr int64_t FEW_BACK = 8;  // the most rows with unpacked weights, backward

// The gradients of one step without a projection. `weights` and `inputs` need the `cells` of all threads.
template <class S>
struct StepBack {
  const View<S>& v;
  S* d;  // [B, 4H]: the gradients of the gates before sigmoid and tanh
  const int64_t H4 = 4 * v.H;

  const S* d_at(int64_t r) const { return d + r * H4; }

  // d and the gradient of the previous cell state, with the same derivatives as in BackwardRows.
  void cells(Part part) const {
    for (int64_t r = 0; r < v.B; ++r) {
      const S* into_h = v.l.grad_h ? v.as(v.l.grad_h) + r * v.l.grad_h_b : nullptr;
      const S* into_c = v.l.grad_c ? v.as(v.l.grad_c) + r * v.l.grad_c_b : nullptr;
      S *gates = d + r * H4, *before = v.l.grad_entry_c ? v.as(v.l.grad_entry_c) + r * v.H : nullptr;
      for (int64_t j = part.begin(v.units); j < part.end(v.units); ++j) {
        const int64_t first = j * LANES<S>, left = v.H - first;
        const S* kept = v.gates(0, r) + j * WIDTH<S>;
        const Vec<S> i = load(kept, left), f = load(kept + LANES<S>, left);
        const Vec<S> g = load(kept + 2 * LANES<S>, left), o = load(kept + 3 * LANES<S>, left);
        const Vec<S> flat = tanh(load(v.c(0, r) + first, left));
        const Vec<S> m = into_h ? load(into_h + first, left) : Vec<S>{};
        Vec<S> at_c = m * o * (1 - flat * flat);
        if (into_c) at_c += load(into_c + first, left);
        store(gates + first, at_c * g * i * (1 - i), left);
        store(gates + v.H + first, at_c * load(v.entry_c(0, r) + first, left) * f * (1 - f), left);
        store(gates + 2 * v.H + first, at_c * i * (1 - g * g), left);
        store(gates + 3 * v.H + first, m * flat * o * (1 - o), left);
        if (before) store(before + first, v.zero(r) ? Vec<S>{} : at_c * f, left);
      }
    }
  }

  // The gradients of the weights, four rows at a time, from x, the previous h, and 1.
  void weights(Part part) const {
    const S *x[FEW_BACK], *h[FEW_BACK];
    for (int64_t r = 0; r < v.B; ++r) x[r] = v.x(0, r), h[r] = v.entry_h(0, r);
    S *w_ih = v.as(v.l.grad_w_ih), *w_hh = v.as(v.l.grad_w_hh), *bias = v.as(v.l.grad_bias);
    for (int64_t k = 4 * part.begin(v.H); k < 4 * part.end(v.H); k += 4) {
      if (w_ih) outer(w_ih, x, v.I, k);
      if (w_hh) outer(w_hh, h, v.P, k);
      for (int64_t n = k; bias && n < k + 4; ++n) {
        S sum = 0;
        for (int64_t r = 0; r < v.B; ++r) sum += d_at(r)[n];
        bias[n] = sum;
      }
    }
  }

  // to[k + u][n] = sum over r of d[r][k + u] * rows[r][n], for four u.
  void outer(S* to, const S* const (&rows)[FEW_BACK], int64_t columns, int64_t k) const {
    for (int64_t n = 0; n < columns; n += LANES<S>) {
      Vec<S> sums[4] = {};
      for (int64_t r = 0; r < v.B; ++r) {
        const Vec<S> value = load(rows[r] + n, columns - n);
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) sums[u] += value * d_at(r)[k + u];
      }
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) store(to + (k + u) * columns + n, sums[u], columns - n);
    }
  }

  // The gradients of x and of the previous h: rows of d times the weights.
  void inputs(Part part) const {
    if (v.l.grad_x) products(v.as(v.l.grad_x), v.as(v.l.w_ih), v.I, part);
    if (!v.l.grad_entry_h) return;
    S* before = v.as(v.l.grad_entry_h);
    products(before, v.as(v.l.w_hh), v.P, part);
    for (int64_t r = 0; r < v.B; ++r)
      if (v.zero(r)) std::fill(before + r * v.P + part.begin(v.P), before + r * v.P + part.end(v.P), S(0));
  }

  // The part's columns of to[r] = sum over k of d[r][k] * weight[k], two rows at a time, in blocks of k whose sums stay
  // in the cache.
  void products(S* to, const S* weight, int64_t columns, Part part) const {
    const int64_t begin = part.begin(columns), end = part.end(columns);
    for (int64_t r = 0; r < v.B; ++r) std::fill(to + r * columns + begin, to + r * columns + end, S(0));
    constexpr int64_t block = 64;
    for (int64_t k = 0; k < H4; k += block)
      for (int64_t n = begin; n < end; n += WIDTH<S>)
        for (int64_t r = 0; r < v.B; r += 2)
          if (r + 1 < v.B)
            add<2>(to, weight, columns, r, k, std::min(H4, k + block), n, end - n);
          else
            add<1>(to, weight, columns, r, k, std::min(H4, k + block), n, end - n);
  }

  template <int R>
  void add(S* to, const S* weight, int64_t columns, int64_t r, int64_t k, int64_t stop, int64_t n, int64_t left) const {
    Vec<S> sums[R][4];
    for (int a = 0; a < R; ++a)
      for (int q = 0; q < 4; ++q) sums[a][q] = some(to + (r + a) * columns + n, q, left);
    if (left >= WIDTH<S>)
      for (; k < stop; ++k)
        add_row<R>(sums, r, k, [&](int q) { return load(weight + k * columns + n + q * LANES<S>); });
    else
      for (; k < stop; ++k)
        add_row<R>(sums, r, k, [&](int q) { return some(weight + k * columns + n, q, left); });
    for (int a = 0; a < R; ++a)
      for (int q = 0; q < 4 && q * LANES<S> < left; ++q)
        store(to + (r + a) * columns + n + q * LANES<S>, sums[a][q], left - q * LANES<S>);
  }

  template <int R, class Load>
  void add_row(Vec<S> (&sums)[R][4], int64_t r, int64_t k, Load loaded) const {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const Vec<S> w = loaded(q);
#pragma GCC unroll 2
      for (int a = 0; a < R; ++a) sums[a][q] += w * d_at(r + a)[k];
    }
  }

  // Register `q` of `left` numbers, with zeros after the last.
  static Vec<S> some(const S* from, int q, int64_t left) {
    return q * LANES<S> < left ? load(from + q * LANES<S>, left - q * LANES<S>) : Vec<S>{};
  }
};
