// HashedRows: word and character n-grams of UTF-8 texts, hashed into the columns of CSR rows.
//
// Character n-grams hash code points, word n-grams hash the hashes of words. Sorting counts them: a radix
// sort of 32-bit keys is faster than a hash table, and leaves the columns in order.
//
// Results are the same on every platform: hashes are 64-bit integers, squares of float32 are exact in
// float64, and sqrt and / are correctly rounded.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "random.h"
#include "unicode/words.h"

namespace torch_lsh {

struct HashSettings {
  int64_t bits, word_ngrams, char_min, char_max;
  bool is_signed, normalized, split_characters, symbols;
  enum { kCount, kLog, kBinary } tf;
  uint64_t seed;
};

inline constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15ull;
inline constexpr int64_t kLongestGram = 64;  // bounds the features of a text by a multiple of its bytes
inline constexpr uint32_t kWordBegin = 0x110000, kWordEnd = 0x110001;  // beyond the last code point

inline uint64_t append(uint64_t state, uint64_t item) {
  return (state ^ item) * kMultiplier;
}

// Sorts by column (all bits but the lowest); equal columns in any order.
inline void sort_by_column(std::vector<uint32_t>& keys, std::vector<uint32_t>& spare, int64_t bits) {
  constexpr size_t kSmall = 96;
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
class HashedRows {
 public:
  explicit HashedRows(const HashSettings& settings)
      : settings_(settings),
        char_start_(random_bits(settings.seed, 0)),
        word_start_(random_bits(settings.seed, 1)) {}

  // Adds the row of a text.
  void add(const uint8_t* at, const uint8_t* end) {
    keys_.clear();
    words_.clear();
    while (at < end) {
      int32_t code = unicode::decode(at, end);
      const size_t before = words_.size();
      unicode::Cuts cuts;
      run_.assign(1, kWordBegin);
      while (const uint32_t character = unicode::word_character(code)) {
        if (settings_.word_ngrams > 0) add_to_word(character, cuts, before);
        if (settings_.char_max > 0) run_.push_back(character);
        code = at < end ? unicode::decode(at, end) : -1;
      }
      if (run_.size() > 1) add_char_ngrams();
      if (settings_.symbols && unicode::is_symbol(code))
        words_.push_back({append(word_start_, static_cast<uint32_t>(code)), true});
    }
    add_word_ngrams();
    sort_by_column(keys_, spare_, settings_.bits);
    add_row();
  }

  // Forgets the rows, but keeps the memory.
  void clear() {
    counts.clear();
    columns.clear();
    values.clear();
  }

  std::vector<int64_t> counts;
  std::vector<int32_t> columns;
  std::vector<float> values;

 private:
  struct Word {
    uint64_t state;  // of its hash
    bool alone;      // one letter of a script without blanks, or a symbol
  };

  void add_feature(uint64_t state) {
    const uint64_t hash = mix(state);
    keys_.push_back(static_cast<uint32_t>(hash >> (64 - settings_.bits) << 1 | (hash & 1)));
  }

  // The words of a run, the first of which is number `first`: the run itself, or its pieces.
  void add_to_word(uint32_t character, unicode::Cuts& cuts, size_t first) {
    const bool cut = settings_.split_characters && cuts.begins_word(character);
    if (cut || words_.size() == first) words_.push_back({word_start_, cut && cuts.alone()});
    words_.back().state = append(words_.back().state, character);
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
    for (int64_t n = 2; n <= std::min(std::max<int64_t>(2, settings_.word_ngrams), count); ++n) {
      const uint64_t start = random_bits(settings_.seed, static_cast<uint64_t>(n));
      for (int64_t i = 0; i + n <= count; ++i) {
        if (n > settings_.word_ngrams && !(words_[i].alone && words_[i + 1].alone)) continue;
        uint64_t state = start;
        for (int64_t j = 0; j < n; ++j) state = append(state, words_[i + j].state);
        add_feature(state);
      }
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
    if (settings_.tf == HashSettings::kCount) value = static_cast<float>(magnitude);
    if (settings_.tf == HashSettings::kLog && magnitude > 1)
      value = static_cast<float>(1 + std::log(static_cast<double>(magnitude)));
    return count < 0 ? -value : value;
  }

  const HashSettings settings_;
  const uint64_t char_start_, word_start_;
  std::vector<Word> words_;                   // of the present text
  std::vector<uint32_t> run_, keys_, spare_;  // run_: of word characters, after kWordBegin
};

// Checks the settings of an operator that hashes texts.
inline HashSettings hash_settings(int64_t bits, int64_t word_ngrams, int64_t char_min, int64_t char_max,
                                  bool is_signed, const std::string& tf, bool normalized, int64_t seed,
                                  bool split_characters, bool symbols) {
  TORCH_LSH_CHECK(bits >= 1 && bits <= 31, "bits is ", bits, "; wanted 1 to 31");
  TORCH_LSH_CHECK(word_ngrams >= 0 && word_ngrams <= kLongestGram, "word_ngrams is ", word_ngrams,
                  "; wanted 0 to ", kLongestGram);
  TORCH_LSH_CHECK(
      (char_min == 0 && char_max == 0) || (char_min >= 1 && char_max >= char_min && char_max <= kLongestGram),
      "char_min and char_max are ", char_min, " and ", char_max,
      "; wanted 0 and 0, or 1 <= char_min <= char_max <= ", kLongestGram);
  TORCH_LSH_CHECK(tf == "count" || tf == "log" || tf == "binary", "tf is '", tf,
                  "'; wanted 'count', 'log' or 'binary'");
  return {bits,
          word_ngrams,
          char_min,
          char_max,
          is_signed,
          normalized,
          split_characters,
          symbols && word_ngrams > 0,
          tf == "count" ? HashSettings::kCount : (tf == "log" ? HashSettings::kLog : HashSettings::kBinary),
          static_cast<uint64_t>(seed)};
}

// Texts one after the other in UTF-8.
struct PackedTexts {
  const uint8_t* bytes;
  const int64_t* offsets;  // where each text begins, and where the last one ends
  int64_t count;
};

inline PackedTexts packed_texts(const Tensor& text, const Tensor& offsets) {
  check_operand(text, "text", 1, ScalarType::Byte);
  const int64_t texts = check_offsets(offsets, "offsets", text.numel(), "texts");
  return {text.const_data_ptr<uint8_t>(), offsets.const_data_ptr<int64_t>(), texts};
}

// Bounds of one run of texts for each thread, of about as many bytes each.
inline std::vector<int64_t> runs_of(const PackedTexts& texts) {
  constexpr int64_t kBytesPerThread = 1 << 14;  // for fewer, waking a thread costs more
  const int64_t bytes = texts.offsets[texts.count];
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t runs = std::clamp<int64_t>(bytes / kBytesPerThread, 1, threads);
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i <= runs; ++i) {
    const int64_t wanted = bytes / runs * i;
    bounds.push_back(i == runs ? texts.count
                               : std::lower_bound(texts.offsets, texts.offsets + texts.count, wanted) -
                                     texts.offsets);
  }
  return bounds;
}

}  // namespace torch_lsh
