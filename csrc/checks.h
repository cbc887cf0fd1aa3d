// Argument checks. Messages read "name is VALUE; wanted ...". Operators check everything before they write.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace torch_lsh {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError in Python. TORCH_CHECK would add a source line that means nothing to users.
template <typename... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "torch_lsh: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

#define TORCH_LSH_CHECK(condition, ...)               \
  do {                                                \
    if (!(condition)) ::torch_lsh::fail(__VA_ARGS__); \
  } while (0)

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_cpu(const Tensor& tensor, const char* name) {
  TORCH_LSH_CHECK(tensor.device().type() == torch::headeronly::DeviceType::CPU, name,
                  " is not on the CPU; wanted a CPU tensor, move it with .cpu()");
}

inline void check_dim(const Tensor& tensor, const char* name, int64_t dim) {
  TORCH_LSH_CHECK(tensor.dim() == dim, name, " has shape ", shape_of(tensor), "; wanted ", dim,
                  " dimension(s)");
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType wanted) {
  TORCH_LSH_CHECK(tensor.scalar_type() == wanted, name, " has dtype ",
                  torch::headeronly::toString(tensor.scalar_type()), "; wanted ",
                  torch::headeronly::toString(wanted));
}

inline void check_floating(const Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_LSH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
                  name, " has dtype ", torch::headeronly::toString(dtype),
                  "; wanted Float, Double or BFloat16");
}

inline void check_size(const Tensor& tensor, const char* name, int64_t dim, int64_t wanted) {
  TORCH_LSH_CHECK(tensor.size(dim) == wanted, name, " has shape ", shape_of(tensor), "; wanted ", wanted,
                  " in dimension ", dim);
}

// Of a number of rows, candidates or results. Rows are numbered by int32.
inline void check_count(int64_t count, const char* name, int64_t least = 1) {
  TORCH_LSH_CHECK(count >= least && count <= INT32_MAX, name, " is ", count, "; wanted ", least, " to ",
                  INT32_MAX);
}

inline void check_contiguous(const Tensor& tensor, const char* name) {
  TORCH_LSH_CHECK(tensor.is_contiguous(), name, " is not contiguous; call .contiguous() first");
}

// The checks of most operands.
inline void check_operand(const Tensor& tensor, const char* name, int64_t dim, ScalarType wanted) {
  check_cpu(tensor, name);
  check_dim(tensor, name, dim);
  check_dtype(tensor, name, wanted);
  check_contiguous(tensor, name);
}

// Returns an upper bound of the rows with as many bits as the largest.
inline uint64_t check_rows_in_range(const int64_t* rows, int64_t count, int64_t num_rows, const char* name) {
  uint64_t bits = 0, signs = 0;  // no early exit, so the loop vectorises
  for (int64_t i = 0; i < count; ++i) {
    bits |= static_cast<uint64_t>(rows[i]);
    signs |= static_cast<uint64_t>(num_rows - 1) - static_cast<uint64_t>(rows[i]);
  }
  if ((bits | signs) >> 63 == 0) return bits;
  for (int64_t i = 0; i < count; ++i)
    TORCH_LSH_CHECK(rows[i] >= 0 && rows[i] < num_rows, name, "[", i, "] is ", rows[i], "; wanted 0 to ",
                    num_rows - 1);
  return bits;
}

// Accepts negative numbers, which mean "no row".
inline void check_rows_below(const int64_t* rows, int64_t count, int64_t num_rows, const char* name) {
  uint64_t signs = 0;
  for (int64_t i = 0; i < count; ++i)
    signs |= static_cast<uint64_t>(num_rows - 1) - static_cast<uint64_t>(rows[i]);
  if (signs >> 63 == 0) return;
  for (int64_t i = 0; i < count; ++i)
    TORCH_LSH_CHECK(rows[i] < num_rows, name, " ", rows[i], "; wanted 0 to ", num_rows - 1);
}

// start: of `runs` runs of entries, and their end.
inline void check_offsets(const int64_t* start, int64_t runs, int64_t entries, const char* name) {
  TORCH_LSH_CHECK(start[0] == 0 && start[runs] == entries, name, " runs from ", start[0], " to ", start[runs],
                  "; wanted 0 to ", entries);
  for (int64_t i = 0; i < runs; ++i)
    TORCH_LSH_CHECK(start[i] <= start[i + 1], name, " decreases at ", i + 1, "; wanted increasing offsets");
}

// The same for a tensor; returns the number of runs, which the message calls `what`.
inline int64_t check_offsets(const Tensor& start, const char* name, int64_t entries,
                             const char* what = "rows") {
  check_operand(start, name, 1, ScalarType::Long);
  TORCH_LSH_CHECK(start.numel() > 0, name, " is empty; wanted one offset more than ", what);
  check_offsets(start.const_data_ptr<int64_t>(), start.numel() - 1, entries, name);
  return start.numel() - 1;
}

}  // namespace torch_lsh
