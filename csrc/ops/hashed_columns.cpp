// count_columns_: how many rows of each label have a column or feature.
// weigh_columns: columns of hashed text -> weighted features, in rows of unit length.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

constexpr int64_t kGrainRows = 64;

// What a column of hashed text stands for.
struct FeatureTable {
  const int32_t* feature_of;  // of each column; negative: none
  const float* weights;       // of each feature
  int64_t columns, features;
};

// Writes the features of a row that are known, and their weighted values in unit length; returns their
// number. Three loops, so that each has as many look-ups under way as the core can: tables are larger than
// caches.
template <typename Index>
int64_t weigh_row(const FeatureTable& table, const Index* columns, const float* values, int64_t count,
                  Index* features, float* weighted) {
  int64_t known = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Index column = columns[i];
    TORCH_LSH_CHECK(column >= 0 && column < table.columns, "col has the column ", column, "; wanted 0 to ",
                    table.columns - 1);
    const int32_t feature = table.feature_of[column];
    features[known] = feature;
    weighted[known] = values[i];
    known += feature >= 0;
  }
  double squares = 0;
  for (int64_t i = 0; i < known; ++i) {
    TORCH_LSH_CHECK(features[i] < table.features, "feature_of has the feature ", features[i],
                    "; wanted at most ", table.features - 1);
    weighted[i] *= table.weights[features[i]];
    squares += static_cast<double>(weighted[i]) * weighted[i];
  }
  const auto length = static_cast<float>(std::max(std::sqrt(squares), 1e-12));
  for (int64_t i = 0; i < known; ++i) weighted[i] /= length;
  return known;
}

// Moves the first `counts[row]` of the entries of each row together.
template <typename T>
Tensor packed(const T* entries, const int64_t* start, const std::vector<int64_t>& counts, int64_t total,
              ScalarType dtype) {
  Tensor kept = new_tensor({total}, dtype);
  T* to = static_cast<T*>(kept.mutable_data_ptr());
  for (size_t row = 0; row < counts.size(); ++row) to = std::copy_n(entries + start[row], counts[row], to);
  return kept;
}

template <typename Index>
std::tuple<Tensor, Tensor, Tensor> weigh(const Tensor& crow, const Tensor& col, const Tensor& values,
                                         const FeatureTable& table) {
  const int64_t rows = crow.numel() - 1;
  const auto* const start = crow.const_data_ptr<int64_t>();
  const auto* const columns = col.const_data_ptr<Index>();
  const auto* const value = values.const_data_ptr<float>();
  Tensor features = new_tensor({col.numel()}, col.scalar_type());
  Tensor weighted = new_tensor({col.numel()}, ScalarType::Float);
  auto* const feature = features.mutable_data_ptr<Index>();
  auto* const weight = weighted.mutable_data_ptr<float>();
  std::vector<int64_t> counts(rows);
  parallel_for(0, rows, kGrainRows, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t at = start[row];
      counts[row] =
          weigh_row(table, columns + at, value + at, start[row + 1] - at, feature + at, weight + at);
    }
  });
  Tensor kept = new_tensor({rows + 1}, ScalarType::Long);
  auto* const to = kept.mutable_data_ptr<int64_t>();
  to[0] = 0;
  for (int64_t row = 0; row < rows; ++row) to[row + 1] = to[row] + counts[row];
  if (to[rows] == col.numel()) return {kept, features, weighted};
  return {kept, packed(feature, start, counts, to[rows], col.scalar_type()),
          packed(weight, start, counts, to[rows], ScalarType::Float)};
}

std::tuple<Tensor, Tensor, Tensor> weigh_columns(const Tensor& crow, const Tensor& col, const Tensor& values,
                                                 const Tensor& feature_of, const Tensor& weights) {
  const bool is_long = col.scalar_type() == ScalarType::Long;
  check_operand(col, "col", 1, is_long ? ScalarType::Long : ScalarType::Int);
  check_offsets(crow, "crow", col.numel());
  check_operand(values, "values", 1, ScalarType::Float);
  check_size(values, "values", 0, col.numel());
  check_operand(feature_of, "feature_of", 1, ScalarType::Int);
  check_operand(weights, "weights", 1, ScalarType::Float);
  const FeatureTable table{feature_of.const_data_ptr<int32_t>(), weights.const_data_ptr<float>(),
                           feature_of.numel(), weights.numel()};
  return is_long ? weigh<int64_t>(crow, col, values, table) : weigh<int32_t>(crow, col, values, table);
}

void count_columns(const Tensor& counts, const Tensor& crow, const Tensor& col, const Tensor& labels,
                   const std::optional<Tensor>& feature_of) {
  check_operand(counts, "counts", 2, ScalarType::Int);
  check_operand(col, "col", 1, ScalarType::Int);
  check_offsets(crow, "crow", col.numel());
  check_operand(labels, "labels", 1, ScalarType::Int);
  const int64_t rows = crow.numel() - 1, classes = counts.size(0), features = counts.size(1);
  check_size(labels, "labels", 0, rows);
  if (feature_of.has_value()) check_operand(*feature_of, "feature_of", 1, ScalarType::Int);
  const int32_t* const of = feature_of.has_value() ? feature_of->const_data_ptr<int32_t>() : nullptr;
  const int64_t columns = of == nullptr ? features : feature_of->numel();
  const auto* const start = crow.const_data_ptr<int64_t>();
  const auto* const label = labels.const_data_ptr<int32_t>();
  const auto* const column = col.const_data_ptr<int32_t>();
  for (int64_t row = 0; row < rows; ++row)
    TORCH_LSH_CHECK(label[row] >= 0 && label[row] < classes, "labels has the label ", label[row],
                    "; wanted 0 to ", classes - 1);
  for (int64_t i = 0; i < col.numel(); ++i)
    TORCH_LSH_CHECK(column[i] >= 0 && column[i] < columns, "col has the column ", column[i], "; wanted 0 to ",
                    columns - 1);
  for (int64_t i = 0; of != nullptr && i < columns; ++i)
    TORCH_LSH_CHECK(of[i] < features, "feature_of has the feature ", of[i], "; wanted at most ",
                    features - 1);
  for (int64_t row = 0; row < rows; ++row) {
    int32_t* const count = counts.mutable_data_ptr<int32_t>() + label[row] * features;
    for (int64_t i = start[row]; i < start[row + 1]; ++i) {
      const int32_t feature = of == nullptr ? column[i] : of[column[i]];
      if (feature >= 0) ++count[feature];
    }
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "count_columns_", &count_columns);
  TORCH_LSH_IMPL(m, "weigh_columns", &weigh_columns);
}

}  // namespace torch_lsh
