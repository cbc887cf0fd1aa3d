// The shape of Arm's tiles (arm_tiles.h). Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/tiles.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Tiles of a block, one above the other. Its sums take 24 of the 32 registers. A panel of int8 numbers is a
// multiple of 3 wide, which is how many of them the top-k makes of a sample's number.
template <typename T>
constexpr int64_t kArmDown = __is_same(T, int8_t) ? 4 : 6;

template <typename T>
using ArmShape =
    TileShape<2, 8 / sizeof(T), kVectorBytes / 8, 8 / sizeof(T), kArmDown<T>, 24 / kArmDown<T>, false>;

}  // namespace torch_lsh::TORCH_LSH_LEVEL
