// Recycles the memory of temporaries. Returned to the system, the megabytes of a step would cost a page fault
// per 4 KiB at every step.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace torch_lsh {

// Thread-safe; any thread may return a block. Blocks are aligned to cache lines, large ones to huge pages,
// and rounded up in size. The pool keeps a bounded number of bytes; beyond that it frees the blocks unused
// for longest.
void* take_memory(size_t bytes);
void give_memory_back(void* memory, size_t bytes);  // bytes: as passed to take_memory

// Scratch memory, returned to the pool on destruction.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes), memory_(take_memory(bytes)) {}
  ~Workspace() { give_memory_back(memory_, bytes_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return memory_; }

 private:
  size_t bytes_;
  void* memory_;
};

// An uninitialised contiguous tensor in pool memory, which returns to the pool with the tensor's storage.
torch::stable::Tensor pooled_tensor(std::initializer_list<int64_t> sizes,
                                    torch::headeronly::ScalarType dtype);

}  // namespace torch_lsh
