// The body of a level: every kernel family, compiled for the instruction set that the including file has
// enabled. That file defines
//   TORCH_LSH_LEVEL         the level's namespace, so that no two levels share a symbol;
//   TORCH_LSH_VECTOR_BYTES  bytes of a vector register (0: none);
//   TORCH_LSH_TILE_ROWS     rows of a product tile: 2 registers of sums per row, and at least 3 more;
//   TORCH_LSH_BF16_DOT      where one instruction multiplies vectors of pairs of bfloat16 numbers;
//   TORCH_LSH_VNNI          where the level has AVX512-VNNI;
//   TORCH_LSH_ARM_BF16      where the level has Arm's instructions for bfloat16 and int8 numbers.
//
// Each family header ends with fill(), which fills in one kernel table.
#include "kernels/committee.h"
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
#ifdef TORCH_LSH_VNNI
#include "kernels/vnni_topk.h"
#endif
#ifdef TORCH_LSH_ARM_BF16
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
#ifdef TORCH_LSH_VNNI
  fill_topk<VnniTopk>(static_cast<TopkKernels<int8_t>&>(kernels));
#endif
#ifdef TORCH_LSH_ARM_BF16
  fill_product<ArmTiles<BFloat16>>(kernels);
  fill_topk<ArmBFloat16Topk>(static_cast<TopkKernels<BFloat16>&>(kernels));
  fill_topk<ArmInt8Topk>(static_cast<TopkKernels<int8_t>&>(kernels));
#endif
  kernels.name = TORCH_LSH_STRING(TORCH_LSH_LEVEL);
#ifdef TORCH_LSH_BF16_DOT
  kernels.multiplies_bfloat16 = true;
#endif
  return kernels;
}

// A constant: no code of this file may run before the CPU's features have been checked.
extern const Kernels table;
constinit const Kernels table = make_kernels();

}  // namespace torch_lsh::TORCH_LSH_LEVEL
