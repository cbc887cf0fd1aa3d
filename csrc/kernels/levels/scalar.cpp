// Plain code, vectorisation off: runs everywhere and is what the other levels are compared with.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-vectorize")
#endif
#define TORCH_LSH_LEVEL scalar
#include "kernels/levels/level.h"
