// hash_text: word and character n-grams of UTF-8 texts, hashed into the columns of a CSR matrix.
// word_spans: where the words are.
//
// Character n-grams hash code points, word n-grams hash the hashes of words. Sorting counts them: a radix
// sort of 32-bit keys is faster than a hash table, and leaves the columns in order. Each thread takes a run
// of texts of about as many bytes; rows do not depend on the cuts.
//
// Results are the same on every platform: hashes are 64-bit integers, squares of float32 are exact in
// float64, and sqrt and / are correctly rounded.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "random.h"
#include "unicode/words.h"

namespace torch_lsh {
namespace {

struct Settings {
  int64_t bits, word_ngrams, char_min, char_max;
  bool is_signed, normalized, split_characters;
  enum { kCount, kLog, kBinary } tf;
  uint64_t seed;
};

constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15ull;
constexpr int64_t kLongestGram = 64;  // bounds the features of a text by a multiple of its bytes
constexpr uint32_t kWordBegin = 0x110000, kWordEnd = 0x110001;  // beyond the last code point

uint64_t append(uint64_t state, uint64_t item) {
  return (state ^ item) * kMultiplier;
}

// Sorts by column (all bits but the lowest); equal columns in any order.
void sort_by_column(std::vector<uint32_t>& keys, std::vector<uint32_t>& spare, int64_t bits) {
  constexpr size_t kSmall = 192;
  if (keys.size() < kSmall) {
    std::sort(keys.begin(), keys.end());
    return;
  }
  constexpr int64_t kDigit = 11;  // histograms fit in L1
  const int64_t passes = (bits + kDigit - 1) / kDigit, digit = (bits + passes - 1) / passes;
  const uint32_t mask = (1u << digit) - 1;
  uint32_t start[3][1 << kDigit];
  for (int64_t pass = 0; pass < passes; ++pass) std::fill_n(start[pass], mask + 1, 0);
  for (const uint32_t key : keys)
    for (int64_t pass = 0; pass < passes; ++pass) ++start[pass][key >> (1 + pass * digit) & mask];
  spare.resize(keys.size());
  for (int64_t pass = 0; pass < passes; ++pass) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i <= mask; ++i) sum += std::exchange(start[pass][i], sum);
    for (const uint32_t key : keys) spare[start[pass][key >> (1 + pass * digit) & mask]++] = key;
    keys.swap(spare);
  }
}

// The CSR rows of a run of texts. Not thread-safe: one per thread.
class Rows {
 public:
  explicit Rows(const Settings& settings)
      : settings_(settings),
        char_start_(random_bits(settings.seed, 0)),
        word_start_(random_bits(settings.seed, 1)) {}

  void add(const uint8_t* at, const uint8_t* end) {
    keys_.clear();
    words_.clear();
    while (at < end) {
      uint32_t character = unicode::word_character(unicode::decode(at, end));
      if (character == 0) continue;
      run_.assign(1, kWordBegin);
      do {
        run_.push_back(character);
        character = at < end ? unicode::word_character(unicode::decode(at, end)) : 0;
      } while (character != 0);
      if (settings_.word_ngrams > 0) add_words();
      if (settings_.char_max > 0) add_char_ngrams();
    }
    add_word_ngrams();
    sort_by_column(keys_, spare_, settings_.bits);
    add_row();
  }

  std::vector<int64_t> counts;
  std::vector<int32_t> columns;
  std::vector<float> values;

 private:
  struct Word {
    uint64_t state;  // of its hash
    bool alone;      // one letter of a script without blanks
  };

  void add_feature(uint64_t state) {
    const uint64_t hash = mix(state);
    keys_.push_back(static_cast<uint32_t>(hash >> (64 - settings_.bits) << 1 | (hash & 1)));
  }

  // The words of a run: the run itself, or its pieces.
  void add_words() {
    unicode::Cuts cuts;
    Word word{word_start_, false};
    for (size_t i = 1; i < run_.size(); ++i) {
      if (settings_.split_characters && cuts.begins_word(run_[i])) {
        if (i > 1) words_.push_back(word);
        word = {word_start_, cuts.alone()};
      }
      word.state = append(word.state, run_[i]);
    }
    words_.push_back(word);
  }

  void add_char_ngrams() {
    run_.push_back(kWordEnd);
    const int64_t length = static_cast<int64_t>(run_.size());
    for (int64_t i = 0; i + settings_.char_min <= length; ++i) {
      uint64_t gram = char_start_;
      const int64_t last = std::min(length - i, settings_.char_max);
      for (int64_t n = 1; n <= last; ++n) {
        gram = append(gram, run_[i + n - 1]);
        if (n >= settings_.char_min) add_feature(gram);
      }
    }
  }

  // A letter alone says little, so two of them are a feature even where n-grams of words are not.
  void add_word_ngrams() {
    for (const Word& word : words_) add_feature(word.state);
    const auto count = static_cast<int64_t>(words_.size());
    for (int64_t n = 2; n <= std::min(std::max<int64_t>(2, settings_.word_ngrams), count); ++n)
      for (int64_t i = 0; i + n <= count; ++i) {
        if (n > settings_.word_ngrams && !(words_[i].alone && words_[i + 1].alone)) continue;
        uint64_t state = random_bits(settings_.seed, static_cast<uint64_t>(n));
        for (int64_t j = 0; j < n; ++j) state = append(state, words_[i + j].state);
        add_feature(state);
      }
  }

  void add_row() {
    const size_t begin = columns.size();
    double squares = 0;
    for (size_t i = 0; i < keys_.size();) {
      const uint32_t column = keys_[i] >> 1;
      int64_t count = 0;
      for (; i < keys_.size() && keys_[i] >> 1 == column; ++i)
        count += settings_.is_signed && (keys_[i] & 1) != 0 ? -1 : 1;
      if (count == 0) continue;  // opposite signs cancel
      const float value = weight(count);
      squares += static_cast<double>(value) * value;
      columns.push_back(static_cast<int32_t>(column));
      values.push_back(value);
    }
    if (settings_.normalized && squares > 0) {
      const double norm = std::sqrt(squares);
      for (size_t i = begin; i < values.size(); ++i) values[i] = static_cast<float>(values[i] / norm);
    }
    counts.push_back(static_cast<int64_t>(columns.size() - begin));
  }

  float weight(int64_t count) const {
    const int64_t magnitude = std::abs(count);
    float value = 1;
    if (settings_.tf == Settings::kCount) value = static_cast<float>(magnitude);
    if (settings_.tf == Settings::kLog && magnitude > 1)
      value = static_cast<float>(1 + std::log(static_cast<double>(magnitude)));
    return count < 0 ? -value : value;
  }

  const Settings settings_;
  const uint64_t char_start_, word_start_;
  std::vector<Word> words_;                   // of the present text
  std::vector<uint32_t> run_, keys_, spare_;  // run_: of word characters, after kWordBegin
};

// Cuts the texts into `runs` runs of about as many bytes each; returns the runs + 1 bounds.
std::vector<int64_t> cut(const int64_t* offsets, int64_t texts, int64_t runs) {
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i <= runs; ++i) {
    const int64_t wanted = offsets[texts] / runs * i;
    bounds.push_back(i == runs ? texts : std::lower_bound(offsets, offsets + texts, wanted) - offsets);
  }
  return bounds;
}

std::tuple<Tensor, Tensor, Tensor> hash_text(const Tensor& text, const Tensor& offsets, int64_t bits,
                                             int64_t word_ngrams, int64_t char_min, int64_t char_max,
                                             bool is_signed, std::string tf, bool normalized, int64_t seed,
                                             bool split_characters) {
  check_operand(text, "text", 1, ScalarType::Byte);
  check_operand(offsets, "offsets", 1, ScalarType::Long);
  TORCH_LSH_CHECK(offsets.numel() > 0, "offsets is empty; wanted one offset more than texts");
  const int64_t texts = offsets.numel() - 1;
  const int64_t* starts = offsets.const_data_ptr<int64_t>();
  TORCH_LSH_CHECK(starts[0] == 0 && starts[texts] == text.numel(), "offsets runs from ", starts[0], " to ",
                  starts[texts], "; wanted 0 to ", text.numel());
  for (int64_t i = 1; i <= texts; ++i)
    TORCH_LSH_CHECK(starts[i] >= starts[i - 1], "offsets decreases at ", i, "; wanted increasing offsets");
  TORCH_LSH_CHECK(bits >= 1 && bits <= 31, "bits is ", bits, "; wanted 1 to 31");
  TORCH_LSH_CHECK(word_ngrams >= 0 && word_ngrams <= kLongestGram, "word_ngrams is ", word_ngrams,
                  "; wanted 0 to ", kLongestGram);
  TORCH_LSH_CHECK(
      (char_min == 0 && char_max == 0) || (char_min >= 1 && char_max >= char_min && char_max <= kLongestGram),
      "char_min and char_max are ", char_min, " and ", char_max,
      "; wanted 0 and 0, or 1 <= char_min <= char_max <= ", kLongestGram);
  TORCH_LSH_CHECK(tf == "count" || tf == "log" || tf == "binary", "tf is '", tf,
                  "'; wanted 'count', 'log' or 'binary'");
  const Settings settings{
      bits,
      word_ngrams,
      char_min,
      char_max,
      is_signed,
      normalized,
      split_characters,
      tf == "count" ? Settings::kCount : (tf == "log" ? Settings::kLog : Settings::kBinary),
      static_cast<uint64_t>(seed)};

  constexpr int64_t kBytesPerThread = 1 << 14;  // for fewer, waking a thread costs more
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t runs = std::clamp<int64_t>(text.numel() / kBytesPerThread, 1, threads);
  const std::vector<int64_t> bounds = cut(starts, texts, runs);
  const uint8_t* bytes = text.const_data_ptr<uint8_t>();
  std::vector<Rows> rows(static_cast<size_t>(runs), Rows(settings));
  parallel_for(0, runs, 1, [&](int64_t first, int64_t last) {
    for (int64_t run = first; run < last; ++run)
      for (int64_t i = bounds[run]; i < bounds[run + 1]; ++i)
        rows[run].add(bytes + starts[i], bytes + starts[i + 1]);
  });

  int64_t total = 0;
  for (const Rows& some : rows) total += static_cast<int64_t>(some.columns.size());
  Tensor crow = new_tensor({texts + 1}, ScalarType::Long);
  Tensor columns = new_tensor({total}, ScalarType::Long);
  Tensor values = new_tensor({total}, ScalarType::Float);
  int64_t* row_start = crow.mutable_data_ptr<int64_t>();
  int64_t* column = columns.mutable_data_ptr<int64_t>();
  float* value = values.mutable_data_ptr<float>();
  *row_start = 0;
  for (const Rows& some : rows) {
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
