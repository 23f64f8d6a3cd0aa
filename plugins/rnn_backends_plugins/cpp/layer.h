// A layer's arguments, the distribution of its work over threads, and its scratch memory.
#pragma once

#include <algorithm>

#include "products.h"

// Filled in by kernel.py, field by field. Strides are in elements; the last dimension is always contiguous.
struct Layer {
  int64_t T, B, I, H, P, threads;
  const void *x, *w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *entry_h, *entry_c;  // without b_hh, b_ih is the sum of both
  const bool* starts;  // null: a sequence starts in every row
  int64_t x_t, x_b, entry_h_t, entry_h_b, entry_c_t, entry_c_b, starts_t, starts_b;
  void *h, *c, *gates;  // [T, B, P], [T, B, H], [T, B, units, 4 gates, LANES]: contiguous; gates may be null
  const void *grad_h, *grad_c;  // either may be null
  int64_t grad_h_t, grad_h_b, grad_c_t, grad_c_b;
  // Contiguous; each may be null; those of the entries must be zero before the call.
  void *grad_x, *grad_w_ih, *grad_w_hh, *grad_bias, *grad_w_hr, *grad_entry_h, *grad_entry_c;
  void* scratch;
  const bool* is_init;  // [B], for a step: true where the row's state counts as zero; may be null
  int64_t is_init_b;
  struct {  // the number of elements in each buffer from its pointer on; scratch in bytes
    int64_t x, w_ih, w_hh, b_ih, b_hh, w_hr, entry_h, entry_c, starts, h, c, gates, grad_h, grad_c;
    int64_t grad_x, grad_w_ih, grad_w_hh, grad_bias, grad_w_hr, grad_entry_h, grad_entry_c, scratch, is_init;
  } room;
};

constexpr int64_t ROWS_AT_ONCE = 128;  // rows of a block: their states stay in the cache over all steps
constexpr int64_t CHUNK = 128;         // rows times steps for each update of the sums of the weights' gradients
constexpr int64_t ALONE = 1 << 18;     // multiplications per gate below which a second thread does not pay off
constexpr int64_t WAITING = 1 << 13;   // multiplications that take as long as a barrier
constexpr int64_t FEW_ROWS = 4;        // rows per thread below which threads share large weights instead of rows
constexpr int64_t LARGE = 1 << 20;     // bytes of weights above which they are large: a core's own cache is smaller

// A layer with typed access to its tensors, and the sizes derived from it.
template <class S>
struct View {
  const Layer& l;
  const S* zeros = nullptr;  // max(H, P) zeros, for a step's is_init
  const int64_t T = l.T, B = l.B, I = l.I, H = l.H, P = l.P;
  const int64_t units = divided_up(H, LANES<S>);        // registers of units, with one gate panel each
  const int64_t wide = units * LANES<S>;                // H, padded
  const int64_t unit_panels = divided_up(H, WIDTH<S>);  // panels whose columns are units
  const int64_t h_panels = divided_up(P, WIDTH<S>);
  const int64_t x_panels = divided_up(I, WIDTH<S>);
  const int64_t p_wide = h_panels * WIDTH<S>;
  const int64_t work = B * (I + P) * H;  // multiplications per step and gate
  const int64_t sharers = T * work < ALONE || B > ROWS_AT_ONCE ? 1 : std::min({l.threads, units, work / WAITING});
  const bool large = 4 * H * (I + P) * int64_t(sizeof(S)) >= LARGE;
  const bool by_units = sharers > 1 && (sharers >= 2 * B || (large && B < FEW_ROWS * l.threads));
  const int64_t takers = T * work < ALONE ? 1 : std::max<int64_t>(1, std::min(l.threads, B));
  const int64_t threads = by_units ? sharers : takers;
  const int64_t teams = by_units ? 1 : threads;  // teams that share the rows: one per thread, or one of all threads
  const int64_t blocks = divided_up(divided_up(B, ROWS_AT_ONCE), teams) * teams;
  const int64_t rows = divided_up(B, std::min(blocks, B));
  const int64_t steps = std::max<int64_t>(1, std::min(T, CHUNK / rows));  // steps per chunk

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

// One thread's share of a team's work.
struct Part {
  int64_t index = 0, of = 1;

  int64_t begin(int64_t n) const { return share(n, of, index); }
  int64_t end(int64_t n) const { return share(n, of, index + 1); }
};

// The memory of one call, allocated piece by piece. With a null base it only counts.
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
