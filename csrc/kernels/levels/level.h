// The body of a level: every kernel family, compiled with the instruction set that the including file has
// switched on. That file defines
//   TORCH_LSH_LEVEL         a namespace of its own, so that no two levels share a symbol,
//   TORCH_LSH_VECTOR_BYTES  the size of a vector register (0: none),
//   TORCH_LSH_TILE_ROWS     rows of a tile: twice as many registers hold sums, and three are left.
//
// Each family header ends with fill(), which sets the kernels of one table.
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
#ifdef TORCH_LSH_ARM_TILES
#include "kernels/arm_topk.h"
#include "kernels/tile_product.h"
#endif

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
#ifdef TORCH_LSH_ARM_TILES
  fill_product<ArmTiles<BFloat16>>(kernels);
  fill_topk<ArmTopk<BFloat16>>(static_cast<TopkKernels<BFloat16>&>(kernels));
  fill_topk<ArmTopk<int8_t>>(static_cast<TopkKernels<int8_t>&>(kernels));
#endif
  kernels.name = TORCH_LSH_STRING(TORCH_LSH_LEVEL);
#ifdef TORCH_LSH_BF16_DOT
  kernels.multiplies_bfloat16 = true;
#endif
  return kernels;
}

// A constant: nothing of this file may run before the CPU has been asked what it supports.
extern const Kernels table;
constinit const Kernels table = make_kernels();

}  // namespace torch_lsh::TORCH_LSH_LEVEL
