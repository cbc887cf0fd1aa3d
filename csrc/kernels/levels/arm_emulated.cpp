// Products of tiles of Arm's shape, in plain code. For tests: runs everywhere, slowly.
#define TORCH_LSH_LEVEL arm_emulated
#define TORCH_LSH_VECTOR_BYTES 0
#define TORCH_LSH_TILE_ROWS 4
#include "kernels/arm_shape.h"
#include "kernels/tile_product.h"
#include "kernels/tile_topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <typename T>
using Tiles = PortableTiles<T, ArmShape<T>>;

extern const TileTables tables;
constinit const TileTables tables = [] {
  TileTables set{};
  fill_product<Tiles<BFloat16>>(set);
  fill_topk<BFloat16TileTopk<Tiles<BFloat16>>>(static_cast<TopkKernels<BFloat16>&>(set));
  fill_topk<Int8TileTopk<Tiles<int8_t>>>(static_cast<TopkKernels<int8_t>&>(set));
  return set;
}();

}  // namespace torch_lsh::TORCH_LSH_LEVEL
