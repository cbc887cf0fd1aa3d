// x86-64-v3: AVX2, FMA and F16C (Intel Haswell, AMD Zen and later).
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
#endif
#define TORCH_LSH_LEVEL avx2
#define TORCH_LSH_VECTOR_BYTES 32
#define TORCH_LSH_TILE_ROWS 6
#include "kernels/levels/level.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
