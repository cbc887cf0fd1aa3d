// TORCH_LSH_IMPL: registers a function as the implementation of an operator, and says which call ran out of
// memory.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "checks.h"

namespace torch_lsh {

inline std::string shown(const Tensor& tensor) {
  return shape_of(tensor) + " " + torch::headeronly::toString(tensor.scalar_type());
}
inline std::string shown(ScalarType dtype) {
  return torch::headeronly::toString(dtype);
}
inline std::string shown(const std::string& text) {
  return "'" + text + "'";
}
inline std::string shown(bool value) {
  return value ? "True" : "False";
}
inline std::string shown(int64_t value) {
  return std::to_string(value);
}
inline std::string shown(double value) {
  return std::to_string(value);
}
template <typename T>
std::string shown(const std::optional<T>& value) {
  return value.has_value() ? shown(*value) : "None";
}

template <size_t size>
struct Name {
  char text[size];

  constexpr Name(const char (&from)[size]) { std::copy_n(from, size, text); }
};

template <Name name, auto function, typename Type = decltype(function)>
struct Operator;

template <Name name, auto function, typename Result, typename... Arguments>
struct Operator<name, function, Result (*)(Arguments...)> {
  static Result call(Arguments... arguments) {
    try {
      return function(arguments...);
    } catch (const std::bad_alloc&) {
      run_out(arguments...);
    } catch (const std::length_error&) {  // of a vector
      run_out(arguments...);
    }
  }

  [[noreturn, gnu::noinline, gnu::cold]] static void run_out(const Arguments&... arguments) {
    std::string list;
    ((list += (list.empty() ? "" : ", ") + shown(arguments)), ...);
    fail(name.text, "(", list, ") needs more memory than there is");
  }
};

#define TORCH_LSH_IMPL(library, name, function) \
  library.impl(name, TORCH_BOX((&::torch_lsh::Operator<name, function>::call)))

}  // namespace torch_lsh
