// The body of a level: every kernel family, compiled for the instruction set that the including file has
// enabled. That file defines
//   TORCH_LSH_LEVEL         the level's namespace, so that no two levels share a symbol;
//   TORCH_LSH_VECTOR_BYTES  bytes of a vector register (0: none);
//   TORCH_LSH_TILE_ROWS     rows of a product tile: 2 registers of sums per row, and at least 3 more.
//
// Each family header ends with fill(), which fills in one kernel table.
#include "kernels/dot.h"
#include "kernels/embedding_bag.h"
#include "kernels/gather.h"
#include "kernels/hadamard.h"
#include "kernels/hash.h"
#include "kernels/optimizer.h"
#include "kernels/product.h"
#include "kernels/sketch.h"
#include "kernels/softmax.h"
#include "kernels/topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

#define TORCH_LSH_STRING_(x) #x
#define TORCH_LSH_STRING(x) TORCH_LSH_STRING_(x)

template <typename... Tables>
constexpr void fill(TableSet<Tables...>& set) {
  (fill(static_cast<Tables&>(set)), ...);
}

constexpr Kernels make_kernels() {
  Kernels kernels{};
  fill(static_cast<KernelTables&>(kernels));
  kernels.name = TORCH_LSH_STRING(TORCH_LSH_LEVEL);
  return kernels;
}

// A constant: no code of this file may run before the CPU's features have been checked.
extern const Kernels table;
constinit const Kernels table = make_kernels();

}  // namespace torch_lsh::TORCH_LSH_LEVEL
