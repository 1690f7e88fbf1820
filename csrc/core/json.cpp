// JSON reading by recursive descent over the pull reader, and writing.
#include "core/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace thalweg {
namespace {

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_hex_byte(std::string& out, unsigned char byte) {
  constexpr char kDigits[] = "0123456789abcdef";
  out += kDigits[byte >> 4];
  out += kDigits[byte & 15];
}

void append_utf8(std::string& out, std::uint32_t code) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | (code >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xf0 | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

// Length of the well-formed UTF-8 sequence that `text` begins with (Unicode 15, table 3-7), or 0.
std::size_t utf8_sequence(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead < 0xc2   ? 0
                             : lead < 0xe0 ? 2
                             : lead < 0xf0 ? 3
                             : lead < 0xf5 ? 4
                                           : 0;
  if (length == 0) return 0;
  const unsigned lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < lowest || byte(1) > highest) return 0;
  for (std::size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xbf) return 0;
  }
  return length;
}

// One character, as it stands in a JSON string.
void append_escaped(std::string& out, std::string_view character) {
  const auto c = static_cast<unsigned char>(character.front());
  if (c == '"' || c == '\\') {
    out += '\\';
    out += character;
  } else if (c == '\n') {
    out += "\\n";
  } else if (c < 0x20) {
    out += "\\u00";
    append_hex_byte(out, c);
  } else {
    out += character;
  }
}

}  // namespace

void JsonReader::fail(std::string_view expected) {
  std::string actual;
  if (at_end()) {
    actual = "the end of the text";
  } else if (const char c = current(); c > ' ' && c < '\x7f') {
    actual = {'\'', c, '\''};
  } else {
    actual = "byte 0x";
    append_hex_byte(actual, static_cast<unsigned char>(c));
  }
  throw ValueError(concat("[json] expected ", expected, " at byte ", position_, ", got ", actual));
}

void JsonReader::skip_space() {
  while (!at_end() &&
         (current() == ' ' || current() == '\n' || current() == '\r' || current() == '\t'))
    ++position_;
}

void JsonReader::expect_word(std::string_view word) {
  skip_space();
  if (text_.substr(position_, word.size()) != word) fail(concat("'", word, "'"));
  position_ += word.size();
}

JsonReader::Token JsonReader::peek() {
  skip_space();
  switch (current()) {
    case 'n':
      return Token::kNull;
    case 't':
    case 'f':
      return Token::kBoolean;
    case '"':
      return Token::kString;
    case '[':
      return Token::kArray;
    case '{':
      return Token::kObject;
    default:
      if (current() == '-' || is_digit(current())) return Token::kNumber;
      fail("a value");
  }
}

void JsonReader::read_null() { expect_word("null"); }

bool JsonReader::read_boolean() {
  const bool value = peek() == Token::kBoolean && current() == 't';
  expect_word(value ? "true" : "false");
  return value;
}

std::string_view JsonReader::read_number() {
  skip_space();
  const std::size_t begin = position_;
  const auto digits = [&] {
    if (!is_digit(current())) fail("a digit");
    while (is_digit(current())) ++position_;
  };
  if (current() == '-') ++position_;
  if (current() == '0') {
    ++position_;
  } else {
    digits();
  }
  if (current() == '.') {
    ++position_;
    digits();
  }
  if (current() == 'e' || current() == 'E') {
    ++position_;
    if (current() == '+' || current() == '-') ++position_;
    digits();
  }
  return text_.substr(begin, position_ - begin);
}

std::int64_t JsonReader::read_int64() {
  skip_space();
  const std::size_t begin = position_;
  const std::string_view digits = read_number();
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || end != digits.data() + digits.size()) {
    position_ = begin;
    fail("a 64-bit integer");
  }
  return value;
}

std::uint32_t JsonReader::read_hex4() {
  std::uint32_t code = 0;
  const std::string_view digits = text_.substr(position_, 4);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
  if (digits.size() != 4 || error != std::errc{} || end != digits.data() + 4)
    fail("four hexadecimal digits");
  position_ += 4;
  return code;
}

// The part of an escape after the backslash.
void JsonReader::append_escape(std::string& out) {
  constexpr std::string_view kNames = "\"\\/bfnrt";
  constexpr std::string_view kCharacters = "\"\\/\b\f\n\r\t";
  if (const std::size_t i = kNames.find(current()); !at_end() && i != std::string_view::npos) {
    out += kCharacters[i];
    ++position_;
    return;
  }
  if (current() != 'u') fail("an escape");
  ++position_;
  std::uint32_t code = read_hex4();
  if (code >= 0xd800 && code < 0xe000) {
    if (code >= 0xdc00 || text_.substr(position_, 2) != "\\u") fail("a surrogate pair");
    position_ += 2;
    const std::uint32_t low = read_hex4();
    if (low < 0xdc00 || low >= 0xe000) fail("a surrogate pair");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(out, code);
}

std::string JsonReader::read_string() {
  skip_space();
  if (current() != '"') fail("a string");
  ++position_;
  std::string out;
  while (current() != '"') {
    if (at_end()) fail("'\"'");
    if (out.size() >= max_string_) fail(concat("a string of at most ", max_string_, " bytes"));
    if (static_cast<unsigned char>(current()) < 0x20) fail("an escaped control character");
    if (current() == '\\') {
      ++position_;
      append_escape(out);
      continue;
    }
    const std::size_t length = utf8_sequence(text_.substr(position_, 4));
    if (length == 0) fail("UTF-8");
    out += text_.substr(position_, length);
    position_ += length;
  }
  ++position_;
  return out;
}

void JsonReader::enter(char bracket) {
  skip_space();
  if (current() != bracket) fail(bracket == '{' ? "an object" : "an array");
  if (depth_ == kMaxDepth) fail(concat("at most ", int{kMaxDepth}, " levels of nesting"));
  ++position_;
  ++depth_;
  first_ = true;
}

// Steps over the comma before the next element, or over the closing bracket.
bool JsonReader::continues(char closing) {
  skip_space();
  if (current() == closing) {
    ++position_;
    --depth_;
    first_ = false;
    return false;
  }
  if (!first_) {
    if (current() != ',') fail(closing == '}' ? "',' or '}'" : "',' or ']'");
    ++position_;
    skip_space();
  }
  first_ = false;
  return true;
}

void JsonReader::begin_object() { enter('{'); }

std::optional<std::string> JsonReader::next_key() {
  if (!continues('}')) return std::nullopt;
  std::string key = read_string();
  expect_word(":");
  return key;
}

void JsonReader::begin_array() { enter('['); }

bool JsonReader::next_element() { return continues(']'); }

void JsonReader::finish() {
  skip_space();
  if (!at_end()) fail("the end of the text");
}

Json Json::parse(std::string_view text, std::size_t max_bytes) {
  expect<ValueError>(text.size() <= max_bytes, "[json] expected at most ", max_bytes,
                     " bytes of text, got ", text.size());
  JsonReader reader(text);
  Json value = read(reader);
  reader.finish();
  return value;
}

Json Json::read(JsonReader& reader) {
  switch (reader.peek()) {
    case JsonReader::Token::kNull:
      reader.read_null();
      return nullptr;
    case JsonReader::Token::kBoolean:
      return reader.read_boolean();
    case JsonReader::Token::kString:
      return reader.read_string();
    case JsonReader::Token::kNumber: {
      const std::string_view number = reader.read_number();
      const char* const end = number.data() + number.size();
      const auto parsed = [&](auto& value) {
        const auto result = std::from_chars(number.data(), end, value);
        return result.ec == std::errc{} && result.ptr == end;
      };
      std::int64_t integer = 0;
      std::uint64_t natural = 0;
      double real = 0.0;
      if (number != "-0" && parsed(integer)) return integer;
      if (parsed(natural)) return natural;
      if (!parsed(real)) reader.fail("a number that fits a double");
      return real;
    }
    case JsonReader::Token::kArray: {
      Array elements;
      reader.begin_array();
      while (reader.next_element()) elements.push_back(read(reader));
      return elements;
    }
    case JsonReader::Token::kObject: {
      Object members;
      reader.begin_object();
      while (auto key = reader.next_key()) members.push_back({*std::move(key), read(reader)});
      std::vector<std::string_view> keys;
      keys.reserve(members.size());
      for (const Member& member : members) keys.push_back(member.key);
      std::sort(keys.begin(), keys.end());
      const auto twice = std::adjacent_find(keys.begin(), keys.end());
      if (twice != keys.end()) {
        throw ValueError(concat("[json] expected every key once in the object that ends at byte ",
                                reader.position(), ", got ", quoted(*twice), " twice"));
      }
      return members;
    }
  }
  return nullptr;
}

std::optional<double> Json::number() const {
  if (const auto* value = std::get_if<std::int64_t>(&value_)) return static_cast<double>(*value);
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) return static_cast<double>(*value);
  if (const auto* value = std::get_if<double>(&value_)) return *value;
  return std::nullopt;
}

std::optional<std::int64_t> Json::int64() const {
  if (const auto* value = std::get_if<std::int64_t>(&value_)) return *value;
  if (const auto* value = std::get_if<double>(&value_)) {
    if (*value >= -0x1p63 && *value < 0x1p63 && *value == std::trunc(*value))
      return static_cast<std::int64_t>(*value);
  }
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) {
    if (*value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      return static_cast<std::int64_t>(*value);
  }
  return std::nullopt;
}

std::optional<std::uint64_t> Json::uint64() const {
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) return *value;
  if (const auto* value = std::get_if<double>(&value_)) {
    if (*value >= 0x1p63 && *value < 0x1p64) return static_cast<std::uint64_t>(*value);
  }
  const std::optional<std::int64_t> value = int64();
  if (value && *value >= 0) return static_cast<std::uint64_t>(*value);
  return std::nullopt;
}

const Json* Json::find(std::string_view key) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  for (const Member& member : *members) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

const char* Json::kind() const {
  constexpr const char* kKinds[] = {"null",     "a boolean", "a number", "a number",
                                    "a number", "a string",  "an array", "an object"};
  return kKinds[value_.index()];
}

std::string Json::text() const {
  std::string out;
  append(out);
  return out;
}

void Json::append(std::string& out) const {
  if (is_null()) {
    out += "null";
  } else if (const bool* truth = boolean()) {
    append_text(out, *truth);
  } else if (const auto* integer = std::get_if<std::int64_t>(&value_)) {
    append_text(out, *integer);
  } else if (const auto* natural = std::get_if<std::uint64_t>(&value_)) {
    append_text(out, *natural);
  } else if (const auto* real = std::get_if<double>(&value_)) {
    expect<ValueError>(std::isfinite(*real), "[json] expected a finite number, got ", *real);
    append_text(out, *real);
  } else if (const std::string* characters = string()) {
    append_json_string(out, *characters);
  } else if (const Array* elements = array()) {
    out += '[';
    for (const Json& element : *elements) {
      if (&element != elements->data()) out += ',';
      element.append(out);
    }
    out += ']';
  } else {
    out += '{';
    for (const Member& member : *object()) {
      if (&member != object()->data()) out += ',';
      append_json_string(out, member.key);
      out += ':';
      member.value.append(out);
    }
    out += '}';
  }
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  while (!text.empty()) {
    const std::size_t length = utf8_sequence(text);
    expect<ValueError>(length != 0, "[json] expected text in UTF-8, got ", quoted(text));
    append_escaped(out, text.substr(0, length));
    text.remove_prefix(length);
  }
  out += '"';
}

std::string quoted(std::string_view text, std::size_t limit) {
  std::string out = "\"";
  while (!text.empty() && out.size() <= limit) {
    const std::size_t length = utf8_sequence(text);
    if (length == 0) {
      out += "\\x";
      append_hex_byte(out, static_cast<unsigned char>(text.front()));
    } else {
      append_escaped(out, text.substr(0, length));
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  out += text.empty() ? "\"" : "...\"";
  return out;
}

}  // namespace thalweg
