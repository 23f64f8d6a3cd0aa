// The status of a kernel call, for a caller in another language: no exception may leave a C function or an OpenMP
// region, where it would terminate the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>

// The same values as in kernel.py.
enum Status : int32_t { DONE = 0, NO_MEMORY = 1, INVALID = 2, FAILED = 3 };

// The message of this thread's last call with another status than DONE.
inline thread_local char message[256] = "";

// Runs `work` and returns a status for its exception: INVALID for std::invalid_argument.
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

// The first exception among threads with barriers: later work is skipped, and `rethrow` throws the exception again.
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
