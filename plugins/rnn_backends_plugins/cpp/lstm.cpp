// One LSTM layer in one direction, with resets: forward, backward, and one step. Each thread runs its own rows of the
// batch over all time steps without a barrier before the end. If there are few rows per thread, all threads share all
// rows: each computes a part of the units, with a barrier in every step.
//
// A reset costs nothing: a row's state before a step is read through a pointer, which points to the entry state where a
// sequence starts. So no value from before a start, not even NaN, affects the new sequence. The letters T, B, I, H, P
// are those of rnn_backends.contract.
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "backward.h"
#include "border.h"
#include "forward.h"
#include "status.h"
#include "step.h"

namespace {

constexpr int64_t MOST_KEPT = 64 << 20;  // bytes of memory that a thread may keep between steps

// Requests large pages: the page faults of small ones cost as much as computing their contents.
void in_large_pages(const void* from, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 1 << 12;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(from) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(from) + bytes) / page * page;
  if (from && bytes >= 4 << 20) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Calls `body(together)` on each of `threads` threads. In `body`, `together(phase)` runs `phase(k)` for each k below
// `threads` on one of them, with a barrier at the end. After an exception in a phase, later phases are skipped except
// for their barriers, and the exception is rethrown to the caller. Outside its phases `body` must not throw.
template <class Body>
void on_threads(int64_t threads, Body body) {
  if (threads == 1) return body([](auto phase) { phase(0); });
  FirstException failure;
#pragma omp parallel num_threads(int(threads))
  body([&](auto phase) {
    // OpenMP may start fewer threads than requested (nested regions); each then runs `phase` for several k.
    failure.guard([&] {
      for (int64_t k = omp_get_thread_num(); k < threads; k += omp_get_num_threads()) phase(k);
    });
#pragma omp barrier
  });
  failure.rethrow();
}

// Runs `team(begin, end, index, in_parts)` for all rows, block by block: each thread is a team, or all are one team.
template <class S, class Together, class Team>
void in_teams(const View<S>& v, Together together, Team team) {
  const int64_t blocks = std::min(v.blocks, v.B);
  if (v.by_units)
    return team(0, v.B, 0, [&](auto work) { together([&](int64_t k) { work(Part{k, v.threads}); }); });
  together([&](int64_t thread) {
    for (int64_t k = share(blocks, v.threads, thread); k < share(blocks, v.threads, thread + 1); ++k)
      team(share(v.B, blocks, k), share(v.B, blocks, k + 1), thread, [](auto work) { work(Part{}); });
  });
}

template <class S>
void forward(const View<S>& v, S* memory) {
  const Layer& l = v.l;
  Scratch<S> scratch{memory};
  const Forward<S> all(v, scratch);
  const int64_t cells = v.T * v.B * sizeof(S);
  in_large_pages(l.h, cells * v.P);
  in_large_pages(l.c, cells * v.H);
  in_large_pages(l.gates, cells * v.units * WIDTH<S>);
  on_threads(v.threads, [&](auto together) {
    together([&](int64_t thread) { all.pack(thread); });
    in_teams(v, together, [&](int64_t begin, int64_t end, int64_t team, auto in_parts) {
      all.run(begin, end, team, in_parts);
    });
  });
}

template <class S>
void backward(const View<S>& v, S* memory) {
  const Layer& l = v.l;
  Scratch<S> scratch{memory};
  const Backward<S> all(v, scratch);
  in_large_pages(l.grad_x, v.T * v.B * v.I * sizeof(S));
  in_large_pages(memory, scratch.used * sizeof(S));
  on_threads(v.threads, [&](auto together) {
    together([&](int64_t thread) { all.pack(thread); });
    in_teams(v, together, [&](int64_t begin, int64_t end, int64_t team, auto in_parts) {
      BackwardRows<S>{all, v, begin, end, end - begin, team}.run(in_parts);
    });
    together([&](int64_t thread) { hand_out(all, thread); });
  });
}

constexpr std::align_val_t LINE{64};  // bytes of a line of the cache; a load across two lines takes twice as long

struct Freed {
  void operator()(void* memory) const { ::operator delete(memory, LINE); }
};

template <class S>
std::unique_ptr<S, Freed> allocated(int64_t n) {
  return std::unique_ptr<S, Freed>(static_cast<S*>(::operator new(n * sizeof(S), LINE)));
}

// Memory that a thread keeps between steps, for packed weights: the page faults of new memory cost more than the step.
template <class S>
S* kept(int64_t n) {
  thread_local std::unique_ptr<S, Freed> memory;
  thread_local int64_t has = 0;
  if (n > has) has = 0, memory.reset(), memory = allocated<S>(n), has = n;
  return memory.get();
}

// Calls `work(memory)` with memory for `n` elements: kept memory, or above MOST_KEPT memory that is freed afterwards.
template <class S, class Work>
void with_memory(int64_t n, Work work) {
  if (n * int64_t(sizeof(S)) <= MOST_KEPT) return work(kept<S>(n));
  const auto memory = allocated<S>(n);
  work(memory.get());
}

// The state of a step's rows where is_init is true.
template <class S>
std::vector<S> zeros_of(const Layer& l) {
  return std::vector<S>(l.is_init ? std::max(l.H, l.P) : 0);
}

// The number of threads for a step with unpacked weights.
template <class S>
int64_t threads_of_step(const View<S>& v) {
  return 4 * v.H * (v.I + v.P) * int64_t(sizeof(S)) < SMALL ? 1 : std::min(v.l.threads, v.units);
}

template <class S>
void step(const Layer& l) {
  const std::vector<S> zeros = zeros_of<S>(l);
  const View<S> v{l, zeros.data()};
  if (v.B > FEW || l.w_hr) {
    Scratch<S> counted{nullptr};
    Forward<S>(v, counted);
    return with_memory<S>(counted.used, [&](S* memory) { forward(v, memory); });
  }
  const int64_t threads = threads_of_step(v);
  on_threads(threads, [&](auto together) {
    together([&](int64_t thread) {
      for (int64_t j = share(v.units, threads, thread); j < share(v.units, threads, thread + 1); ++j) switch (v.B) {
          case 1: step_rows<S, 1>(v, j); break;
          case 2: step_rows<S, 2>(v, j); break;
          case 3: step_rows<S, 3>(v, j); break;
          default: step_rows<S, FEW>(v, j);
        }
    });
  });
}

template <class S>
void step_backward(const Layer& l) {
  const std::vector<S> zeros = zeros_of<S>(l);
  const View<S> v{l, zeros.data()};
  if (v.B > FEW_BACK || l.w_hr) {
    Scratch<S> counted{nullptr};
    Backward<S>(v, counted);
    return with_memory<S>(counted.used, [&](S* memory) { backward(v, memory); });
  }
  const StepBack<S> all{v, kept<S>(4 * v.H * v.B)};
  const int64_t threads = threads_of_step(v);
  on_threads(threads, [&](auto together) {
    together([&](int64_t k) { all.cells(Part{k, threads}); });
    together([&](int64_t k) { all.weights(Part{k, threads}), all.inputs(Part{k, threads}); });
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

template <class S>
void checked_forward(const Layer& l) {
  border::check_read(l);
  if (!l.T || !l.B) return;
  border::check_forward<S>(l, scratch_of<S>(l, false));
  forward<S>({l}, static_cast<S*>(l.scratch));
}

template <class S>
void checked_backward(const Layer& l) {
  border::check_read(l);
  if (!l.T || !l.B) return;
  border::check_backward<S>(l, scratch_of<S>(l, true));
  backward<S>({l}, static_cast<S*>(l.scratch));
}

}  // namespace

extern "C" {

int64_t rnn_lanes(bool wide) { return wide ? LANES<double> : LANES<float>; }

// The size of the scratch memory in bytes; a negative number is minus a Status.
int64_t rnn_scratch(const Layer* layer, bool wide, bool back) noexcept {
  int64_t bytes = 0;
  const Status status =
      status_of([&] { bytes = wide ? scratch_of<double>(*layer, back) : scratch_of<float>(*layer, back); });
  return status == DONE ? bytes : -int64_t(status);
}

// Each of these returns a Status; rnn_message returns the message for one that is not DONE.
int32_t rnn_forward(const Layer* layer, bool wide) noexcept {
  return status_of([&] { wide ? checked_forward<double>(*layer) : checked_forward<float>(*layer); });
}

// One step from `entry` to `h`, `c` and `gates` (which may be null). It allocates its scratch memory itself.
int32_t rnn_step(const Layer* layer, bool wide) noexcept {
  return status_of([&] {
    wide ? border::check_step<double>(*layer) : border::check_step<float>(*layer);
    if (layer->B) wide ? step<double>(*layer) : step<float>(*layer);
  });
}

// The gradients of one step. It allocates its scratch memory itself, and writes every element of every gradient.
int32_t rnn_step_backward(const Layer* layer, bool wide) noexcept {
  return status_of([&] {
    wide ? border::check_step_backward<double>(*layer) : border::check_step_backward<float>(*layer);
    if (layer->B) wide ? step_backward<double>(*layer) : step_backward<float>(*layer);
  });
}

int32_t rnn_backward(const Layer* layer, bool wide) noexcept {
  return status_of([&] { wide ? checked_backward<double>(*layer) : checked_backward<float>(*layer); });
}

const char* rnn_message() noexcept { return message; }
}
