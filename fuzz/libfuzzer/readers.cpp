// libFuzzer on the readers in C++: parse_xmc, hash_text and word_spans, under AddressSanitizer and
// UndefinedBehaviorSanitizer. Coverage finds the branches that the random changes of fuzz/readers.py do not.
//
// The first byte of an input chooses the reader and its settings. What must hold of every result is checked;
// a violation ends the process. fuzz/libfuzzer/run builds and runs it.
#include "../../csrc/ops/hash_text.cpp"
#include "../../csrc/ops/xmc_reader.cpp"

#include <cstdio>
#include <cstdlib>

namespace torch_lsh {
namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

// The bytes as a tensor of exactly their size, so that reading past them is seen.
Tensor text_of(const uint8_t* data, size_t size) {
  Tensor text = new_tensor({static_cast<int64_t>(size)}, ScalarType::Byte);
  std::copy_n(data, size, text.mutable_data_ptr<uint8_t>());
  return text;
}

template <typename T>
int64_t total(const Tensor& counts, int64_t rows, T most) {
  const T* count = counts.const_data_ptr<T>();
  int64_t sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    require(count[i] >= 0 && count[i] <= most, "counts are not negative, nor more than bytes");
    sum += count[i];
  }
  return sum;
}

void check_ids(const Tensor& ids, int64_t bound) {
  for (int64_t i = 0; i < ids.numel(); ++i) {
    const int32_t id = ids.const_data_ptr<int32_t>()[i];
    require(id >= 0 && id < bound, "ids are below their bound");
  }
}

void use_parse_xmc(const uint8_t* data, size_t size, uint8_t settings) {
  static constexpr int64_t kBounds[] = {0, 1, 10, INT32_MAX};
  const int64_t features = kBounds[settings & 3], labels = kBounds[settings >> 2 & 3];
  const auto [per_row, columns, values, labels_per_row, found, error] =
      parse_xmc(text_of(data, size), features, labels);
  require(per_row.numel() == labels_per_row.numel(), "as many rows with features as with labels");
  const auto bytes = static_cast<int64_t>(size);
  require(total<int64_t>(per_row, per_row.numel(), bytes) == columns.numel(), "features belong to rows");
  require(total<int64_t>(labels_per_row, per_row.numel(), bytes) == found.numel(), "labels belong to rows");
  require(values.numel() == columns.numel(), "each feature has a value");
  check_ids(columns, features);
  check_ids(found, labels);
  for (int64_t i = 0; i < values.numel(); ++i)
    require(std::isfinite(values.const_data_ptr<float>()[i]), "values are finite");
}

void use_hash_text(const uint8_t* data, size_t size, uint8_t settings) {
  const int64_t bits = settings & 1 ? 31 : 4, chars = settings & 2 ? 5 : 0;
  const char* const tf = settings & 4 ? "log" : (settings & 8 ? "count" : "binary");
  // Three texts; the cuts may part the bytes of a character.
  Tensor offsets = new_tensor({4}, ScalarType::Long);
  for (int64_t i = 0; i < 4; ++i)
    offsets.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(size) * i / 3;
  const auto [crow, columns, values] = hash_text(text_of(data, size), offsets, bits, chars == 0 ? 2 : 1, chars == 0 ? 0 : 2,
                                                 chars, (settings & 16) != 0, tf, (settings & 32) != 0, 7,
                                                 (settings & 4) != 0, (settings & 8) != 0);
  const int64_t* start = crow.const_data_ptr<int64_t>();
  require(start[0] == 0 && start[3] == columns.numel() && values.numel() == columns.numel(), "rows are whole");
  for (int64_t row = 0; row < 3; ++row) {
    require(start[row] <= start[row + 1], "rows follow each other");
    for (int64_t i = start[row]; i < start[row + 1]; ++i) {
      const int64_t column = columns.const_data_ptr<int64_t>()[i];
      require(column >= 0 && column < int64_t{1} << bits, "columns are below 2^bits");
      require(i == start[row] || column > columns.const_data_ptr<int64_t>()[i - 1], "columns increase in a row");
      require(std::isfinite(values.const_data_ptr<float>()[i]), "values are finite");
    }
  }
}

void use_word_spans(const uint8_t* data, size_t size, uint8_t settings) {
  const Tensor spans = word_spans(text_of(data, size), (settings & 1) != 0);
  const int64_t* bound = spans.const_data_ptr<int64_t>();
  int64_t last = 0;
  for (int64_t i = 0; i < spans.numel(); ++i) {
    require(i % 2 == 0 ? bound[i] >= last : bound[i] > last, "words are not empty, and follow each other");
    last = bound[i];
  }
  require(last <= static_cast<int64_t>(size), "words end within the text");
}

}  // namespace
}  // namespace torch_lsh

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t settings = *data >> 2;
  if ((*data & 3) == 0) torch_lsh::use_word_spans(data + 1, size - 1, settings);
  if ((*data & 3) == 1) torch_lsh::use_hash_text(data + 1, size - 1, settings);
  if ((*data & 3) >= 2) torch_lsh::use_parse_xmc(data + 1, size - 1, settings);
  return 0;
}
