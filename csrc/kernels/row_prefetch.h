// Prefetches of rows while a product computes. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

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
    const int64_t lines = ahead.count * ((bytes_ + 63) / 64);
    share_ = blocks > 0 ? (lines + blocks - 1) / blocks : 0;
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
