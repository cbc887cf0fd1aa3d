// What suits the caches of this CPU. None of it changes results.
#pragma once

#include <cstdint>

namespace torch_lsh {

struct Tuning {
  // Scattered rows are prefetched into L2, else into L1 and not into L2. An Intel core waits for 16 lines on
  // their way to L1, but for 48 on their way to L2. Zen 4 reads such rows in 0.7 of the time through L2; Zen
  // 5 waits for as many lines in either case, and L1 saves a copy.
  bool prefetches_to_l2 = false;
  int64_t l1_bytes = 32 << 10;
};

// Set before the first kernel runs, and never again.
extern Tuning tuning;

}  // namespace torch_lsh
