// Tasks that threads share: parallel_for for tasks of some ten microseconds, where one thread may take longer
// than another (its core is slower, or has other work, such as that of a DataLoader).
//
// Each thread has a part of its own and takes it in order, so that it finds in its cache what it left there
// in the operator before; when that is done it takes over tasks of the other threads, last ones first. Which
// thread runs a task, and when, is open: results must depend on neither.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace torch_lsh {

class TaskQueues {
 public:
  TaskQueues(int64_t tasks, int64_t threads) : parts_(threads) {
    for (int64_t i = 0; i < threads; ++i)
      parts_[i].left = pack(tasks * i / threads, tasks * (i + 1) / threads);
  }

  // Thread-safe. The next task for the thread whose part is `own`, or -1: none is left.
  int64_t take(int64_t own) {
    int64_t task = take_first(parts_[own]);
    for (size_t i = 1; task < 0 && i < parts_.size(); ++i)
      task = take_last(parts_[(own + i) % parts_.size()]);
    return task;
  }

 private:
  // On a cache line of its own, which other threads touch only when they have nothing else to do.
  struct alignas(64) Part {
    std::atomic<uint64_t> left;  // as pack() makes it
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

// Calls work(next) in each thread; next() is one of the tasks 0 .. tasks - 1 (fewer than 2^32), or -1 when
// none is left.
template <typename Work>
void share_tasks(int64_t tasks, const Work& work) {
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  TaskQueues queues(tasks, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) work([&] { return queues.take(part); });
  });
}

}  // namespace torch_lsh
