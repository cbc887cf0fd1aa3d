// The schema of every operator. Implementations: ops/*.cpp. Documentation, fake kernels, autograd and
// autocast: torch_lsh/ops/*.py. Twins in plain PyTorch: tests/twins/*.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(torch_lsh, m) {
  // dispatch
  m.def("simd_level() -> str");
  m.def("cpu_tuning() -> str");
  m.def("multiplies_bfloat16() -> bool");
  m.def("use_simd_level(str level) -> ()");

  // rows
  m.def("gather_rows(Tensor table, Tensor rows, ScalarType? dtype=None) -> Tensor");
  m.def("sampled_dot(Tensor x, Tensor table, Tensor rows) -> Tensor");

  m.def("zero_rows_(Tensor(a!) table) -> ()");
  m.def("prefer_huge_pages(Tensor tensor, bool move=False) -> bool");

  m.def("product(Tensor a, Tensor b, Tensor? bias=None) -> Tensor");

  m.def("count_touches_(Tensor(a!) touches, Tensor rows) -> ()");
  m.def("coalesce_rows(Tensor rows, Tensor values) -> (Tensor, Tensor)");
  m.def("is_increasing(Tensor rows, int? below=None) -> bool");
  m.def("extremes(Tensor numbers) -> (int least, int largest)");
  m.def("take_runs(Tensor start, Tensor values, Tensor runs) -> (Tensor start, Tensor values)");

  // embedding bag
  m.def("embedding_bag(Tensor weight, Tensor crow, Tensor col, Tensor? values=None) -> Tensor");
  m.def("embedding_bag_backward(Tensor grad, Tensor crow, Tensor col, Tensor? values) -> (Tensor, Tensor)");
  m.def("embedding_bag_values_backward(Tensor grad, Tensor weight, Tensor crow, Tensor col) -> Tensor");

  // row-sparse optimizers
  m.def(
      "row_sparse_adam_(Tensor(a!) parameter, Tensor(b!) first, Tensor(c!) second, Tensor rows, Tensor "
      "gradient, Tensor? decays, float lr, float beta1, float beta2, float eps, float weight_decay, float "
      "bias_correction1, float bias_correction2, bool decoupled, bool maximize, Tensor? factor=None, int "
      "seed=-1) -> ()");
  m.def(
      "row_sparse_sgd_(Tensor(a!) parameter, Tensor(b!)? momentum_buffer, Tensor rows, Tensor gradient, "
      "float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, Tensor? "
      "factor=None, int seed=-1) -> ()");
  m.def(
      "row_sparse_adagrad_(Tensor(a!) parameter, Tensor(b!) squares, Tensor rows, Tensor gradient, float lr, "
      "float eps, float weight_decay, bool maximize, Tensor? factor=None, int seed=-1) -> ()");
  m.def(
      "row_sparse_lion_(Tensor(a!) parameter, Tensor(b!) average, Tensor rows, Tensor gradient, float lr, "
      "float beta1, float beta2, float weight_decay, bool maximize, Tensor? factor=None, int seed=-1) -> ()");

  m.def(
      "linear_adam_(Tensor rows, Tensor gradient, Tensor bias_gradient, Tensor(a!) weight, Tensor(b!) first, "
      "Tensor(c!) second, Tensor(d!) step, Tensor(e!) bias, Tensor(f!) bias_first, Tensor(g!) bias_second, "
      "Tensor(h!) bias_step, Tensor(i!)? touches, float lr, float beta1, float beta2, float eps, float "
      "weight_decay, bool decoupled, bool maximize, bool stochastic_rounding) -> ()");

  // active sets
  m.def(
      "select_rows(Tensor labels, Tensor candidates, int num_rows, int active, int num_random, int seed, "
      "bool per_sample, Tensor? carried=None) -> (Tensor rows, Tensor is_random, Tensor positions, Tensor "
      "log_weights)");

  m.def(
      "draw_rows(Tensor labels, Tensor? order, Tensor cumulative, int active, int seed, bool per_sample) -> "
      "(Tensor rows, Tensor is_random, Tensor positions, Tensor inclusion)");

  m.def(
      "draw_hashed_rows(Tensor x, Tensor labels, Tensor? carried, Tensor ids, Tensor counts, Tensor? "
      "row_codes, Tensor projections, int hashes_per_table, int zeros, int min_matches, bool vanilla, int "
      "first, int every, int max_candidates, int num_rows, int active, int num_random, int seed, bool "
      "per_sample) -> (Tensor rows, Tensor is_random, Tensor positions, Tensor log_weights)");

  m.def("largest_rows(Tensor values, Tensor rows, int count, Tensor? log_weights=None) -> Tensor");

  // hashing
  m.def("query_vectors(Tensor x, int zeros) -> Tensor");
  m.def("simhash_codes(Tensor x, Tensor projections, int hashes_per_table) -> Tensor");
  m.def("dwta_codes(Tensor x, Tensor bins, int hashes_per_table, int seed) -> Tensor");

  m.def("simhash_products(Tensor x, Tensor projections) -> Tensor");
  m.def("hadamard_products(Tensor x, Tensor signs, Tensor rest) -> Tensor");
  m.def("hadamard_codes(Tensor x, Tensor signs, Tensor rest, int hashes_per_table) -> Tensor");
  m.def(
      "cross_polytope_codes(Tensor x, Tensor signs, Tensor rest, int dimension, int hashes_per_table) -> "
      "Tensor");
  m.def("probe_codes(Tensor codes, Tensor flips, Tensor costs, int probes) -> Tensor");

  // hash tables
  m.def(
      "build_tables(Tensor row_buckets, int bucket_bits, int bucket_size, int seed, bool fifo=False) -> "
      "(Tensor "
      "ids, Tensor counts)");
  m.def(
      "update_tables(Tensor(a!) ids, Tensor(b!) counts, Tensor(c!) row_buckets, Tensor rows, Tensor buckets, "
      "int seed, bool fifo=False) -> Tensor");
  m.def(
      "insert_labels(Tensor(a!) ids, Tensor(b!) counts, Tensor buckets, Tensor labels, int num_rows, int "
      "seed, "
      "bool fifo=False) -> Tensor");
  m.def(
      "query_tables(Tensor ids, Tensor counts, Tensor? row_codes, Tensor buckets, int max_candidates, "
      "int min_matches=1, bool vanilla=False, Tensor? query_codes=None) -> Tensor");

  // loss
  m.def(
      "sampled_softmax_loss(Tensor logits, Tensor? log_weights, Tensor positions, Tensor shares) -> (Tensor, "
      "Tensor)");
  m.def(
      "sampled_softmax_loss_backward(Tensor grad, Tensor log_z, Tensor logits, Tensor? log_weights, "
      "Tensor positions, Tensor shares) -> Tensor");
  m.def("positive_sums(Tensor gradient) -> Tensor");
  m.def(
      "linear_softmax_loss(Tensor x, Tensor weight, Tensor? bias, Tensor rows, Tensor? log_weights, "
      "Tensor positions, Tensor shares, float? divisor=None) -> (Tensor loss, Tensor slopes, Tensor scale)");
  m.def(
      "linear_softmax_sums(Tensor x, Tensor weight, Tensor? bias, Tensor rows, Tensor? log_weights, "
      "Tensor positions) -> (Tensor log_z, Tensor at_labels, Tensor slopes, Tensor scale)");
  m.def(
      "linear_softmax_loss_backward(Tensor slopes, Tensor factors, Tensor x, Tensor weight, Tensor rows, "
      "bool needs_weight=True, Tensor? grad=None, int hardest=0, Tensor? log_weights=None) -> ("
      "Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor hardest_rows, Tensor scaled)");
  m.def(
      "linear_softmax_adam_(Tensor slopes, Tensor factors, Tensor x, Tensor rows, Tensor? grad, int hardest, "
      "Tensor? log_weights, Tensor(a!) weight, Tensor(b!) first, Tensor(c!) second, Tensor(d!) step, "
      "Tensor(e!)? bias, Tensor(f!)? bias_first, Tensor(g!)? bias_second, Tensor(h!)? bias_step, "
      "Tensor(i!)? touches, float lr, float beta1, float beta2, float eps, float weight_decay, bool "
      "decoupled, "
      "bool maximize, bool stochastic_rounding) -> (Tensor grad_x, Tensor hardest_rows)");

  // inference
  m.def(
      "linear_topk(Tensor x, Tensor weight, Tensor? bias, int k, Tensor? scale=None) -> (Tensor values, "
      "Tensor "
      "indices)");
  m.def(
      "rows_topk(Tensor x, Tensor weight, Tensor? bias, Tensor rows, int k, Tensor? scale=None) -> (Tensor "
      "values, Tensor indices)");

  m.def(
      "nearest_rows(Tensor crow, Tensor col, Tensor values, Tensor row_start, Tensor row_columns, "
      "Tensor row_values, Tensor column_start, Tensor column_rows, Tensor column_values, int k, int "
      "candidates, "
      "int max_postings) -> (Tensor values, Tensor indices)");
  // sparse rows per label
  m.def(
      "sum_rows(Tensor row_start, Tensor row_columns, Tensor row_values, int num_columns, Tensor "
      "label_start, "
      "Tensor label_rows, float threshold, bool unit=True) -> (Tensor start, Tensor columns, Tensor values)");
  m.def(
      "transpose_rows(Tensor row_start, Tensor row_columns, Tensor row_values, int num_columns) -> (Tensor "
      "column_start, Tensor column_rows, Tensor column_values)");
  m.def(
      "fit_linear_rows(Tensor row_start, Tensor row_columns, Tensor row_values, int num_columns, "
      "Tensor label_start, Tensor label_rows, Tensor positive, Tensor costs, int passes, float threshold, "
      "int seed, float tolerance=0.0) -> (Tensor start, Tensor columns, Tensor weights, Tensor bias)");
  m.def(
      "fit_dense_rows(Tensor rows, Tensor label_start, Tensor label_rows, Tensor positive, float cost, "
      "int passes, int seed) -> (Tensor weights, Tensor bias)");
  m.def(
      "label_votes(Tensor rows, Tensor weights, Tensor label_start, Tensor labels, int num_labels, int keep, "
      "Tensor also) -> (Tensor labels, Tensor votes)");
  m.def(
      "fit_committee(Tensor values, Tensor none, Tensor right, Tensor order, int batch, Tensor weight, "
      "Tensor bias, Tensor output, float rate, float decay) -> (Tensor weight, Tensor bias, Tensor output, "
      "Tensor mean, Tensor deviation)");
  m.def(
      "committee_scores(Tensor values, Tensor none, Tensor mean, Tensor deviation, Tensor weight, "
      "Tensor bias, Tensor output) -> Tensor");
  m.def(
      "sparse_dot(Tensor crow, Tensor col, Tensor values, Tensor row_start, Tensor row_columns, "
      "Tensor row_values, int num_columns, Tensor rows) -> Tensor");
  m.def("sketch_candidates(Tensor x, Tensor codes, Tensor factors, int num_rows, int count) -> Tensor");

  // partition
  m.def("nearest_members(Tensor x, Tensor groups, Tensor first, Tensor centers, Tensor offsets) -> Tensor");
  m.def(
      "residual_codes(Tensor x, Tensor centers, Tensor buckets, int bits) -> (Tensor codes, Tensor factors)");
  m.def(
      "update_partition(Tensor(a!) codes, Tensor(b!) factors, Tensor(c!) ids, Tensor(d!) next, Tensor(e!) "
      "heads, Tensor(f!) places, Tensor(g!) row_buckets, Tensor rows, Tensor buckets, Tensor row_codes, "
      "Tensor row_factors) -> Tensor");
  m.def(
      "query_partition(Tensor x, Tensor scores, Tensor centers, Tensor codes, Tensor factors, Tensor ids, "
      "Tensor next, Tensor heads, int max_candidates, int examined) -> Tensor");
  m.def(
      "search_partition(Tensor x, Tensor query_map, Tensor bucket_codes, Tensor bucket_factors, Tensor "
      "centers, "
      "Tensor codes, Tensor factors, Tensor ids, Tensor next, Tensor heads, int max_candidates, int "
      "examined) "
      "-> Tensor");

  // data
  m.def(
      "parse_xmc(Tensor text, int num_features, int num_labels) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "str)");
  m.def(
      "hash_text(Tensor text, Tensor offsets, int bits, int word_ngrams, int char_min, int char_max, "
      "bool is_signed, str tf, bool normalized, int seed, bool split_characters, bool symbols) -> "
      "(Tensor crow, Tensor col, Tensor values)");
  m.def("word_spans(Tensor text, bool split_characters) -> Tensor");
  m.def(
      "score_text(Tensor text, Tensor offsets, int bits, int word_ngrams, int char_min, int char_max, "
      "bool is_signed, str tf, int seed, bool split_characters, bool symbols, Tensor table, Tensor bias) -> "
      "Tensor");
  m.def(
      "count_columns_(Tensor(a!) counts, Tensor crow, Tensor col, Tensor labels, Tensor? feature_of=None) -> "
      "()");
  m.def(
      "weigh_columns(Tensor crow, Tensor col, Tensor values, Tensor feature_of, Tensor weights) -> (Tensor, "
      "Tensor, Tensor)");
}
