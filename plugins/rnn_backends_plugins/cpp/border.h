// The checks before the kernel reads or writes anything: each buffer must have the size that sizes and strides require.
#pragma once

#include <stdexcept>
#include <string>

#include "layer.h"

namespace border {

inline int64_t product(int64_t a, int64_t b) {
  int64_t found;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &found))
    throw std::invalid_argument("a size or a stride is negative or too large");
  return found;
}

inline int64_t product(int64_t a, int64_t b, int64_t c) { return product(product(a, b), c); }

// The number of elements from the first to the last of [T, B, N] with strides t, b, 1.
inline int64_t span(int64_t T, int64_t B, int64_t N, int64_t t, int64_t b) {
  if (T == 0 || B == 0 || N == 0) return 0;
  return product(T - 1, t) + product(B - 1, b) + N;
}

// Throws unless the buffer of `room` elements has the `need` elements that are read or written.
inline void holds(const char* name, const void* buffer, int64_t room, int64_t need) {
  if (need == 0 || (buffer && need <= room)) return;
  const std::string there = buffer ? std::to_string(room) + " elements" : "no memory";
  throw std::invalid_argument(std::string(name) + " needs " + std::to_string(need) + " elements and has " + there);
}

inline void holds_if_given(const char* name, const void* buffer, int64_t room, int64_t need) {
  if (buffer) holds(name, buffer, room, need);
}

// The buffers that a forward pass, a backward pass and a step have in common.
inline void check_read(const Layer& l) {
  for (const int64_t size : {l.T, l.B, l.I, l.H, l.P})
    if (size < 0) throw std::invalid_argument("a size is negative");
  if (l.threads < 1) throw std::invalid_argument("there must be one thread at least");
  if (!l.w_hr && l.P != l.H) throw std::invalid_argument("without a projection P must be H");
  const int64_t H4 = product(4, l.H);
  holds("x", l.x, l.room.x, span(l.T, l.B, l.I, l.x_t, l.x_b));
  holds("w_ih", l.w_ih, l.room.w_ih, product(H4, l.I));
  holds("w_hh", l.w_hh, l.room.w_hh, product(H4, l.P));
  holds_if_given("b_ih", l.b_ih, l.room.b_ih, H4);
  holds_if_given("b_hh", l.b_hh, l.room.b_hh, H4);
  holds_if_given("w_hr", l.w_hr, l.room.w_hr, product(l.P, l.H));
  holds("entry_h", l.entry_h, l.room.entry_h, span(l.T, l.B, l.P, l.entry_h_t, l.entry_h_b));
  holds("entry_c", l.entry_c, l.room.entry_c, span(l.T, l.B, l.H, l.entry_c_t, l.entry_c_b));
  holds_if_given("starts", l.starts, l.room.starts, span(l.T, l.B, 1, l.starts_t, l.starts_b));
  holds_if_given("is_init", l.is_init, l.room.is_init, span(1, l.B, 1, 0, l.is_init_b));
  if (!l.starts && l.T > 1) throw std::invalid_argument("more than one step needs starts");
  if (l.b_hh && !l.b_ih) throw std::invalid_argument("b_hh comes with b_ih");
  const int64_t cells = product(l.T, l.B);
  holds("h", l.h, l.room.h, product(cells, l.P));
  holds("c", l.c, l.room.c, product(cells, l.H));
}

template <class S>
int64_t gates_of(const Layer& l) {
  return product(product(l.T, l.B), product(divided_up(l.H, LANES<S>), WIDTH<S>));
}

// To be called after check_read; `scratch`: the bytes of scratch memory that the pass needs.
template <class S>
void check_forward(const Layer& l, int64_t scratch) {
  holds_if_given("gates", l.gates, l.room.gates, gates_of<S>(l));
  holds("scratch", l.scratch, l.room.scratch, scratch);
}

template <class S>
void check_gradients(const Layer& l) {
  const int64_t H4 = product(4, l.H), cells = product(l.T, l.B);
  holds("gates", l.gates, l.room.gates, gates_of<S>(l));
  holds_if_given("grad_h", l.grad_h, l.room.grad_h, span(l.T, l.B, l.P, l.grad_h_t, l.grad_h_b));
  holds_if_given("grad_c", l.grad_c, l.room.grad_c, span(l.T, l.B, l.H, l.grad_c_t, l.grad_c_b));
  holds_if_given("grad_x", l.grad_x, l.room.grad_x, product(cells, l.I));
  holds_if_given("grad_w_ih", l.grad_w_ih, l.room.grad_w_ih, product(H4, l.I));
  holds_if_given("grad_w_hh", l.grad_w_hh, l.room.grad_w_hh, product(H4, l.P));
  holds_if_given("grad_bias", l.grad_bias, l.room.grad_bias, H4);
  holds_if_given("grad_w_hr", l.grad_w_hr, l.room.grad_w_hr, product(l.P, l.H));
  holds_if_given("grad_entry_h", l.grad_entry_h, l.room.grad_entry_h, product(cells, l.P));
  holds_if_given("grad_entry_c", l.grad_entry_c, l.room.grad_entry_c, product(cells, l.H));
}

template <class S>
void check_backward(const Layer& l, int64_t scratch) {
  check_gradients<S>(l);
  holds("scratch", l.scratch, l.room.scratch, scratch);
}

template <class S>
void check_step(const Layer& l) {
  check_read(l);
  if (l.T != 1) throw std::invalid_argument("a step is one step");
  holds_if_given("gates", l.gates, l.room.gates, gates_of<S>(l));
}

template <class S>
void check_step_backward(const Layer& l) {
  check_step<S>(l);
  check_gradients<S>(l);
}

}  // namespace border
