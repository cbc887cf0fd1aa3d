// Scalar code, vectorisation off: runs on every CPU; tests compare the other levels with it.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-vectorize")
#endif
#define TORCH_LSH_LEVEL scalar
#define TORCH_LSH_VECTOR_BYTES 0
#define TORCH_LSH_TILE_ROWS 4
#include "kernels/levels/level.h"
