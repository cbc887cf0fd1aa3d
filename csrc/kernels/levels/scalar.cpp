// Plain code, vectorisation off: runs everywhere and is what the other levels are compared with.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-vectorize")
#endif
#define TORCH_LSH_LEVEL scalar
#define TORCH_LSH_VECTOR_BYTES 0
#define TORCH_LSH_TILE_ROWS 4
#include "kernels/levels/level.h"
