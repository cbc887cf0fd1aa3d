// The pool: a list of free blocks under a mutex.
#include "ops/memory_pool.h"

#include <torch/csrc/stable/ops.h>
#ifndef _WIN32
#include <pthread.h>
#endif

#include <algorithm>
#include <list>
#include <mutex>
#include <new>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/huge_pages.h"

namespace torch_lsh {
namespace {

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;
constexpr size_t kLargest = size_t{1} << 50;  // more than any system has
constexpr size_t kAlwaysKept = size_t{128} << 20;
constexpr int64_t kSmallestPooled = int64_t{256} << 10;  // bytes; malloc recycles smaller blocks itself

int64_t size_of(ScalarType dtype) {
  TORCH_LSH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
                  "dtype is ", torch::headeronly::toString(dtype), "; wanted Float, Double or BFloat16");
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

// Rounds up to an eighth of the power of two below, so that similar numbers of rows share a size.
size_t size_class(size_t bytes) {
  if (bytes > kLargest) throw std::bad_alloc();
  size_t step = kLine;
  while (16 * step <= bytes) step *= 2;
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

std::align_val_t alignment_of(size_t size) {
  return std::align_val_t{size >= 4 * kHugePage ? kHugePage : kLine};
}

class Pool {
 public:
  void* take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // Most recent first: likeliest to be in the cache.
      const auto found =
          std::find_if(free_.rbegin(), free_.rend(), [&](const Block& block) { return block.size == size; });
      if (found != free_.rend()) {
        void* const memory = found->memory;
        kept_ -= size;
        free_.erase(std::next(found).base());
        note_use(size);
        return memory;
      }
    }
    // Sanitizers end the process where the operator that throws finds no memory.
    void* const memory = ::operator new(size, alignment_of(size), std::nothrow);
    if (memory == nullptr) throw std::bad_alloc();
    prefer_huge_pages(memory, static_cast<int64_t>(size), false);
    const std::lock_guard<std::mutex> lock(mutex_);
    note_use(size);  // only now: there may not be so much memory
    return memory;
  }

  void give_back(void* memory, size_t size) {
    std::vector<Block> excess;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back({memory, size});
      kept_ += size;
      in_use_ -= size;
      peak_ = std::max(in_use_, peak_ - std::min(peak_, size / kForgetting));
      while (kept_ > most_kept()) {
        excess.push_back(free_.front());
        kept_ -= free_.front().size;
        free_.pop_front();
      }
    }
    for (const Block& block : excess) ::operator delete(block.memory, alignment_of(block.size));
  }

  // Of a process that forks: the new process has none of the threads that would unlock it.
  void lock() { mutex_.lock(); }

  void unlock() { mutex_.unlock(); }

 private:
  struct Block {
    void* memory;
    size_t size;
  };
  static constexpr size_t kForgetting = 16;  // bytes given back for each byte by which a peak is forgotten

  void note_use(size_t size) {
    in_use_ += size;
    peak_ = std::max(peak_, in_use_);
  }

  // As much as was in use at once in the last steps, with some room, so that a large step finds its memory
  // again.
  size_t most_kept() const {
    const size_t with_room = peak_ + peak_ / 4;
    return std::max(kAlwaysKept, with_room > in_use_ ? with_room - in_use_ : 0);
  }

  std::mutex mutex_;
  std::list<Block> free_;                    // oldest first
  size_t kept_ = 0, in_use_ = 0, peak_ = 0;  // bytes
};

Pool& pool() {
  static Pool* const instance = [] {
    Pool* const made = new Pool;  // never destroyed: tensors may outlive static objects
#ifndef _WIN32
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
#endif
    return made;
  }();
  return *instance;
}

}  // namespace

void* take_memory(size_t bytes) {
  return pool().take(size_class(bytes));
}

void give_memory_back(void* memory, size_t bytes) {
  pool().give_back(memory, size_class(bytes));
}

torch::stable::Tensor pooled_tensor(std::initializer_list<int64_t> sizes,
                                    torch::headeronly::ScalarType dtype) {
  const int64_t bytes = size_of(dtype) * checked_product(sizes);
  if (bytes < kSmallestPooled) return new_tensor(sizes, dtype);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes.begin()[d];
  const auto size = static_cast<size_t>(bytes);
  return torch::stable::from_blob(take_memory(size), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
                                  [size](void* memory) { give_memory_back(memory, size); });
}

}  // namespace torch_lsh
