// One LSTM layer in one direction, with resets: forward, backward, and one step. Written for few cores: each takes
// rows of the batch, and goes with them through all of time; nobody waits for anybody before the end.
//
// A reset costs nothing here: a row's state before a step is read through a pointer, and where a sequence starts the
// pointer is to its entry. So nothing of what was before a start, NaN included, can come through. Letters as in
// rnn_backends.contract: T, B, I, H, P.
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "products.h"

// Filled in by kernel.py, field for field. Strides are in elements; a last dimension is contiguous, always.
struct Layer {
  int64_t T, B, I, H, P, threads;
  const void *x, *w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *entry_h, *entry_c;  // no b_hh: b_ih is the sum
  const bool* starts;  // none: every row starts
  int64_t x_t, x_b, entry_h_t, entry_h_b, entry_c_t, entry_c_b, starts_t, starts_b;
  void *h, *c, *gates;  // [T, B, P], [T, B, H], [T, B, units, 4 gates, LANES]: contiguous; gates may be null
  const void *grad_h, *grad_c;  // either may be null
  int64_t grad_h_t, grad_h_b, grad_c_t, grad_c_b;
  // Contiguous; each may be null; the entries' come filled with zeros.
  void *grad_x, *grad_w_ih, *grad_w_hh, *grad_bias, *grad_w_hr, *grad_entry_h, *grad_entry_c;
  void* scratch;
  const bool* is_init;  // of a step; [B]: the row's state is taken as zero; may be null
  int64_t is_init_b;
};

namespace {

constexpr int64_t ROWS_AT_ONCE = 128;   // whose states stay in the cache while time passes
constexpr int64_t CHUNK = 128;          // rows times steps whose gradients are summed into the weights' at once
template <class S>
constexpr int64_t UNITS_AT_ONCE = (1 << 17) / (WIDTH<S> * WIDTH<S> * sizeof(S));  // 128 KiB of a panel's rows
constexpr int64_t FEW = 4;          // rows of a step that are taken by the weights as they lie
constexpr int64_t ALONE = 1 << 18;  // so few multiplications (a gate's) are not worth a second thread,
constexpr int64_t SMALL = 1 << 20;  // nor are weights of so few bytes to be read for one step

// The layer with its types, and the sizes that follow from it.
template <class S>
struct View {
  const Layer& l;
  const S* zeros = nullptr;  // max(H, P) of them, for a step's is_init
  const int64_t T = l.T, B = l.B, I = l.I, H = l.H, P = l.P;
  const int64_t units = divided_up(H, LANES<S>);        // registers of units: a gate panel each
  const int64_t wide = units * LANES<S>;                // H, filled up
  const int64_t unit_panels = divided_up(H, WIDTH<S>);  // panels whose columns are units
  const int64_t h_panels = divided_up(P, WIDTH<S>);
  const int64_t x_panels = divided_up(I, WIDTH<S>);
  const int64_t p_wide = h_panels * WIDTH<S>;
  const int64_t threads = T * B * (I + P) * H < ALONE ? 1 : std::max<int64_t>(1, std::min(l.threads, B));
  const int64_t blocks = divided_up(divided_up(B, ROWS_AT_ONCE), threads) * threads;
  const int64_t rows = divided_up(B, std::min(blocks, B));
  const int64_t steps = std::max<int64_t>(1, std::min(T, CHUNK / rows));  // of a chunk

  const S* as(const void* p) const { return static_cast<const S*>(p); }
  S* as(void* p) const { return static_cast<S*>(p); }

  const S* x(int64_t t, int64_t b) const { return as(l.x) + t * l.x_t + b * l.x_b; }
  bool starts(int64_t t, int64_t b) const { return !l.starts || l.starts[t * l.starts_t + b * l.starts_b]; }
  bool zero(int64_t b) const { return l.is_init && l.is_init[b * l.is_init_b]; }
  const S* entry_h(int64_t t, int64_t b) const {
    return zero(b) ? zeros : as(l.entry_h) + t * l.entry_h_t + b * l.entry_h_b;
  }
  const S* entry_c(int64_t t, int64_t b) const {
    return zero(b) ? zeros : as(l.entry_c) + t * l.entry_c_t + b * l.entry_c_b;
  }
  S bias(int64_t k) const { return as(l.b_ih)[k] + (l.b_hh ? as(l.b_hh)[k] : 0); }
  S* h(int64_t t, int64_t b) const { return as(l.h) + (t * B + b) * P; }
  S* c(int64_t t, int64_t b) const { return as(l.c) + (t * B + b) * H; }
  S* gates(int64_t t, int64_t b) const { return as(l.gates) + (t * B + b) * units * WIDTH<S>; }
  const S* h_before(int64_t t, int64_t b) const { return starts(t, b) ? entry_h(t, b) : h(t - 1, b); }
  const S* c_before(int64_t t, int64_t b) const { return starts(t, b) ? entry_c(t, b) : c(t - 1, b); }
};

// Memory for one call, handed out piece by piece. Counted first, with no memory behind it.
template <class S>
struct Scratch {
  S* base;
  int64_t used = 0;

  S* take(int64_t n) {
    S* found = base ? base + used : nullptr;
    used += divided_up(n, LANES<S>) * LANES<S>;
    return found;
  }
};

// Row `k` of panel `p`: `weight[k][p * WIDTH ...]`, zeros past its `columns`.
template <class S>
void pack_row(S* to, const S* row, int64_t columns) {
  for (int64_t n = 0; n < WIDTH<S>; n += LANES<S>)
    store(to + n, columns > n ? load(row + n, columns - n) : Vec<S>{});
}

// `weight [4H, K]` as one gate panel: columns (gate, unit) of the units `j * LANES ...`, transposed.
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

// The opposite: `number` columns of panel rows `from ...`, whose columns are (gate, unit), to `weight [4H, number]`.
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

// `weight [4H, N]`: panel `p` of columns, its rows in the order of the gates' memory (unit register, gate, unit).
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

template <class S>
struct Forward {
  const View<S>& v;
  S *w_x, *w_h, *bias, *w_r, *hidden;

  Forward(const View<S>& v, Scratch<S>& scratch) : v(v) {
    w_x = scratch.take(v.units * v.I * WIDTH<S>);
    w_h = scratch.take(v.units * v.P * WIDTH<S>);
    bias = scratch.take(v.units * WIDTH<S>);
    w_r = v.l.w_hr ? scratch.take(v.h_panels * v.H * WIDTH<S>) : nullptr;
    hidden = v.l.w_hr ? scratch.take(v.threads * v.rows * v.wide) : nullptr;
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

  void run(int64_t begin, int64_t end, int64_t thread) const {
    for (int64_t t = 0; t < v.T; ++t) {
      for (int64_t j = 0; j < v.units; ++j)
        in_groups(end - begin, [&](int64_t g, int rows) { cells(t, begin + g, rows, j, begin, thread); });
      for (int64_t p = 0; w_r && p < v.h_panels; ++p)
        in_groups(end - begin, [&](int64_t g, int rows) { project(t, begin + g, rows, p, begin, thread); });
    }
  }

  S* hidden_of(int64_t b, int64_t begin, int64_t thread) const {
    return hidden + (thread * v.rows + b - begin) * v.wide;
  }

  void cells(int64_t t, int64_t b, int rows, int64_t j, int64_t begin, int64_t thread) const {
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
        store(hidden_of(b + r, begin, thread) + first, m);
      else
        store(v.h(t, b + r) + first, m, number);
      if (!v.l.gates) continue;
      S* kept = v.gates(t, b + r) + j * WIDTH<S>;
      store(kept, i), store(kept + LANES<S>, f), store(kept + 2 * LANES<S>, g), store(kept + 3 * LANES<S>, o);
    }
  }

  void project(int64_t t, int64_t b, int rows, int64_t p, int64_t begin, int64_t thread) const {
    Run<S> run;
    run.panel = w_r + p * v.H * WIDTH<S>, run.length = v.H;
    Sums<S> sums = {};
    for (int r = 0; r < rows; ++r) run.rows[r] = hidden_of(b + r, begin, thread);
    const int64_t left = v.P - p * WIDTH<S>;
    const int n = int(std::min<int64_t>(4, divided_up(left, LANES<S>)));
    add_tile(rows, n, sums, &run, 1);
    for (int r = 0; r < rows; ++r)
      for (int q = 0; q < n; ++q)
        store(v.h(t, b + r) + p * WIDTH<S> + q * LANES<S>, sums[r][q], left - q * LANES<S>);
  }
};

// The gradients at the gates, `d`, of a chunk of steps stand in panels [units][step, row][WIDTH]: rows of one product (by
// the weights, for x and for h before) and columns of another (for the weights) at once.
template <class S>
struct Backward {
  const View<S>& v;
  const int64_t panel = v.steps * v.rows * WIDTH<S>;                  // of d
  const int64_t height = v.units * WIDTH<S> * WIDTH<S>;               // of w_h and w_x: 4H filled up, times columns
  const int64_t inputs = v.I + v.P + 1;                               // x, h before, and 1 for the bias
  const int64_t line = divided_up(inputs, LANES<S>) * LANES<S> | LANES<S>;  // odd, for the cache's sets
  S *w_h, *w_x, *w_r, *d, *into_h, *into_x, *into_c, *before, *grad_h, *hidden, *sums, *sums_r;
  int64_t mine;

  Backward(const View<S>& v, Scratch<S>& scratch) : v(v) {
    w_h = scratch.take(v.h_panels * height);
    w_x = scratch.take(v.l.grad_x ? v.x_panels * height : 0);
    w_r = v.l.w_hr ? scratch.take(v.unit_panels * v.P * WIDTH<S>) : nullptr;
    sums = scratch.take(v.threads * v.units * inputs * WIDTH<S>);
    sums_r = scratch.take(v.l.w_hr ? v.threads * v.unit_panels * v.P * WIDTH<S> : 0);
    const int64_t used = scratch.used;
    d = scratch.take(v.units * panel);
    into_h = scratch.take(v.h_panels * v.rows * WIDTH<S>);
    into_x = scratch.take(v.l.grad_x ? v.x_panels * v.rows * WIDTH<S> : 0);
    into_c = scratch.take(v.rows * v.wide);
    before = scratch.take(v.steps * v.rows * line);
    grad_h = scratch.take(v.l.w_hr ? v.steps * v.rows * v.p_wide : 0);
    hidden = scratch.take(v.l.w_hr ? v.unit_panels * v.steps * v.rows * WIDTH<S> : 0);
    mine = scratch.used - used;  // of each thread
    scratch.take((v.threads - 1) * mine);
  }

  bool projects() const { return v.l.w_hr; }

  void pack(int64_t thread) const {
    for (int64_t p = thread; p < v.h_panels; p += v.threads) pack_back(w_h + p * height, v.as(v.l.w_hh), v.P, v.H, p);
    for (int64_t p = thread; v.l.grad_x && p < v.x_panels; p += v.threads)
      pack_back(w_x + p * height, v.as(v.l.w_ih), v.I, v.H, p);
    for (int64_t p = thread; projects() && p < v.unit_panels; p += v.threads)
      for (int64_t k = 0; k < v.P; ++k)
        pack_row(w_r + (p * v.P + k) * WIDTH<S>, v.as(v.l.w_hr) + k * v.H + p * WIDTH<S>, v.H - p * WIDTH<S>);
    std::fill_n(sums + thread * v.units * inputs * WIDTH<S>, v.units * inputs * WIDTH<S>, S(0));
    if (projects()) std::fill_n(sums_r + thread * v.unit_panels * v.P * WIDTH<S>, v.unit_panels * v.P * WIDTH<S>, S(0));
  }
};

// One thread's rows going back through time.
template <class S>
struct BackwardRows {
  const Backward<S>& all;
  const View<S>& v = all.v;
  const int64_t begin, end, rows = end - begin, thread;
  S* const d = all.d + thread * all.mine;
  S* const into_h = all.into_h + thread * all.mine;  // [h_panels][row][WIDTH]: from the step after
  S* const into_x = all.into_x + thread * all.mine;
  S* const into_c = all.into_c + thread * all.mine;
  S* const before = all.before + thread * all.mine;
  S* const grad_h = all.grad_h + thread * all.mine;
  S* const hidden = all.hidden + thread * all.mine;
  S* const sums = all.sums + thread * v.units * all.inputs * WIDTH<S>;
  S* const sums_r = all.sums_r + thread * v.unit_panels * v.P * WIDTH<S>;

  S* d_at(int64_t slot, int64_t row) const { return d + (slot * rows + row) * WIDTH<S>; }
  S* h_at(int64_t row, int64_t p) const { return into_h + (p * rows + row) * WIDTH<S>; }

  void run() const {
    std::fill_n(into_c, rows * v.wide, S(0));
    std::fill_n(into_h, v.h_panels * rows * WIDTH<S>, S(0));
    for (int64_t stop = v.T; stop > 0; stop = std::max<int64_t>(0, stop - v.steps)) {
      const int64_t first = std::max<int64_t>(0, stop - v.steps);
      for (int64_t t = stop - 1; t >= first; --t) step(t, t - first);
      sum_up(first, stop);
    }
  }

  void step(int64_t t, int64_t slot) const {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; v.l.grad_h && column < v.P; column += LANES<S>) {
        S* at = h_at(row, column / WIDTH<S>) + column % WIDTH<S>;
        const S* from = v.as(v.l.grad_h) + t * v.l.grad_h_t + (begin + row) * v.l.grad_h_b + column;
        store(at, load(at) + load(from, v.P - column));
      }
    if (all.projects()) return projected(t, slot);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t p = 0; p < v.unit_panels; ++p) cells(t, slot, row, p, h_at(row, p));
    back(t, slot);
  }

  void projected(int64_t t, int64_t slot) const {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t p = 0; p < v.h_panels; ++p)
        std::copy_n(h_at(row, p), WIDTH<S>, grad_h + (slot * rows + row) * v.p_wide + p * WIDTH<S>);
    for (int64_t p = 0; p < v.unit_panels; ++p)
      in_groups(rows, [&](int64_t row, int number) {
        Sums<S> into_hidden = {};
        Run<S> run;
        run.panel = all.w_r + p * v.P * WIDTH<S>, run.length = v.P;
        for (int r = 0; r < number; ++r) run.rows[r] = grad_h + (slot * rows + row + r) * v.p_wide;
        add_tile(number, 4, into_hidden, &run, 1);
        for (int r = 0; r < number; ++r) cells(t, slot, row + r, p, reinterpret_cast<const S*>(into_hidden[r]));
      });
    back(t, slot);
  }

  // From the gradients `into_m` at o * tanh(c), of the units of panel `p`, to those at the gates and at c before.
  void cells(int64_t t, int64_t slot, int64_t row, int64_t p, const S* into_m) const {
    const int64_t b = begin + row;
    const bool starts = v.starts(t, b);
    const S *c_at = v.c(t, b), *before_at = v.c_before(t, b), *kept = v.gates(t, b);
    const S* from = v.l.grad_c ? v.as(v.l.grad_c) + t * v.l.grad_c_t + b * v.l.grad_c_b : nullptr;
    for (int64_t q = 0, j = 4 * p; q < 4 && j < v.units; ++q, ++j) {
      const int64_t first = j * LANES<S>, left = v.H - first;
      const S* gate = kept + j * WIDTH<S>;  // behind the last unit there may be NaN: an infinite input times zero
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
      if (starts && v.l.grad_entry_c) store(v.as(v.l.grad_entry_c) + (t * v.B + b) * v.H + first, at_c * f, left);
      if (all.projects()) store(hidden + ((p * v.steps + slot) * rows + row) * WIDTH<S> + q * LANES<S>, o * flat);
    }
  }

  // d of step `t` by the weights: to h of the step before, or where a sequence starts at `t` to its entry, and to x.
  // A part of 4H after the other, so that the part's d and each panel's rows stay in the cache.
  void back(int64_t t, int64_t slot) const {
    const int64_t to_h = t > 0 || v.l.grad_entry_h ? v.h_panels : 0, to_x = v.l.grad_x ? v.x_panels : 0;
    const int64_t parts = divided_up(v.units, UNITS_AT_ONCE<S>);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = share(v.units, parts, part), to = share(v.units, parts, part + 1);
      for (int64_t p = 0; p < to_h; ++p)
        product(slot, from, to, all.w_h + p * all.height, into_h + p * rows * WIDTH<S>, v.P - p * WIDTH<S>);
      for (int64_t p = 0; p < to_x; ++p)
        product(slot, from, to, all.w_x + p * all.height, into_x + p * rows * WIDTH<S>, v.I - p * WIDTH<S>);
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t p = 0; p < to_h && v.starts(t, begin + row); ++p) {
        if (v.l.grad_entry_h) put(v.l.grad_entry_h, t, row, p, v.P, h_at(row, p));
        std::fill_n(h_at(row, p), WIDTH<S>, S(0));
      }
      for (int64_t p = 0; p < to_x; ++p) put(v.l.grad_x, t, row, p, v.I, into_x + (p * rows + row) * WIDTH<S>);
    }
  }

  // A panel's columns to a row of `gradient [T, B, columns]`.
  void put(void* gradient, int64_t t, int64_t row, int64_t p, int64_t columns, const S* from) const {
    S* to = v.as(gradient) + (t * v.B + begin + row) * columns + p * WIDTH<S>;
    std::copy_n(from, std::min(WIDTH<S>, columns - p * WIDTH<S>), to);
  }

  // into[row][...] (+)= the units `from ... to` of d times their rows of a panel.
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

  // The chunk's share of the weights' gradients, transposed: [units][x, h before, 1][WIDTH].
  void sum_up(int64_t first, int64_t stop) const {
    const int64_t number = (stop - first) * rows;
    if (v.l.grad_w_ih || v.l.grad_w_hh || v.l.grad_bias) {
      for (int64_t k = 0; k < number; ++k) {
        const int64_t t = first + k / rows, b = begin + k % rows;
        S* to = before + k * all.line;
        std::copy_n(v.x(t, b), v.I, to);
        std::copy_n(v.h_before(t, b), v.P, to + v.I);
        to[v.I + v.P] = 1;
      }
      for (int64_t j = 0; j < v.units; ++j)
        add_outer(sums + j * all.inputs * WIDTH<S>, before, all.line, d + j * all.panel, number, all.inputs);
    }
    for (int64_t p = 0; all.projects() && v.l.grad_w_hr && p < v.unit_panels; ++p)
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

// The threads' sums added up, and turned back into torch's layout.
template <class S>
void hand_out(const Backward<S>& all, int64_t thread) {
  const View<S>& v = all.v;
  S *w_ih = v.as(v.l.grad_w_ih), *w_hh = v.as(v.l.grad_w_hh), *bias = v.as(v.l.grad_bias), *w_hr = v.as(v.l.grad_w_hr);
  const int64_t each = v.units * all.inputs * WIDTH<S>, each_r = v.unit_panels * v.P * WIDTH<S>;
  for (int64_t j = thread; j < v.units; j += v.threads) {
    S* sum = all.sums + j * all.inputs * WIDTH<S>;
    for (int64_t other = 1; other < v.threads; ++other)
      for (int64_t k = 0; k < all.inputs * WIDTH<S>; ++k) sum[k] += sum[other * each + k];
    if (w_ih) unpack_gates(w_ih, sum, v.I, v.H, j);
    if (w_hh) unpack_gates(w_hh, sum + v.I * WIDTH<S>, v.P, v.H, j);
    if (bias) unpack_gates(bias, sum + (v.I + v.P) * WIDTH<S>, 1, v.H, j);
  }
  for (int64_t p = thread; w_hr && p < v.unit_panels; p += v.threads)
    for (int64_t n = 0; n < v.P; ++n)
      for (int64_t q = 0; q < WIDTH<S> && p * WIDTH<S> + q < v.H; ++q) {
        S sum = 0;
        for (int64_t other = 0; other < v.threads; ++other)
          sum += all.sums_r[other * each_r + (p * v.P + n) * WIDTH<S> + q];
        w_hr[n * v.H + p * WIDTH<S> + q] = sum;
      }
}

// Asks for large pages: the first touch of a small one costs as much as computing what goes into it.
void in_large_pages(const void* from, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 1 << 12;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(from) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(from) + bytes) / page * page;
  if (from && bytes >= 4 << 20) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Runs `work(thread)` on each of `threads` threads.
template <class Work>
void on_threads(int64_t threads, Work work) {
  if (threads == 1) return work(0);
#pragma omp parallel num_threads(int(threads))
  {
    // A team may be smaller than asked for (nested regions): then each takes more than one share.
    for (int64_t k = omp_get_thread_num(); k < threads; k += omp_get_num_threads()) work(k);
  }
}

template <class S>
void forward(const View<S>& v, S* memory) {
  const Layer& l = v.l;
  Scratch<S> scratch{memory};
  const Forward<S> all(v, scratch);
  const int64_t blocks = std::min(v.blocks, v.B), cells = v.T * v.B * sizeof(S);
  in_large_pages(l.h, cells * v.P);
  in_large_pages(l.c, cells * v.H);
  in_large_pages(l.gates, cells * v.units * WIDTH<S>);
  on_threads(v.threads, [&](int64_t thread) { all.pack(thread); });
  on_threads(v.threads, [&](int64_t thread) {
    for (int64_t k = share(blocks, v.threads, thread); k < share(blocks, v.threads, thread + 1); ++k)
      all.run(share(v.B, blocks, k), share(v.B, blocks, k + 1), thread);
  });
}

template <class S>
void backward(const Layer& l) {
  const View<S> v{l};
  Scratch<S> scratch{v.as(l.scratch)};
  const Backward<S> all(v, scratch);
  const int64_t blocks = std::min(v.blocks, v.B);
  in_large_pages(l.grad_x, v.T * v.B * v.I * sizeof(S));
  in_large_pages(l.scratch, scratch.used * sizeof(S));
  on_threads(v.threads, [&](int64_t thread) { all.pack(thread); });
  on_threads(v.threads, [&](int64_t thread) {
    for (int64_t k = share(blocks, v.threads, thread); k < share(blocks, v.threads, thread + 1); ++k)
      BackwardRows<S>{all, v, share(v.B, blocks, k), share(v.B, blocks, k + 1),
                      share(v.B, blocks, k + 1) - share(v.B, blocks, k), thread}.run();
  });
  on_threads(v.threads, [&](int64_t thread) { hand_out(all, thread); });
}

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

template <class S>
void step(const Layer& l) {
  const std::vector<S> zeros(l.is_init ? std::max(l.H, l.P) : 0);
  const View<S> v{l, zeros.data()};
  if (v.B > FEW || l.w_hr) {
    Scratch<S> counted{nullptr};
    Forward<S>(v, counted);
    const std::unique_ptr<S[]> memory(new S[counted.used]);
    return forward(v, memory.get());
  }
  const int64_t bytes = 4 * v.H * (v.I + v.P) * sizeof(S), threads = bytes < SMALL ? 1 : std::min(l.threads, v.units);
  on_threads(threads, [&](int64_t thread) {
    for (int64_t j = share(v.units, threads, thread); j < share(v.units, threads, thread + 1); ++j) switch (v.B) {
        case 1: step_rows<S, 1>(v, j); break;
        case 2: step_rows<S, 2>(v, j); break;
        case 3: step_rows<S, 3>(v, j); break;
        default: step_rows<S, FEW>(v, j);
      }
  });
}

template <class S>
int64_t scratch_of(const Layer& l, bool back) {
  const View<S> v{l};
  Scratch<S> scratch{nullptr};
  if (back)
    Backward<S>(v, scratch);
  else
    Forward<S>(v, scratch);
  return scratch.used * sizeof(S);
}

}  // namespace

extern "C" {

int64_t rnn_lanes(bool wide) { return wide ? LANES<double> : LANES<float>; }

int64_t rnn_scratch(const Layer* layer, bool wide, bool back) {
  return wide ? scratch_of<double>(*layer, back) : scratch_of<float>(*layer, back);
}

void rnn_forward(const Layer* layer, bool wide) {
  wide ? forward<double>({*layer}, static_cast<double*>(layer->scratch))
       : forward<float>({*layer}, static_cast<float*>(layer->scratch));
}

// One step from `entry` to `h` and `c`, for acting: takes its memory itself.
void rnn_step(const Layer* layer, bool wide) { wide ? step<double>(*layer) : step<float>(*layer); }

void rnn_backward(const Layer* layer, bool wide) { wide ? backward<double>(*layer) : backward<float>(*layer); }
}
