// The body of a level that adds products by AMX tiles to the kernels of another. The including file defines
// what level.h wants, and TORCH_LSH_AMX_REGISTERS, the class of operations on registers.
#include "kernels/amx_tiles.h"
#include "kernels/tile_product.h"
#include "kernels/tile_topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <typename T>
using Tiles = AmxTiles<T, TORCH_LSH_AMX_REGISTERS>;

// Tables that replace those of the other level.
extern const TileTables tables;
constinit const TileTables tables = [] {
  TileTables set{};
  fill_product<Tiles<BFloat16>>(set);
  fill_topk<BFloat16TileTopk<Tiles<BFloat16>, FewTopk<BFloat16, 2>>>(
      static_cast<TopkKernels<BFloat16>&>(set));
  fill_topk<Int8TileTopk<Tiles<int8_t>, FewTopk<int8_t, 2>>>(static_cast<TopkKernels<int8_t>&>(set));
  return set;
}();

}  // namespace torch_lsh::TORCH_LSH_LEVEL
