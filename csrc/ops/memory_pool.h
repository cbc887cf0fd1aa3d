// Memory that goes from one step to the next. Given back to the system, the megabytes of a step's temporaries
// would cost a page fault for every 4 KiB of them, at every step.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace torch_lsh {

// Thread-safe: a block may be given back by another thread than the one that took it. Blocks are aligned to
// cache lines, large ones to huge pages, and of some more bytes than asked for. What is kept for later is
// bounded; beyond that the blocks that waited longest go back to the system.
void* take_memory(size_t bytes);
void give_memory_back(void* memory, size_t bytes);  // with the number of bytes that were asked for

// Scratch memory for as long as it lives.
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

// A contiguous tensor, not initialised, whose memory comes from the pool and returns to it.
torch::stable::Tensor pooled_tensor(std::initializer_list<int64_t> sizes,
                                    torch::headeronly::ScalarType dtype);

}  // namespace torch_lsh
