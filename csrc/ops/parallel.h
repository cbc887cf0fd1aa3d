// parallel_for for functions that may throw: an exception that PyTorch's meets in another thread, or on its
// way through the C interface, loses its type and its message.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace torch_lsh {

#ifdef TORCH_LSH_PLAIN_THREADS
// For ThreadSanitizer, which does not see how OpenMP synchronises its threads.
template <typename Run>
void in_threads(int64_t begin, int64_t end, int64_t grain, const Run& run) {
  static thread_local bool is_inside = false;
  const int64_t most = is_inside ? 1 : torch::stable::get_num_threads();
  const int64_t parts = std::min(most, (end - begin) / std::max<int64_t>(grain, 1));
  if (parts <= 1) {
    if (begin < end) run(begin, end);
    return;
  }
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < parts; ++part)
    threads.emplace_back([&, part] {
      is_inside = true;
      run(begin + (end - begin) * part / parts, begin + (end - begin) * (part + 1) / parts);
    });
  for (std::thread& thread : threads) thread.join();
}
#else
template <typename Run>
void in_threads(int64_t begin, int64_t end, int64_t grain, const Run& run) {
  torch::stable::parallel_for(begin, end, grain, run);
}
#endif

// Calls run(begin, end) for parts of a range of about `grain` numbers at least; throws the first exception of
// any.
template <typename Run>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Run& run) {
  std::atomic_flag failed;
  std::exception_ptr first;
  in_threads(begin, end, grain, [&](int64_t from, int64_t to) {
    try {
      run(from, to);
    } catch (...) {
      if (!failed.test_and_set()) first = std::current_exception();
    }
  });
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace torch_lsh
