// parse_xmc: parses the XMC repository's text format, `label,label feature:value feature:value ...`, into CSR
// arrays.
//
// The caller streams the file in blocks of whole lines. A block is cut into one piece of whole lines per
// thread; the arrays of all pieces are joined in order, so results do not depend on the number of threads.
// Reports the first bad line.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

struct Piece {
  std::vector<int64_t> features_per_row, labels_per_row;
  std::vector<int32_t> features, labels;
  std::vector<float> values;
  std::string error;  // of the line after the last parsed row
};

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r';
}

std::string shown(const char* begin, const char* end) {
  std::string text(begin, std::min(end, begin + 20));
  for (char& c : text)
    if (c < ' ' || c > '~') c = '?';
  return "'" + text + "'";
}

// Reads an id below `bound`; returns false and sets `error` if there is none.
bool read_id(const char*& at, const char* end, int64_t bound, const char* what, int32_t& id,
             std::string& error) {
  int64_t number = -1;
  const auto [rest, status] = std::from_chars(at, end, number);
  if (rest == at || status != std::errc() || number < 0 || number >= bound) {
    error = std::string(what) + " is " + shown(at, rest == at ? end : rest) + "; wanted " +
            (bound > 0 ? "0 to " + std::to_string(bound - 1) : "none, as the header says");
    return false;
  }
  id = static_cast<int32_t>(number);
  at = rest;
  return true;
}

// Whether a decimal number that is out of range is too small rather than too large.
bool is_tiny(const char* at, const char* end) {
  constexpr int64_t kFar = 1'000'000'000;  // more digits than a line has
  int64_t power = 0, exponent = 0;         // the number is in [10^(power - 1), 10^power) times 10^exponent
  bool after_point = false, significant = false;
  for (; at < end && *at != 'e' && *at != 'E'; ++at) {
    if (*at == '.') after_point = true;
    if (*at < '0' || *at > '9') continue;
    significant |= *at != '0';
    power += significant && !after_point;
    power -= !significant && after_point;
  }
  const bool negative = end - at > 1 && at[1] == '-';
  for (; at < end; ++at)
    if (*at >= '0' && *at <= '9') exponent = std::min(kFar, 10 * exponent + (*at - '0'));
  return power + (negative ? -exponent : exponent) < 0;
}

// Reads a float32, correctly rounded: 0 if it is too small. Returns false if there is none, or it overflows.
bool read_value(const char*& at, const char* end, float& value) {
  // Fast path: up to seven digits and their power of ten are exact as floats, so the quotient is rounded
  // once.
  static constexpr float kPowers[] = {1e0f, 1e1f, 1e2f, 1e3f, 1e4f, 1e5f, 1e6f, 1e7f};
  constexpr int kDigits = 7;  // 10^7 < 2^24
  const char* p = at;
  const bool negative = p < end && *p == '-';
  p += negative;
  int32_t digits = 0;
  int count = 0, decimals = 0;
  for (; p < end && *p >= '0' && *p <= '9' && count < kDigits; ++p, ++count)
    digits = digits * 10 + (*p - '0');
  if (p < end && *p == '.')
    for (++p; p < end && *p >= '0' && *p <= '9' && count < kDigits; ++p, ++count, ++decimals)
      digits = digits * 10 + (*p - '0');
  if (count > 0 && p == end) {
    const float magnitude = static_cast<float>(digits) / kPowers[decimals];
    value = negative ? -magnitude : magnitude;
    at = p;
    return true;
  }
  const char* start = at;
  if (end - at > 1 && at[0] == '+' && at[1] != '-') ++start;
  const auto [rest, status] = std::from_chars(start, end, value);
  if (status == std::errc::result_out_of_range) {
    if (!is_tiny(start, rest)) return false;
    double wide = negative ? -0.0 : 0.0;
    std::from_chars(start, rest, wide);  // the 0 stays where doubles have no such number either
    value = static_cast<float>(wide);
  } else if (status != std::errc()) {
    return false;
  }
  at = rest;
  return true;
}

// Parses one line, without its line end: appends a row, or sets piece.error.
void parse_line(const char* at, const char* end, int64_t num_features, int64_t num_labels, Piece& piece) {
  while (end > at && is_blank(end[-1])) --end;
  const size_t labels_before = piece.labels.size(), features_before = piece.features.size();
  const auto fail_with = [&](std::string error) {
    piece.labels.resize(labels_before);
    piece.features.resize(features_before);
    piece.values.resize(features_before);
    piece.error = std::move(error);
  };
  std::string error;
  int32_t id = 0;
  // The first word holds labels unless it has a colon. A row without labels starts with a blank or a feature.
  const char* word_end = std::find_if(at, end, is_blank);
  if (at < end && word_end != at && std::find(at, word_end, ':') == word_end) {
    while (true) {
      if (!read_id(at, word_end, num_labels, "label", id, error)) return fail_with(error);
      piece.labels.push_back(id);
      if (at == word_end) break;
      if (*at != ',')
        return fail_with("separator is " + shown(at, word_end) + "; wanted a comma between labels");
      ++at;
    }
  }
  while (true) {
    while (at < end && is_blank(*at)) ++at;
    if (at == end) break;
    const char* start = at;
    word_end = std::find_if(at, end, is_blank);
    if (!read_id(at, word_end, num_features, "feature", id, error)) return fail_with(error);
    if (at == word_end || *at != ':')
      return fail_with("entry is " + shown(start, word_end) + "; wanted feature:value");
    ++at;
    float value = 0;
    if (!read_value(at, word_end, value) || at != word_end)
      return fail_with("entry is " + shown(start, word_end) + "; wanted a float32 number after the colon");
    if (!std::isfinite(value))
      return fail_with("entry is " + shown(start, word_end) + "; wanted a finite value");
    piece.features.push_back(id);
    piece.values.push_back(value);
  }
  piece.labels_per_row.push_back(static_cast<int64_t>(piece.labels.size() - labels_before));
  piece.features_per_row.push_back(static_cast<int64_t>(piece.features.size() - features_before));
}

void parse_piece(const char* at, const char* end, int64_t num_features, int64_t num_labels, Piece& piece) {
  while (at < end && piece.error.empty()) {
    const char* line_end = static_cast<const char*>(std::memchr(at, '\n', static_cast<size_t>(end - at)));
    if (line_end == nullptr) line_end = end;
    parse_line(at, line_end, num_features, num_labels, piece);
    at = line_end + 1;
  }
}

template <typename T>
Tensor join(const std::vector<Piece>& pieces, std::vector<T> Piece::* field, ScalarType dtype) {
  size_t total = 0;
  for (const Piece& piece : pieces) total += (piece.*field).size();
  Tensor joined = new_tensor({static_cast<int64_t>(total)}, dtype);
  T* to = static_cast<T*>(joined.mutable_data_ptr());
  for (const Piece& piece : pieces) to = std::copy((piece.*field).begin(), (piece.*field).end(), to);
  return joined;
}

// Returns (features per row, features, values, labels per row, labels, error). The error, if any, belongs to
// the line after the rows returned.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::string> parse_xmc(const Tensor& text,
                                                                          int64_t num_features,
                                                                          int64_t num_labels) {
  check_operand(text, "text", 1, ScalarType::Byte);
  check_count(num_features, "num_features", 0);
  check_count(num_labels, "num_labels", 0);
  const char* begin = reinterpret_cast<const char*>(text.const_data_ptr<uint8_t>());
  const char* end = begin + text.numel();
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  std::vector<const char*> cuts{begin};
  for (int64_t i = 1; i < threads; ++i) {
    const char* cut = std::max(cuts.back(), begin + text.numel() * i / threads);
    while (cut > begin && cut < end && cut[-1] != '\n') ++cut;
    cuts.push_back(cut);
  }
  cuts.push_back(end);
  std::vector<Piece> pieces(static_cast<size_t>(threads));
  parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      parse_piece(cuts[i], cuts[i + 1], num_features, num_labels, pieces[i]);
  });
  std::string error;
  for (size_t i = 0; i < pieces.size(); ++i)
    if (!pieces[i].error.empty()) {
      error = pieces[i].error;
      pieces.resize(i + 1);
    }
  return {join(pieces, &Piece::features_per_row, ScalarType::Long),
          join(pieces, &Piece::features, ScalarType::Int),
          join(pieces, &Piece::values, ScalarType::Float),
          join(pieces, &Piece::labels_per_row, ScalarType::Long),
          join(pieces, &Piece::labels, ScalarType::Int),
          error};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "parse_xmc", &parse_xmc);
}

}  // namespace torch_lsh
