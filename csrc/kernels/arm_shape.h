// The shape of Arm's tiles (arm_tiles.h). Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/tiles.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// A block of 6 x 4 tiles: its sums take 24 of the 32 registers.
template <typename T>
using ArmShape = TileShape<2, 8 / sizeof(T), kVectorBytes / 8, 8 / sizeof(T), 6, 4, false>;

}  // namespace torch_lsh::TORCH_LSH_LEVEL
