// Words of UTF-8 text: runs of letters, marks and numbers, as lower-case code points.
//
// Everything is spelled out here (decoding, character classes, lower-casing), so that a text has the same
// words on every platform and in every locale. Bytes that are not valid UTF-8 separate words.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

#include "unicode/ranges.h"

namespace torch_lsh::unicode {

// Decodes one code point and moves on; an invalid byte (RFC 3629) is stepped over alone and gives -1.
inline int32_t decode(const uint8_t*& at, const uint8_t* end) {
  const uint8_t lead = *at++;
  if (lead < 0x80) return lead;
  int more = 0;
  uint8_t low = 0x80, high = 0xbf;  // of the second byte: keeps out overlong forms, surrogates and > U+10FFFF
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

// The range that may hold `code`: the last one that begins at or before it; null if there is none.
template <typename Range, size_t N>
constexpr const Range* range_of(const Range (&ranges)[N], uint32_t code) {
  const Range* after = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                        [](uint32_t c, const Range& range) { return c < range.first; });
  return after == std::begin(ranges) ? nullptr : after - 1;
}

// The lower case of a word character; 0 for any other code point.
constexpr uint32_t look_up(uint32_t code) {
  const WordRange* word = range_of(kWords, code);
  if (word == nullptr || code > word->last) return 0;
  const LowerRange* lower = range_of(kLower, code);
  if (lower == nullptr || code > lower->last || (code - lower->first) % lower->stride != 0) return code;
  return code + static_cast<uint32_t>(lower->difference);
}

// Latin, Greek, Cyrillic, Hebrew and Arabic (what UTF-8 writes with one or two bytes) without a search.
inline constexpr auto kCommon = [] {
  std::array<uint16_t, 0x800> table{};
  for (uint32_t code = 0; code < table.size(); ++code) table[code] = static_cast<uint16_t>(look_up(code));
  return table;
}();

// The same for a decoded code point, -1 included.
inline uint32_t word_character(int32_t code) {
  if (code < 0) return 0;
  const uint32_t c = static_cast<uint32_t>(code);
  return c < kCommon.size() ? kCommon[c] : look_up(c);
}

}  // namespace torch_lsh::unicode
