// Words of UTF-8 text: runs of letters, marks and numbers, as lower-case code points.
//
// Decoding, character classes and lower-casing are implemented here, so that a text has the same words on
// every platform and in every locale. Invalid UTF-8 separates words.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

#include "unicode/ranges.h"

namespace torch_lsh::unicode {

// Decodes one code point (RFC 3629) and advances `at`. Returns -1 for an invalid byte, which is skipped
// alone.
inline int32_t decode(const uint8_t*& at, const uint8_t* end) {
  const uint8_t lead = *at++;
  if (lead < 0x80) return lead;
  int more = 0;
  uint8_t low = 0x80, high = 0xbf;  // of the second byte: excludes overlong forms, surrogates, > U+10FFFF
  int32_t code = 0;
  if (lead >= 0xc2 && lead <= 0xdf) {
    more = 1, code = lead & 0x1f;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    more = 2, code = lead & 0x0f;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    more = 3, code = lead & 0x07;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return -1;
  }
  const uint8_t* next = at;
  for (; more > 0; --more, ++next) {
    if (next == end || *next < low || *next > high) return -1;
    code = code << 6 | (*next & 0x3f);
    low = 0x80, high = 0xbf;
  }
  at = next;
  return code;
}

// The number of the only range that may contain `code`, the last one that begins at or before it; -1 if none
// does.
template <typename R, size_t N>
constexpr int64_t range_of(const R (&ranges)[N], uint32_t code) {
  const R* after = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                    [](uint32_t c, const R& range) { return c < range.first; });
  return after - std::begin(ranges) - 1;
}

// The lower case of a word character; 0 for any other code point.
constexpr uint32_t look_up(uint32_t code) {
  const int64_t word = range_of(kWords, code);
  if (word < 0 || code > kWords[word].last) return 0;
  const int64_t number = range_of(kLower, code);
  if (number < 0) return code;
  const LowerRange& lower = kLower[number];
  if (code > lower.last || (code - lower.first) % lower.stride != 0) return code;
  return code + static_cast<uint32_t>(lower.difference);
}

// Table for all code points of one or two UTF-8 bytes: Latin, Greek, Cyrillic, Hebrew, Arabic.
inline constexpr auto kCommon = [] {
  std::array<uint16_t, 0x800> table{};
  for (uint32_t code = 0; code < table.size(); ++code) table[code] = static_cast<uint16_t>(look_up(code));
  return table;
}();

// look_up of a result of decode, by table where possible; 0 for -1.
inline uint32_t word_character(int32_t code) {
  if (code < 0) return 0;
  const uint32_t c = static_cast<uint32_t>(code);
  return c < kCommon.size() ? kCommon[c] : look_up(c);
}

template <size_t N>
bool contains(const Range (&ranges)[N], uint32_t code) {
  const int64_t range = range_of(ranges, code);
  return range >= 0 && code <= ranges[range].last;
}

inline bool is_symbol(int32_t code) {
  return code > 0 && contains(kSymbols, static_cast<uint32_t>(code));
}

// Says where a run of word characters is cut, so that a letter of a script without blanks, with its marks, is
// a word of its own. One per run.
class Cuts {
 public:
  // Whether a word begins at the next character of the run, as word_character gives it.
  bool begins_word(uint32_t character) {
    const bool alone = character >= kAlone[0].first && contains(kAlone, character);
    const bool begins = first_ || alone || (alone_ && !contains(kMarks, character));
    if (begins) alone_ = alone;
    first_ = false;
    return begins;
  }

  // Whether the present word is such a letter.
  bool alone() const { return alone_; }

 private:
  bool first_ = true, alone_ = false;
};

}  // namespace torch_lsh::unicode
