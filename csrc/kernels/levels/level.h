// The body of a level: every kernel family, compiled with the instruction set that the including file has
// switched on. That file defines TORCH_LSH_LEVEL, a namespace of its own, so that no two levels share a
// symbol; TORCH_LSH_VECTOR_BYTES, the size of a vector register (0: none); and TORCH_LSH_TILE_ROWS, so that
// twice as many registers hold sums and three are left.
#include "kernels/dot.h"
#include "kernels/embedding_bag.h"
#include "kernels/gather.h"
#include "kernels/hadamard.h"
#include "kernels/hash.h"
#include "kernels/optimizer.h"
#include "kernels/product.h"
#include "kernels/sketch.h"
#include "kernels/softmax.h"
#include "kernels/topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

#define TORCH_LSH_STRING_(x) #x
#define TORCH_LSH_STRING(x) TORCH_LSH_STRING_(x)

extern const Kernels table;
const Kernels table = {
    .name = TORCH_LSH_STRING(TORCH_LSH_LEVEL),
    .gather_f32_f32 = gather<float, float>,
    .gather_f64_f64 = gather<double, double>,
    .gather_bf16_bf16 = gather<BFloat16, BFloat16>,
    .gather_f32_bf16 = gather<float, BFloat16>,
    .gather_bf16_f32 = gather<BFloat16, float>,
    .dot_rows_f32 = dot_rows<float, float>,
    .dot_rows_f64 = dot_rows<double, double>,
    .dot_rows_bf16 = dot_rows<BFloat16, float>,
    .weighted_sums_f32 = weighted_sums<float, float>,
    .weighted_sums_f64 = weighted_sums<double, double>,
    .weighted_sums_bf16 = weighted_sums<BFloat16, float>,
    .adam_rows_f32 = adam_rows<float, float, float>,
    .sgd_rows_f32 = sgd_rows<float, float, float>,
    .adagrad_rows_f32 = adagrad_rows<float, float, float>,
    .adam_rows_f64 = adam_rows<double, double, double>,
    .sgd_rows_f64 = sgd_rows<double, double, double>,
    .adagrad_rows_f64 = adagrad_rows<double, double, double>,
    .adam_rows_f32_bf16 = adam_rows<float, BFloat16, float>,
    .sgd_rows_f32_bf16 = sgd_rows<float, BFloat16, float>,
    .adagrad_rows_f32_bf16 = adagrad_rows<float, BFloat16, float>,
    .adam_rows_bf16 = adam_rows<BFloat16, float, float>,
    .sgd_rows_bf16 = sgd_rows<BFloat16, float, float>,
    .adagrad_rows_bf16 = adagrad_rows<BFloat16, float, float>,
    .adam_rows_bf16_bf16 = adam_rows<BFloat16, BFloat16, float>,
    .sgd_rows_bf16_bf16 = sgd_rows<BFloat16, BFloat16, float>,
    .adagrad_rows_bf16_bf16 = adagrad_rows<BFloat16, BFloat16, float>,
    .product_f32 = product<float>,
    .product_f64 = product<double>,
    .product_bf16 = product<BFloat16>,
    .pack_panel_f32 = pack_panel<float>,
    .pack_panel_f64 = pack_panel<double>,
    .pack_panel_bf16 = pack_panel<BFloat16>,
    .panel_width_f32 = kPanelWidth<float>,
    .panel_width_f64 = kPanelWidth<double>,

    .simhash_f32 = simhash<float>,
    .simhash_f64 = simhash<double>,
    .simhash_bf16 = simhash<BFloat16>,
    .simhash_sparse = simhash_sparse,
    .project = project,
    .hamming = hamming,
    .hadamard_project = hadamard_project,
    .pack_sign_tile = pack_sign_tile,
    .pack_vertex_tile = pack_vertex_tile,
    .log_sum_exp_f32 = log_sum_exp<float>,
    .log_sum_exp_f64 = log_sum_exp<double>,
    .scaled_softmax_f32 = scaled_softmax<float>,
    .scaled_softmax_f64 = scaled_softmax<double>,
    .column_maxima_f32 = column_maxima<float>,
    .column_maxima_f64 = column_maxima<double>,
    .column_exponentials_f32 = column_exponentials<float>,
    .column_exponentials_f64 = column_exponentials<double>,
    .column_sums_f32 = column_sums<float>,
    .column_sums_f64 = column_sums<double>,
    .column_softmax_f32 = column_softmax<float>,
    .column_softmax_f64 = column_softmax<double>,
    .weighted_row_sums_f32 = weighted_row_sums<float>,
    .weighted_row_sums_f64 = weighted_row_sums<double>,
    .weighted_row_bf16 = weighted_row,
    .positive_sum_f32 = positive_sum<float>,
    .positive_sum_f64 = positive_sum<double>,
    .add_positive_f32 = add_positive<float>,
    .add_positive_f64 = add_positive<double>,

    .topk_f32 = topk_kernels<float, float, float>(),
    .topk_f64 = topk_kernels<double, double, double>(),
    .topk_bf16 = topk_kernels<BFloat16, BFloat16, float>(),
    .topk_i8 = topk_kernels<int8_t, float, float>(),
    .sketch_scores = sketch_scores,
};

}  // namespace torch_lsh::TORCH_LSH_LEVEL
