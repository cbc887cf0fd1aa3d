// hash_text: word and character n-grams of UTF-8 texts, hashed into the columns of a CSR matrix.
// word_spans: where the words are.
//
// Each thread takes a run of texts of about as many bytes; rows do not depend on the cuts.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/hashed_rows.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "unicode/words.h"

namespace torch_lsh {
namespace {

std::tuple<Tensor, Tensor, Tensor> hash_text(const Tensor& text, const Tensor& offsets, int64_t bits,
                                             int64_t word_ngrams, int64_t char_min, int64_t char_max,
                                             bool is_signed, std::string tf, bool normalized, int64_t seed,
                                             bool split_characters, bool symbols) {
  const PackedTexts texts = packed_texts(text, offsets);
  const HashSettings settings = hash_settings(bits, word_ngrams, char_min, char_max, is_signed, tf,
                                              normalized, seed, split_characters, symbols);
  const std::vector<int64_t> bounds = runs_of(texts);
  const auto runs = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<HashedRows> rows(static_cast<size_t>(runs), HashedRows(settings));
  parallel_for(0, runs, 1, [&](int64_t first, int64_t last) {
    for (int64_t run = first; run < last; ++run)
      for (int64_t i = bounds[run]; i < bounds[run + 1]; ++i)
        rows[run].add(texts.bytes + texts.offsets[i], texts.bytes + texts.offsets[i + 1]);
  });

  int64_t total = 0;
  for (const HashedRows& some : rows) total += static_cast<int64_t>(some.columns.size());
  Tensor crow = new_tensor({texts.count + 1}, ScalarType::Long);
  Tensor columns = new_tensor({total}, ScalarType::Long);
  Tensor values = new_tensor({total}, ScalarType::Float);
  int64_t* row_start = crow.mutable_data_ptr<int64_t>();
  int64_t* column = columns.mutable_data_ptr<int64_t>();
  float* value = values.mutable_data_ptr<float>();
  *row_start = 0;
  for (const HashedRows& some : rows) {
    for (const int64_t count : some.counts) row_start[1] = row_start[0] + count, ++row_start;
    column = std::copy(some.columns.begin(), some.columns.end(), column);
    value = std::copy(some.values.begin(), some.values.end(), value);
  }
  return {crow, columns, values};
}

// The first byte of each word, and the one after its last.
Tensor word_spans(const Tensor& text, bool split_characters) {
  check_operand(text, "text", 1, ScalarType::Byte);
  const uint8_t* begin = text.const_data_ptr<uint8_t>();
  const uint8_t* end = begin + text.numel();
  std::vector<int64_t> bounds;
  bool inside = false;
  unicode::Cuts cuts;
  for (const uint8_t* at = begin; at < end;) {
    const int64_t here = at - begin;
    const uint32_t character = unicode::word_character(unicode::decode(at, end));
    if (character == 0) {
      if (inside) bounds.push_back(here);
    } else {
      if (!inside) cuts = {};
      const bool cut = cuts.begins_word(character) && split_characters;
      if (inside && cut) bounds.push_back(here);
      if (!inside || cut) bounds.push_back(here);
    }
    inside = character != 0;
  }
  if (inside) bounds.push_back(text.numel());
  Tensor spans = new_tensor({static_cast<int64_t>(bounds.size()) / 2, 2}, ScalarType::Long);
  std::copy(bounds.begin(), bounds.end(), spans.mutable_data_ptr<int64_t>());
  return spans;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "hash_text", &hash_text);
  TORCH_LSH_IMPL(m, "word_spans", &word_spans);
}

}  // namespace torch_lsh
