// score_text: logits of a linear model of hashed texts, from the texts alone.
//
// A text has hundreds of columns all over a table of tens of megabytes, so the time goes into waiting for
// memory: a row of the table holds all that a column counts for, and is fetched well before it is needed.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/hashed_rows.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

constexpr size_t kAhead = 24;  // rows of the table between fetching one and using it
constexpr int64_t kLine = 64;  // bytes

// The table of a linear model: for each column the weights of the classes, then its square.
struct ScoreTable {
  const float *rows, *bias;
  int64_t classes;

  const float* row(int32_t column) const { return rows + int64_t{column} * (classes + 1); }

  void fetch(int32_t column) const {
    const auto* bytes = reinterpret_cast<const char*>(row(column));
    const int64_t last = (classes + 1) * static_cast<int64_t>(sizeof(float)) - 1;
    for (int64_t at = 0; at < last; at += kLine) __builtin_prefetch(bytes + at);
    __builtin_prefetch(bytes + last);
  }

  void score(const HashedRows& text, float* logits) const {
    const size_t count = text.columns.size();
    for (size_t i = 0; i < std::min(kAhead, count); ++i) fetch(text.columns[i]);
    std::fill_n(logits, classes, 0.0f);
    float squares = 0;
    for (size_t i = 0; i < count; ++i) {
      if (i + kAhead < count) fetch(text.columns[i + kAhead]);
      const float* const weights = row(text.columns[i]);
      const float value = text.values[i];
      for (int64_t c = 0; c < classes; ++c) logits[c] += value * weights[c];
      squares += value * value * weights[classes];
    }
    const float length = std::max(std::sqrt(squares), 1e-12f);
    for (int64_t c = 0; c < classes; ++c) logits[c] = logits[c] / length + bias[c];
  }
};

Tensor score_text(const Tensor& text, const Tensor& offsets, int64_t bits, int64_t word_ngrams,
                  int64_t char_min, int64_t char_max, bool is_signed, std::string tf, int64_t seed,
                  bool split_characters, bool symbols, const Tensor& table, const Tensor& bias) {
  const PackedTexts texts = packed_texts(text, offsets);
  const HashSettings settings = hash_settings(bits, word_ngrams, char_min, char_max, is_signed, tf, false,
                                              seed, split_characters, symbols);
  check_operand(bias, "bias", 1, ScalarType::Float);
  check_operand(table, "table", 2, ScalarType::Float);
  check_size(table, "table", 0, int64_t{1} << bits);
  check_size(table, "table", 1, bias.numel() + 1);
  const ScoreTable model{table.const_data_ptr<float>(), bias.const_data_ptr<float>(), bias.numel()};
  Tensor scores = new_tensor({texts.count, model.classes}, ScalarType::Float);
  float* const logits = scores.mutable_data_ptr<float>();
  const std::vector<int64_t> bounds = runs_of(texts);
  parallel_for(0, static_cast<int64_t>(bounds.size()) - 1, 1, [&](int64_t first, int64_t last) {
    HashedRows row(settings);
    for (int64_t i = bounds[first]; i < bounds[last]; ++i) {
      row.clear();
      row.add(texts.bytes + texts.offsets[i], texts.bytes + texts.offsets[i + 1]);
      model.score(row, logits + i * model.classes);
    }
  });
  return scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "score_text", &score_text);
}

}  // namespace torch_lsh
