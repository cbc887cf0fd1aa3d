// Huge pages for memory of which rows are visited at random: with pages of 4 KiB nearly every row costs a
// miss in the TLB beside those in the caches.
#pragma once

#include <cstdint>

namespace torch_lsh {

// Asks the kernel to back this memory with huge pages, moving what is there already if `move` (some
// seconds per GB); a hint, which other systems than Linux ignore. Returns whether it was taken. Nothing is
// asked for less memory than some huge pages.
bool prefer_huge_pages(const void* memory, int64_t bytes, bool move);

}  // namespace torch_lsh
