// Work stealing: a parallel_for for tasks of about ten microseconds on cores of unequal speed (heterogeneous,
// or shared with, say, a DataLoader).
//
// Each thread runs its own part in order, which finds the previous operator's data in its cache, then steals
// from the other threads, last tasks first. Any thread may run any task at any time; results must not depend
// on it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "ops/parallel.h"

namespace torch_lsh {

class TaskQueues {
 public:
  TaskQueues(int64_t tasks, int64_t threads) : parts_(threads) {
    for (int64_t i = 0; i < threads; ++i)
      parts_[i].left = pack(tasks * i / threads, tasks * (i + 1) / threads);
  }

  // Thread-safe. The next task for the owner of part `own`; -1 after the last.
  int64_t take(int64_t own) {
    int64_t task = take_first(parts_[own]);
    for (size_t i = 1; task < 0 && i < parts_.size(); ++i)
      task = take_last(parts_[(own + i) % parts_.size()]);
    return task;
  }

 private:
  // A cache line each: other threads touch it only to steal.
  struct alignas(64) Part {
    std::atomic<uint64_t> left;  // pack(begin, end)
  };

  static uint64_t pack(uint64_t begin, uint64_t end) { return end << 32 | begin; }
  static uint64_t begin_of(uint64_t left) { return left & UINT32_MAX; }
  static uint64_t end_of(uint64_t left) { return left >> 32; }

  static int64_t take_first(Part& part) {
    uint64_t left = part.left.load(std::memory_order_relaxed);
    while (begin_of(left) < end_of(left))
      if (part.left.compare_exchange_weak(left, pack(begin_of(left) + 1, end_of(left)),
                                          std::memory_order_relaxed))
        return static_cast<int64_t>(begin_of(left));
    return -1;
  }

  static int64_t take_last(Part& part) {
    uint64_t left = part.left.load(std::memory_order_relaxed);
    while (begin_of(left) < end_of(left))
      if (part.left.compare_exchange_weak(left, pack(begin_of(left), end_of(left) - 1),
                                          std::memory_order_relaxed))
        return static_cast<int64_t>(end_of(left) - 1);
    return -1;
  }

  std::vector<Part> parts_;
};

// Calls work(next) in each thread. next() returns one of the tasks 0 .. tasks - 1 (fewer than 2^32); -1 after
// the last.
template <typename Work>
void share_tasks(int64_t tasks, const Work& work) {
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  TaskQueues queues(tasks, threads);
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) work([&] { return queues.take(part); });
  });
}

}  // namespace torch_lsh
