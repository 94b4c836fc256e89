#include "inc/text.h"

#include <algorithm>
#include <cstdint>

#include "inc/utils.h"

namespace midas {
namespace {

constexpr char32_t kReplacement = 0xFFFD;
constexpr char32_t kByteOrderMark = 0xFEFF;

std::u32string FromUtf8(std::string_view data) {
  std::u32string text;
  const auto byte_at = [&](std::size_t at) { return static_cast<std::uint8_t>(data[at]); };
  for (std::size_t at = 0; at < data.size();) {
    const std::uint8_t lead = byte_at(at++);
    const int more = lead < 0x80                   ? 0
                     : lead >= 0xC2 && lead < 0xE0 ? 1
                     : lead >= 0xE0 && lead < 0xF0 ? 2
                     : lead >= 0xF0 && lead < 0xF5 ? 3
                                                   : -1;
    char32_t letter = more <= 0 ? lead : lead & (0x3FU >> static_cast<unsigned int>(more));
    bool is_sound = more >= 0;
    for (int count = 0; is_sound && count < more; ++count) {
      is_sound = at < data.size() && (byte_at(at) & 0xC0U) == 0x80;
      if (is_sound) letter = (letter << 6U) | (byte_at(at++) & 0x3FU);
    }
    const bool is_overlong = (more == 2 && letter < 0x800) || (more == 3 && letter < 0x10000);
    const bool is_surrogate = letter >= 0xD800 && letter < 0xE000;
    text += is_sound && !is_overlong && !is_surrogate && letter < 0x110000 ? letter : kReplacement;
  }
  return text;
}

std::u32string FromUtf16(const std::vector<std::uint8_t> &data) {
  const std::size_t high = data[0] == 0xFE ? 0 : 1;  // of the two bytes of a unit
  std::u32string text;
  for (std::size_t at = 2; at + 1 < data.size(); at += 2) {
    const auto unit = static_cast<char32_t>((data[at + high] << 8U) | data[at + 1 - high]);
    const bool is_low = unit >= 0xDC00 && unit < 0xE000;
    if (is_low && !text.empty() && text.back() >= 0xD800 && text.back() < 0xDC00) {
      text.back() = 0x10000 + ((text.back() - 0xD800) << 10U) + (unit - 0xDC00);
    } else {
      text += unit;
    }
  }
  for (char32_t &letter : text) {
    if (letter >= 0xD800 && letter < 0xE000) letter = kReplacement;  // half a pair
  }
  return text;
}

std::string ToUtf8(std::u32string_view text) {
  std::string bytes;
  for (const char32_t letter : text) {
    const auto put = [&bytes](char32_t byte) { bytes += static_cast<char>(byte); };
    const auto put_more = [&](unsigned int shift) { put(0x80U | ((letter >> shift) & 0x3FU)); };
    if (letter < 0x80) {
      put(letter);
    } else if (letter < 0x800) {
      put(0xC0U | (letter >> 6U));
      put_more(0);
    } else if (letter < 0x10000) {
      put(0xE0U | (letter >> 12U));
      put_more(6);
      put_more(0);
    } else {
      put(0xF0U | (letter >> 18U));
      put_more(12);
      put_more(6);
      put_more(0);
    }
  }
  return bytes;
}

bool IsSpace(char32_t letter) {
  return (letter >= 0x09 && letter <= 0x0D) || (letter >= 0x1C && letter <= 0x20) || letter == 0x85 || letter == 0xA0 ||
         letter == 0x1680 || (letter >= 0x2000 && letter <= 0x200A) || letter == 0x2028 || letter == 0x2029 ||
         letter == 0x202F || letter == 0x205F || letter == 0x3000;
}

bool IsSeparator(char32_t letter) { return IsSpace(letter) || letter == U',' || letter == U';'; }

bool IsQuote(char32_t letter) { return letter == U'"' || letter == U'\''; }

bool EndsLine(char32_t letter) {
  return (letter >= 0x0A && letter <= 0x0D) || (letter >= 0x1C && letter <= 0x1E) || letter == 0x85 ||
         letter == 0x2028 || letter == 0x2029;
}

template <typename Predicate>
std::u32string_view Strip(std::u32string_view text, Predicate is_stripped) {
  while (!text.empty() && is_stripped(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_stripped(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string> SplitFields(std::u32string line) {
  std::replace(line.begin(), line.end(), U'\\', U'/');
  std::u32string_view text = line;
  if (text.size() >= 2 && text.front() == U'"' && text.find(U'"', 1) == text.size() - 1) {
    text = text.substr(1, text.size() - 2);  // quoted as a whole, it is a line all the same
  }
  std::vector<std::string> fields;
  for (std::size_t at = 0; at < text.size();) {
    if (IsSeparator(text[at])) {
      ++at;
      continue;
    }
    std::u32string_view field;
    const std::size_t quote = IsQuote(text[at]) ? text.find(text[at], at + 1) : std::u32string_view::npos;
    if (quote != std::u32string_view::npos && (quote + 1 == text.size() || IsSeparator(text[quote + 1]))) {
      field = text.substr(at + 1, quote - at - 1);
      at = quote + 1;
    } else {
      const auto end = std::find_if(text.begin() + static_cast<std::ptrdiff_t>(at), text.end(), IsSeparator);
      const auto length = static_cast<std::size_t>(end - text.begin()) - at;
      field = Strip(text.substr(at, length), IsQuote);
      at += length;
    }
    if (!field.empty()) fields.push_back(ToUtf8(field));
  }
  return fields;
}

bool IsDigit(char letter) { return letter >= '0' && letter <= '9'; }

// Takes digits, with single underscores between them, from the front of ``text``.
bool TakeDigits(std::string_view *text) {
  std::size_t at = 0;
  while (at < text->size() && (IsDigit((*text)[at]) || (at > 0 && (*text)[at] == '_' && IsDigit((*text)[at - 1]) &&
                                                        at + 1 < text->size() && IsDigit((*text)[at + 1])))) {
    ++at;
  }
  text->remove_prefix(at);
  return at > 0;
}

bool Take(std::string_view *text, std::string_view letters) {
  const bool is_there = !text->empty() && letters.find(text->front()) != std::string_view::npos;
  if (is_there) text->remove_prefix(1);
  return is_there;
}

}  // namespace

std::vector<Line> ReadFields(const std::filesystem::path &path) {
  const std::vector<std::uint8_t> data = ReadFile(path);
  const bool is_wide =
      data.size() >= 2 && ((data[0] == 0xFE && data[1] == 0xFF) || (data[0] == 0xFF && data[1] == 0xFE));
  std::u32string text =
      is_wide ? FromUtf16(data) : FromUtf8({reinterpret_cast<const char *>(data.data()), data.size()});
  text.erase(std::remove(text.begin(), text.end(), kByteOrderMark), text.end());  // anywhere: programs join files
  std::vector<Line> lines;
  std::size_t number = 0;
  for (auto start = text.cbegin(); start != text.cend();) {
    const auto end = std::find_if(start, text.cend(), EndsLine);
    ++number;
    const std::u32string line(start, end);
    const std::u32string_view stripped = Strip(line, IsSpace);
    if (!stripped.empty() && stripped.front() != U'#') {
      lines.push_back({number, SplitFields(std::u32string(stripped))});
    }
    start = end;
    if (start != text.cend()) {
      const bool is_pair = *start == U'\r' && start + 1 != text.cend() && *(start + 1) == U'\n';
      start += is_pair ? 2 : 1;
    }
  }
  if (lines.empty()) throw RunError(path.string() + ": expected a list with at least one line, found none");
  return lines;
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char letter) { return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter; });
  return lower;
}

bool IsNumber(std::string_view text) {
  const std::u32string letters = FromUtf8(text);
  const std::string stripped = ToUtf8(Strip(letters, IsSpace));
  std::string_view field = stripped;
  Take(&field, "+-");
  const std::string word = Lower(field);
  if (word == "nan" || word == "inf" || word == "infinity") return true;
  const bool has_whole = TakeDigits(&field);
  const bool has_fraction = Take(&field, ".") && TakeDigits(&field);
  if (!has_whole && !has_fraction) return false;
  if (Take(&field, "eE")) {
    Take(&field, "+-");
    if (!TakeDigits(&field)) return false;
  }
  return field.empty();
}

}  // namespace midas
