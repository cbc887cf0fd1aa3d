// Huge pages for memory read at random rows: with 4 KiB pages nearly every row adds a TLB miss to its cache
// misses.
#pragma once

#include <cstdint>

namespace torch_lsh {

// Advises the kernel to back this memory with huge pages; with `move`, also migrates existing pages (seconds
// per GB). Returns whether the advice was taken: false on systems other than Linux and for less than 8 MiB.
bool prefer_huge_pages(const void* memory, int64_t bytes, bool move);

}  // namespace torch_lsh
