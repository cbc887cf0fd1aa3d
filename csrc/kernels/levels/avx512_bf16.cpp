// avx512 plus products of bfloat16 and int8 numbers (AVX512-BF16 and AVX512-VNNI: Intel Cooper Lake, Sapphire
// Rapids; AMD Zen 4 and later).
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                                       \
    __attribute__((target(                                                                                          \
        "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx512vnni,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx512vnni,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,prefer-vector-width=512")
#endif
#define TORCH_LSH_LEVEL avx512_bf16
#define TORCH_LSH_BF16_DOT
#define TORCH_LSH_VNNI
#define TORCH_LSH_VECTOR_BYTES 64
#define TORCH_LSH_TILE_ROWS 12
#include "kernels/levels/level.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
