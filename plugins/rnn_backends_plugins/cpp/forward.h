// The forward pass of a layer: a team of threads runs some rows of the batch over all time steps.
#pragma once

#include "layer.h"
#include "pack.h"

template <class S>
struct Forward {
  const View<S>& v;
  S *w_x, *w_h, *bias, *w_r, *hidden;

  Forward(const View<S>& v, Scratch<S>& scratch) : v(v) {
    w_x = scratch.take(v.units * v.I * WIDTH<S>);
    w_h = scratch.take(v.units * v.P * WIDTH<S>);
    bias = scratch.take(v.units * WIDTH<S>);
    w_r = v.l.w_hr ? scratch.take(v.h_panels * v.H * WIDTH<S>) : nullptr;
    hidden = v.l.w_hr ? scratch.take(v.teams * v.rows * v.wide) : nullptr;
  }

  void pack(int64_t thread) const {
    for (int64_t j = thread; j < v.units; j += v.threads) {
      pack_gates(w_x + j * v.I * WIDTH<S>, v.as(v.l.w_ih), v.I, v.H, j);
      pack_gates(w_h + j * v.P * WIDTH<S>, v.as(v.l.w_hh), v.P, v.H, j);
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t u = 0; u < LANES<S>; ++u) {
          const int64_t unit = j * LANES<S> + u, at = gate * v.H + unit;
          const bool there = unit < v.H && v.l.b_ih;
          bias[j * WIDTH<S> + gate * LANES<S> + u] = there ? v.bias(at) : 0;
        }
    }
    for (int64_t p = thread; w_r && p < v.h_panels; p += v.threads)
      for (int64_t k = 0; k < v.H; ++k)
        for (int64_t n = 0; n < WIDTH<S>; ++n) {
          const int64_t column = p * WIDTH<S> + n;
          w_r[(p * v.H + k) * WIDTH<S> + n] = column < v.P ? v.as(v.l.w_hr)[column * v.H + k] : 0;
        }
  }

  // Called by all threads of the team; `in_parts(work)` runs `work(part)` on each of them, with a barrier at the end.
  template <class InParts>
  void run(int64_t begin, int64_t end, int64_t team, InParts in_parts) const {
    for (int64_t t = 0; t < v.T; ++t) {
      in_parts([&](Part part) {
        for (int64_t j = part.begin(v.units); j < part.end(v.units); ++j)
          in_groups(end - begin, [&](int64_t g, int rows) { cells(t, begin + g, rows, j, begin, team); });
      });
      if (w_r) in_parts([&](Part part) {
        for (int64_t p = part.begin(v.h_panels); p < part.end(v.h_panels); ++p)
          in_groups(end - begin, [&](int64_t g, int rows) { project(t, begin + g, rows, p, begin, team); });
      });
    }
  }

  S* hidden_of(int64_t b, int64_t begin, int64_t team) const {
    return hidden + (team * v.rows + b - begin) * v.wide;
  }

  void cells(int64_t t, int64_t b, int rows, int64_t j, int64_t begin, int64_t team) const {
    Run<S> runs[2];
    runs[0].panel = w_x + j * v.I * WIDTH<S>, runs[0].length = v.I;
    runs[1].panel = w_h + j * v.P * WIDTH<S>, runs[1].length = v.P;
    Sums<S> gates;
    for (int r = 0; r < rows; ++r) {
      runs[0].rows[r] = v.x(t, b + r);
      runs[1].rows[r] = v.h_before(t, b + r);
      for (int q = 0; q < 4; ++q) gates[r][q] = load(bias + j * WIDTH<S> + q * LANES<S>);
    }
    add_tile(rows, 4, gates, runs, 2);
    const int64_t first = j * LANES<S>, number = v.H - first;
    for (int r = 0; r < rows; ++r) {
      const Vec<S> i = sigmoid(gates[r][0]), f = sigmoid(gates[r][1]), g = tanh(gates[r][2]), o = sigmoid(gates[r][3]);
      const Vec<S> c = f * load(v.c_before(t, b + r) + first, number) + i * g, m = o * tanh(c);
      store(v.c(t, b + r) + first, c, number);
      if (w_r)
        store(hidden_of(b + r, begin, team) + first, m);
      else
        store(v.h(t, b + r) + first, m, number);
      if (!v.l.gates) continue;
      S* kept = v.gates(t, b + r) + j * WIDTH<S>;
      store(kept, i), store(kept + LANES<S>, f), store(kept + 2 * LANES<S>, g), store(kept + 3 * LANES<S>, o);
    }
  }

  void project(int64_t t, int64_t b, int rows, int64_t p, int64_t begin, int64_t team) const {
    Run<S> run;
    run.panel = w_r + p * v.H * WIDTH<S>, run.length = v.H;
    Sums<S> sums = {};
    for (int r = 0; r < rows; ++r) run.rows[r] = hidden_of(b + r, begin, team);
    const int64_t left = v.P - p * WIDTH<S>;
    const int n = int(std::min<int64_t>(4, divided_up(left, LANES<S>)));
    add_tile(rows, n, sums, &run, 1);
    for (int r = 0; r < rows; ++r)
      for (int q = 0; q < n; ++q)
        store(v.h(t, b + r) + p * WIDTH<S> + q * LANES<S>, sums[r][q], left - q * LANES<S>);
  }
};
