// Prefetches of rows while a product computes. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

constexpr int64_t blocks_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Fetches the line 8 KiB behind `read`, which is part of a table that is read from end to end, into the
// second-level cache. The hardware's own prefetches stop at the end of a page. 4 to 16 KiB are as good.
inline void prefetch_scan(const void* read) {
  __builtin_prefetch(static_cast<const char*>(read) + (8 << 10), 0, 2);
}

// A core waits where more lines are on their way than it has room for, so they are spread over the blocks of
// a product: a block's share is less.
class RowPrefetch {
 public:
  // blocks: calls of take_share() to come, or fewer.
  RowPrefetch(const RowsAhead& ahead, int64_t blocks)
      : table_(static_cast<const char*>(ahead.table)),
        row_(ahead.rows),
        end_(ahead.rows + ahead.count),
        bytes_(ahead.row_bytes) {
    share_ = blocks > 0 ? blocks_of(ahead.count * blocks_of(bytes_, 64), blocks) : 0;
  }

  void take_share() {
    for (int64_t line = 0; line < share_ && row_ != end_; ++line) {
      __builtin_prefetch(table_ + *row_ * bytes_ + offset_, 0, 2);
      offset_ += 64;
      if (offset_ >= bytes_) offset_ = 0, ++row_;
    }
  }

 private:
  const char* table_;
  const int64_t *row_, *end_;
  int64_t bytes_, share_, offset_ = 0;
};

}  // namespace torch_lsh::TORCH_LSH_LEVEL
