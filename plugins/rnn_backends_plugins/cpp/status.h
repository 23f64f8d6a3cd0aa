// How a call of the kernel ends, for a caller in another language: no exception leaves a function that C can call, nor
// an OpenMP region, where it would end the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>

// As in kernel.py.
enum Status : int32_t { DONE = 0, NO_MEMORY = 1, INVALID = 2, FAILED = 3 };

// The message of this thread's last call that did not end with DONE.
inline thread_local char message[256] = "";

// Runs `work`, and returns its exception as a status: std::invalid_argument is INVALID.
template <class Work>
Status status_of(Work work) noexcept {
  const auto fail = [](Status status, const char* text) {
    std::snprintf(message, sizeof message, "%s", text);
    return status;
  };
  try {
    work();
    return DONE;
  } catch (const std::bad_alloc&) {
    return fail(NO_MEMORY, "the system has not enough memory left");
  } catch (const std::invalid_argument& error) {
    return fail(INVALID, error.what());
  } catch (const std::exception& error) {
    return fail(FAILED, error.what());
  } catch (...) {
    return fail(FAILED, "an exception of an unknown kind");
  }
}

// The first exception among threads that have to meet: later work is left out, and `rethrow` passes it on.
class FirstException {
  std::exception_ptr first;
  std::atomic<bool> there{false};

 public:
  template <class Work>
  void guard(Work work) noexcept {
    if (there.load(std::memory_order_relaxed)) return;
    try {
      work();
    } catch (...) {
#pragma omp critical(rnn_first_exception)
      if (!there) first = std::current_exception(), there = true;
    }
  }

  void rethrow() const {
    if (there) std::rethrow_exception(first);
  }
};
