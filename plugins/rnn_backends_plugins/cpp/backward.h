// The backward pass of a layer: teams and rows as in the forward pass, from the last step to the first. Backpropagation
// through time, with the derivatives of the cell written by hand.
#pragma once

#include "layer.h"
#include "pack.h"

// The units of one slice: 128 KiB of a panel's rows.
template <class S>
constexpr int64_t UNITS_AT_ONCE = (1 << 17) / (WIDTH<S> * WIDTH<S> * sizeof(S));

// The gradients of the gates, `d`, of a chunk of steps are stored in panels [units][step, row][WIDTH]: as rows of one
// product (with the weights, for x and the previous h) and as columns of another (for the weights' gradients).
template <class S>
struct Backward {
  const View<S>& v;
  const int64_t panel = v.steps * v.rows * WIDTH<S>;                  // elements of a panel of d
  const int64_t height = v.units * WIDTH<S> * WIDTH<S>;               // a panel of w_h or w_x: 4H padded, times columns
  const int64_t inputs = v.I + v.P + 1;                               // x, the previous h, and 1 for the bias
  const int64_t line = divided_up(inputs, LANES<S>) * LANES<S> | LANES<S>;  // odd, to use all cache sets
  S *w_h, *w_x, *w_r, *d, *into_h, *into_x, *into_c, *before, *grad_h, *hidden, *sums, *sums_r;
  int64_t mine;

  Backward(const View<S>& v, Scratch<S>& scratch) : v(v) {
    w_h = scratch.take(v.h_panels * height);
    w_x = scratch.take(v.l.grad_x ? v.x_panels * height : 0);
    w_r = v.l.w_hr ? scratch.take(v.unit_panels * v.P * WIDTH<S>) : nullptr;
    sums = scratch.take(v.teams * v.units * inputs * WIDTH<S>);
    sums_r = scratch.take(v.l.w_hr ? v.teams * v.unit_panels * v.P * WIDTH<S> : 0);
    const int64_t used = scratch.used;
    d = scratch.take(v.units * panel);
    into_h = scratch.take(v.h_panels * v.rows * WIDTH<S>);
    into_x = scratch.take(v.l.grad_x ? v.x_panels * v.rows * WIDTH<S> : 0);
    into_c = scratch.take(v.rows * v.wide);
    before = scratch.take(v.steps * v.rows * line);
    grad_h = scratch.take(v.l.w_hr ? v.steps * v.rows * v.p_wide : 0);
    hidden = scratch.take(v.l.w_hr ? v.unit_panels * v.steps * v.rows * WIDTH<S> : 0);
    mine = scratch.used - used;  // per team
    scratch.take((v.teams - 1) * mine);
  }

  bool projects() const { return v.l.w_hr; }

  void pack(int64_t thread) const {
    for (int64_t p = thread; p < v.h_panels; p += v.threads) pack_back(w_h + p * height, v.as(v.l.w_hh), v.P, v.H, p);
    for (int64_t p = thread; v.l.grad_x && p < v.x_panels; p += v.threads)
      pack_back(w_x + p * height, v.as(v.l.w_ih), v.I, v.H, p);
    for (int64_t p = thread; projects() && p < v.unit_panels; p += v.threads)
      for (int64_t k = 0; k < v.P; ++k)
        pack_row(w_r + (p * v.P + k) * WIDTH<S>, v.as(v.l.w_hr) + k * v.H + p * WIDTH<S>, v.H - p * WIDTH<S>);
    if (thread >= v.teams) return;
    std::fill_n(sums + thread * v.units * inputs * WIDTH<S>, v.units * inputs * WIDTH<S>, S(0));
    if (projects()) std::fill_n(sums_r + thread * v.unit_panels * v.P * WIDTH<S>, v.unit_panels * v.P * WIDTH<S>, S(0));
  }
};

// The backward pass over one team's rows.
template <class S>
struct BackwardRows {
  const Backward<S>& all;
  const View<S>& v = all.v;
  const int64_t begin, end, rows = end - begin, team;
  S* const d = all.d + team * all.mine;
  S* const into_h = all.into_h + team * all.mine;  // [h_panels][row][WIDTH]: from the next step
  S* const into_x = all.into_x + team * all.mine;
  S* const into_c = all.into_c + team * all.mine;
  S* const before = all.before + team * all.mine;
  S* const grad_h = all.grad_h + team * all.mine;
  S* const hidden = all.hidden + team * all.mine;
  S* const sums = all.sums + team * v.units * all.inputs * WIDTH<S>;
  S* const sums_r = all.sums_r + team * v.unit_panels * v.P * WIDTH<S>;

  S* d_at(int64_t slot, int64_t row) const { return d + (slot * rows + row) * WIDTH<S>; }
  S* h_at(int64_t row, int64_t p) const { return into_h + (p * rows + row) * WIDTH<S>; }

  // Called by all threads of the team, as in Forward.
  template <class InParts>
  void run(InParts in_parts) const {
    in_parts([&](Part part) {
      const int64_t first = part.begin(rows), number = part.end(rows) - first;
      std::fill_n(into_c + first * v.wide, number * v.wide, S(0));
      for (int64_t p = part.begin(v.h_panels); p < part.end(v.h_panels); ++p)
        std::fill_n(h_at(0, p), rows * WIDTH<S>, S(0));
    });
    for (int64_t stop = v.T; stop > 0; stop = std::max<int64_t>(0, stop - v.steps)) {
      const int64_t first = std::max<int64_t>(0, stop - v.steps);
      for (int64_t t = stop - 1; t >= first; --t) step(t, t - first, in_parts);
      in_parts([&](Part part) { take_before(first, stop, part); });
      in_parts([&](Part part) { sum_up((stop - first) * rows, part); });
    }
  }

  template <class InParts>
  void step(int64_t t, int64_t slot, InParts in_parts) const {
    in_parts([&](Part part) {
      const int64_t from = part.begin(v.h_panels), to = part.end(v.h_panels);
      arrive(t, from, to);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t p = from; p < to; ++p)
          if (all.projects())
            std::copy_n(h_at(row, p), WIDTH<S>, grad_h + (slot * rows + row) * v.p_wide + p * WIDTH<S>);
          else
            cells(t, slot, row, p, h_at(row, p));
    });
    if (all.projects()) in_parts([&](Part part) { projected(t, slot, part); });
    in_parts([&](Part part) { back(t, slot, part); });
  }

  // Adds the incoming gradient of h after step `t`, in the panels `from ... to`.
  void arrive(int64_t t, int64_t from, int64_t to) const {
    for (int64_t row = 0; v.l.grad_h && row < rows; ++row)
      for (int64_t column = from * WIDTH<S>; column < std::min(v.P, to * WIDTH<S>); column += LANES<S>) {
        S* at = h_at(row, column / WIDTH<S>) + column % WIDTH<S>;
        const S* given = v.as(v.l.grad_h) + t * v.l.grad_h_t + (begin + row) * v.l.grad_h_b + column;
        store(at, load(at) + load(given, v.P - column));
      }
  }

  void projected(int64_t t, int64_t slot, Part part) const {
    for (int64_t p = part.begin(v.unit_panels); p < part.end(v.unit_panels); ++p)
      in_groups(rows, [&](int64_t row, int number) {
        Sums<S> into_hidden = {};
        Run<S> run;
        run.panel = all.w_r + p * v.P * WIDTH<S>, run.length = v.P;
        for (int r = 0; r < number; ++r) run.rows[r] = grad_h + (slot * rows + row + r) * v.p_wide;
        add_tile(number, 4, into_hidden, &run, 1);
        for (int r = 0; r < number; ++r) cells(t, slot, row + r, p, reinterpret_cast<const S*>(into_hidden[r]));
      });
  }

  // From the gradients `into_m` of o * tanh(c), for the units of panel `p`, to those of the gates and the previous c.
  void cells(int64_t t, int64_t slot, int64_t row, int64_t p, const S* into_m) const {
    const int64_t b = begin + row;
    const bool starts = v.starts(t, b);
    const S *c_at = v.c(t, b), *before_at = v.c_before(t, b), *kept = v.gates(t, b);
    const S* from = v.l.grad_c ? v.as(v.l.grad_c) + t * v.l.grad_c_t + b * v.l.grad_c_b : nullptr;
    for (int64_t q = 0, j = 4 * p; q < 4 && j < v.units; ++q, ++j) {
      const int64_t first = j * LANES<S>, left = v.H - first;
      const S* gate = kept + j * WIDTH<S>;  // after the last unit there may be NaN: an infinite input times zero
      const Vec<S> i = load(gate, left), f = load(gate + LANES<S>, left);
      const Vec<S> g = load(gate + 2 * LANES<S>, left), o = load(gate + 3 * LANES<S>, left);
      const Vec<S> flat = tanh(load(c_at + first, left)), m = load(into_m + q * LANES<S>);
      S* carried = into_c + row * v.wide + first;
      Vec<S> at_c = load(carried) + m * o * (1 - flat * flat);
      if (from) at_c += load(from + first, left);
      S* to = d_at(slot, row) + j * all.panel;
      store(to, at_c * g * i * (1 - i));
      store(to + LANES<S>, at_c * load(before_at + first, left) * f * (1 - f));
      store(to + 2 * LANES<S>, at_c * i * (1 - g * g));
      store(to + 3 * LANES<S>, m * flat * o * (1 - o));
      store(carried, starts ? Vec<S>{} : at_c * f);
      if (starts && v.l.grad_entry_c)
        store(v.as(v.l.grad_entry_c) + (t * v.B + b) * v.H + first, v.zero(b) ? Vec<S>{} : at_c * f, left);
      if (all.projects()) store(hidden + ((p * v.steps + slot) * rows + row) * WIDTH<S> + q * LANES<S>, o * flat);
    }
  }

  // Multiplies d of step `t` by the weights: the gradients of x, and of the previous h or, where a sequence starts at
  // `t`, of its entry. Slice by slice of 4H, so that the slice's d and each panel's rows stay in the cache.
  void back(int64_t t, int64_t slot, Part part) const {
    const int64_t to_h = t > 0 || v.l.grad_entry_h ? v.h_panels : 0, to_x = v.l.grad_x ? v.x_panels : 0;
    const int64_t first = part.begin(to_h + to_x), last = part.end(to_h + to_x);  // panels of h, then of x
    const int64_t slices = divided_up(v.units, UNITS_AT_ONCE<S>);
    for (int64_t slice = 0; slice < slices; ++slice) {
      const int64_t from = share(v.units, slices, slice), to = share(v.units, slices, slice + 1);
      for (int64_t p = first; p < std::min(last, to_h); ++p)
        product(slot, from, to, all.w_h + p * all.height, into_h + p * rows * WIDTH<S>, v.P - p * WIDTH<S>);
      for (int64_t p = std::max(first, to_h) - to_h; p < last - to_h; ++p)
        product(slot, from, to, all.w_x + p * all.height, into_x + p * rows * WIDTH<S>, v.I - p * WIDTH<S>);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t p = first; p < std::min(last, to_h) && v.starts(t, begin + row); ++p) {
        if (v.zero(begin + row)) std::fill_n(h_at(row, p), WIDTH<S>, S(0));
        if (v.l.grad_entry_h) put(v.l.grad_entry_h, t, row, p, v.P, h_at(row, p));
        std::fill_n(h_at(row, p), WIDTH<S>, S(0));
      }
      for (int64_t p = std::max(first, to_h) - to_h; p < last - to_h; ++p)
        put(v.l.grad_x, t, row, p, v.I, into_x + (p * rows + row) * WIDTH<S>);
    }
  }

  // Copies a panel's columns to a row of `gradient [T, B, columns]`.
  void put(void* gradient, int64_t t, int64_t row, int64_t p, int64_t columns, const S* from) const {
    S* to = v.as(gradient) + (t * v.B + begin + row) * columns + p * WIDTH<S>;
    std::copy_n(from, std::min(WIDTH<S>, columns - p * WIDTH<S>), to);
  }

  // into[row][...] = (or +=, if from > 0) the units `from ... to` of d times their rows of a panel.
  void product(int64_t slot, int64_t from, int64_t to, const S* panel, S* into, int64_t columns) const {
    const int n = int(std::min<int64_t>(4, divided_up(columns, LANES<S>)));
    in_groups(rows, [&](int64_t row, int number) {
      Run<S> run;
      run.panel = panel + from * WIDTH<S> * WIDTH<S>;
      run.segments = to - from, run.length = WIDTH<S>, run.jump = all.panel;
      Sums<S> sum = {};
      for (int r = 0; r < number; ++r) {
        run.rows[r] = d_at(slot, row + r) + from * all.panel;
        for (int q = 0; from > 0 && q < n; ++q) sum[r][q] = load(into + (row + r) * WIDTH<S> + q * LANES<S>);
      }
      add_tile(number, n, sum, &run, 1);
      for (int r = 0; r < number; ++r)
        for (int q = 0; q < 4; ++q) store(into + (row + r) * WIDTH<S> + q * LANES<S>, sum[r][q]);
    });
  }

  // Copies x, the previous h, and 1, for the steps `first ... stop`.
  void take_before(int64_t first, int64_t stop, Part part) const {
    if (!gives_weights()) return;
    const int64_t number = (stop - first) * rows;
    for (int64_t k = part.begin(number); k < part.end(number); ++k) {
      const int64_t t = first + k / rows, b = begin + k % rows;
      S* to = before + k * all.line;
      std::copy_n(v.x(t, b), v.I, to);
      std::copy_n(v.h_before(t, b), v.P, to + v.I);
      to[v.I + v.P] = 1;
    }
  }

  bool gives_weights() const { return v.l.grad_w_ih || v.l.grad_w_hh || v.l.grad_bias; }

  // Adds the chunk's `number` cells to the weights' gradients, transposed: [units][x, previous h, 1][WIDTH].
  void sum_up(int64_t number, Part part) const {
    for (int64_t j = part.begin(v.units); gives_weights() && j < part.end(v.units); ++j)
      add_outer(sums + j * all.inputs * WIDTH<S>, before, all.line, d + j * all.panel, number, all.inputs);
    if (!all.projects() || !v.l.grad_w_hr) return;
    for (int64_t p = part.begin(v.unit_panels); p < part.end(v.unit_panels); ++p)
      add_outer(sums_r + p * v.P * WIDTH<S>, grad_h, v.p_wide, hidden + p * v.steps * rows * WIDTH<S>, number, v.P);
  }

  // to[n][...] += sum over k of left[k * line + n] * panel[k][...]
  static void add_outer(S* to, const S* left, int64_t line, const S* panel, int64_t number, int64_t columns) {
    in_groups(columns, [&](int64_t n, int group) {
      Run<S> run;
      run.panel = panel, run.length = number, run.step = line;
      Sums<S> sum;
      for (int r = 0; r < group; ++r) {
        run.rows[r] = left + n + r;
        for (int q = 0; q < 4; ++q) sum[r][q] = load(to + (n + r) * WIDTH<S> + q * LANES<S>);
      }
      add_tile(group, 4, sum, &run, 1);
      for (int r = 0; r < group; ++r)
        for (int q = 0; q < 4; ++q) store(to + (n + r) * WIDTH<S> + q * LANES<S>, sum[r][q]);
    });
  }
};

// Adds up the sums of the teams and writes them in torch's layout.
template <class S>
void hand_out(const Backward<S>& all, int64_t thread) {
  const View<S>& v = all.v;
  S *w_ih = v.as(v.l.grad_w_ih), *w_hh = v.as(v.l.grad_w_hh), *bias = v.as(v.l.grad_bias), *w_hr = v.as(v.l.grad_w_hr);
  const int64_t each = v.units * all.inputs * WIDTH<S>, each_r = v.unit_panels * v.P * WIDTH<S>;
  for (int64_t j = thread; j < v.units; j += v.threads) {
    S* sum = all.sums + j * all.inputs * WIDTH<S>;
    for (int64_t other = 1; other < v.teams; ++other)
      for (int64_t k = 0; k < all.inputs * WIDTH<S>; ++k) sum[k] += sum[other * each + k];
    if (w_ih) unpack_gates(w_ih, sum, v.I, v.H, j);
    if (w_hh) unpack_gates(w_hh, sum + v.I * WIDTH<S>, v.P, v.H, j);
    if (bias) unpack_gates(bias, sum + (v.I + v.P) * WIDTH<S>, 1, v.H, j);
  }
  for (int64_t p = thread; w_hr && p < v.unit_panels; p += v.threads)
    for (int64_t n = 0; n < v.P; ++n)
      for (int64_t q = 0; q < WIDTH<S> && p * WIDTH<S> + q < v.H; ++q) {
        S sum = 0;
        for (int64_t other = 0; other < v.teams; ++other)
          sum += all.sums_r[other * each_r + (p * v.P + n) * WIDTH<S> + q];
        w_hr[n * v.H + p * WIDTH<S> + q] = sum;
      }
}
