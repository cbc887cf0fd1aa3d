// Structured random projections H D3 H D2 H D1 x, with H a Walsh-Hadamard matrix and D diagonal random signs:
// d log d additions instead of the d^2 products of a dense matrix (Ailon & Chazelle 2009; Andoni et al.
// 2015). Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// A tile is [coordinate][kHadamardRows]: every butterfly works on whole vectors, and a row is summed in the
// same order next to any other rows.
#pragma once

#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// tile[size][kHadamardRows] = H tile, not normalised; `size` is a power of two. Two levels per pass.
inline void walsh_hadamard(float* __restrict tile, int64_t size) {
  int64_t half = 1;
  for (; half * 4 <= size; half *= 4)
    for (int64_t begin = 0; begin < size; begin += 4 * half)
      for (int64_t i = begin; i < begin + half; ++i) {
        float* const p0 = tile + i * kHadamardRows;
        float* const p1 = p0 + half * kHadamardRows;
        float* const p2 = p1 + half * kHadamardRows;
        float* const p3 = p2 + half * kHadamardRows;
#pragma omp simd
        for (int64_t lane = 0; lane < kHadamardRows; ++lane) {
          const float sum01 = p0[lane] + p1[lane], difference01 = p0[lane] - p1[lane];
          const float sum23 = p2[lane] + p3[lane], difference23 = p2[lane] - p3[lane];
          p0[lane] = sum01 + sum23;
          p1[lane] = difference01 + difference23;
          p2[lane] = sum01 - sum23;
          p3[lane] = difference01 - difference23;
        }
      }
  if (half < size)
    for (int64_t i = 0; i < half; ++i) {
      float* const p0 = tile + i * kHadamardRows;
      float* const p1 = p0 + half * kHadamardRows;
#pragma omp simd
      for (int64_t lane = 0; lane < kHadamardRows; ++lane) {
        const float sum = p0[lane] + p1[lane], difference = p0[lane] - p1[lane];
        p0[lane] = sum;
        p1[lane] = difference;
      }
    }
}

// out[i] = factors[i] * in[i] for `count` coordinates of a tile.
inline void scale_coordinates(const float* in, const float* __restrict factors, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float factor = factors[i];
#pragma omp simd
    for (int64_t lane = 0; lane < kHadamardRows; ++lane)
      out[i * kHadamardRows + lane] = factor * in[i * kHadamardRows + lane];
  }
}

inline void hadamard_project(const float* x, int64_t height, int64_t width, const float* signs, int64_t size,
                             const float* rest, int64_t count, float* scratch, float* products) {
  float* const input = scratch;
  float* const tile = scratch + width * kHadamardRows;
  const int64_t head = width < size ? width : size;
  for (int64_t i = 0; i < width; ++i)
    for (int64_t r = 0; r < kHadamardRows; ++r)
      input[i * kHadamardRows + r] = r < height ? x[r * width + i] : 0.0f;
  // The rows of H H H have norm size^1.5, those of a Gaussian matrix size^0.5.
  const float scale = 1.0f / static_cast<float>(size);
  for (int64_t begin = 0; begin < count; begin += size, signs += 3 * size) {
    scale_coordinates(input, signs, head, tile);
    for (int64_t i = head * kHadamardRows; i < size * kHadamardRows; ++i) tile[i] = 0;
    walsh_hadamard(tile, size);
    scale_coordinates(tile, signs + size, size, tile);
    walsh_hadamard(tile, size);
    scale_coordinates(tile, signs + 2 * size, size, tile);
    walsh_hadamard(tile, size);
    const int64_t wanted = count - begin < size ? count - begin : size;
    for (int64_t c = 0; c < wanted; ++c) {
      float* const product = products + (begin + c) * kHadamardRows;
#pragma omp simd
      for (int64_t lane = 0; lane < kHadamardRows; ++lane)
        product[lane] = scale * tile[c * kHadamardRows + lane];
      for (int64_t i = head; i < width; ++i) {
        const float factor = rest[(i - head) * count + begin + c];
#pragma omp simd
        for (int64_t lane = 0; lane < kHadamardRows; ++lane)
          product[lane] += factor * input[i * kHadamardRows + lane];
      }
    }
  }
}

// Bit k of table t's code: product t * hashes + k > 0.
inline void pack_sign_tile(const float* __restrict products, int64_t num_tables, int64_t hashes,
                           int64_t height, int32_t* codes) {
  for (int64_t t = 0; t < num_tables; ++t) {
    int32_t code[kHadamardRows] = {};
    for (int64_t k = 0; k < hashes; ++k) {
      const float* const product = products + (t * hashes + k) * kHadamardRows;
#pragma omp simd
      for (int64_t lane = 0; lane < kHadamardRows; ++lane)
        code[lane] |= static_cast<int32_t>(product[lane] > 0) << k;
    }
    for (int64_t r = 0; r < height; ++r) codes[r * num_tables + t] = code[r];
  }
}

// Hash k of table t: the cross-polytope vertex closest to its `dimension` products: 2 * i, where product i is
// largest in magnitude, plus 1 if negative. Ties go to the lowest i; NaN gives 0.
inline void pack_vertex_tile(const float* __restrict products, int64_t num_tables, int64_t hashes,
                             int64_t dimension, int64_t bits, int64_t height, int32_t* codes) {
  for (int64_t t = 0; t < num_tables; ++t) {
    int32_t code[kHadamardRows] = {};
    for (int64_t k = 0; k < hashes; ++k, products += dimension * kHadamardRows) {
      float best[kHadamardRows] = {};
      int32_t vertex[kHadamardRows] = {};
      for (int64_t i = 0; i < dimension; ++i)
#pragma omp simd
        for (int64_t lane = 0; lane < kHadamardRows; ++lane) {
          const float value = products[i * kHadamardRows + lane];
          const float size = __builtin_fabsf(value);
          const int32_t candidate = static_cast<int32_t>(2 * i) + static_cast<int32_t>(value < 0);
          // A mask: compilers turned the conditional into a branch.
          const int32_t larger = -static_cast<int32_t>(size > best[lane]);
          vertex[lane] = (candidate & larger) | (vertex[lane] & ~larger);
          best[lane] = size > best[lane] ? size : best[lane];
        }
#pragma omp simd
      for (int64_t lane = 0; lane < kHadamardRows; ++lane) code[lane] |= vertex[lane] << (k * bits);
    }
    for (int64_t r = 0; r < height; ++r) codes[r * num_tables + t] = code[r];
  }
}

constexpr void fill(HadamardKernels& table) {
  table = {.project = hadamard_project, .pack_signs = pack_sign_tile, .pack_vertices = pack_vertex_tile};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
