// prefer_huge_pages: advice to the kernel by madvise.
#include "ops/huge_pages.h"

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "ops/operator.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torch_lsh {

bool prefer_huge_pages(const void* memory, int64_t bytes, bool move) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kSmallest = 8 << 20, kHugePage = 2 << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE: Linux 6.1, missing from older libc headers
  if (bytes < kSmallest) return false;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  void* const start = reinterpret_cast<void*>(begin);
  if (madvise(start, end - begin, MADV_HUGEPAGE) != 0) return false;
  return !move || madvise(start, end - begin, kCollapse) == 0;
#else
  return false;
#endif
}

namespace {

bool prefer_huge_pages_of(const Tensor& tensor, bool move) {
  check_cpu(tensor, "tensor");
  check_contiguous(tensor, "tensor");
  return prefer_huge_pages(tensor.const_data_ptr(), tensor.numel() * tensor.element_size(), move);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "prefer_huge_pages", &prefer_huge_pages_of);
}

}  // namespace torch_lsh
