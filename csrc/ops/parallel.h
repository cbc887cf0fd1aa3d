// parallel_for for functions that may throw: an exception that PyTorch's meets in another thread, or on its
// way through the C interface, loses its type and its message.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>

namespace torch_lsh {

// Calls run(begin, end) for parts of a range of at least `grain` numbers; throws the first exception of any.
template <typename Run>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Run& run) {
  std::atomic_flag failed;
  std::exception_ptr first;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
    try {
      run(from, to);
    } catch (...) {
      if (!failed.test_and_set()) first = std::current_exception();
    }
  });
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace torch_lsh
