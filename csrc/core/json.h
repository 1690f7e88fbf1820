// Strict JSON (RFC 8259): a pull reader, a value, and a writer.
//
// Text must be valid UTF-8 without duplicate keys; numbers must be finite; what does not follow the
// grammar to the letter is a ValueError that names the byte. Time is O(n log n), nesting is
// limited.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace thalweg {

// Reads one document from front to back; its own memory does not grow with the text.
class JsonReader {
 public:
  static constexpr int kMaxDepth = 64;
  enum class Token { kNull, kBoolean, kNumber, kString, kArray, kObject };

  // The text is borrowed. A string of more than `max_string` bytes is an error.
  explicit JsonReader(std::string_view text, std::size_t max_string = std::string_view::npos)
      : text_(text), max_string_(max_string) {}

  // What kind of value stands next.
  Token peek();

  void read_null();
  bool read_boolean();
  std::string read_string();
  // The characters of a number.
  std::string_view read_number();
  std::int64_t read_int64();

  // begin_object(); while (auto key = next_key()) read a value; the object is closed by the
  // nullopt. Duplicate keys are the caller's to find.
  void begin_object();
  std::optional<std::string> next_key();
  // begin_array(); while (next_element()) read a value.
  void begin_array();
  bool next_element();

  // Nothing but white space follows.
  void finish();

  // Of the next character to read.
  std::size_t position() const { return position_; }
  [[noreturn]] void fail(std::string_view expected);

 private:
  char current() const { return position_ < text_.size() ? text_[position_] : '\0'; }
  bool at_end() const { return position_ >= text_.size(); }
  void skip_space();
  void expect_word(std::string_view word);
  void enter(char bracket);
  bool continues(char closing);
  void append_escape(std::string& out);
  std::uint32_t read_hex4();

  std::string_view text_;
  std::size_t max_string_;
  std::size_t position_ = 0;
  int depth_ = 0;
  bool first_ = false;  // no element of the innermost open container was read yet
};

// A value. Objects keep their order. Whole numbers that fit stay exact 64-bit integers.
class Json {
 public:
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;

  Json(std::nullptr_t = nullptr);
  Json(bool value);
  Json(int value);
  Json(std::int64_t value);
  Json(std::uint64_t value);
  Json(double value);
  Json(const char* value);
  Json(std::string_view value);
  Json(std::string value);
  Json(Array value);
  Json(Object value);

  // ValueError for text longer than `max_bytes`: a value takes up to 40 times the memory of its
  // text.
  static Json parse(std::string_view text, std::size_t max_bytes = kMaxBytes);
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 20;

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  // Any number.
  std::optional<double> number() const;
  // A whole number of that range, also when written as 1e3 or 2.0.
  std::optional<std::int64_t> int64() const;
  std::optional<std::uint64_t> uint64() const;

  // The member of an object, or null. Linear.
  const Json* find(std::string_view key) const;

  // "null", "a boolean", "a number", "a string", "an array", "an object"
  const char* kind() const;
  // Compact text; numbers are the shortest that read back as the same value. ValueError for a
  // number that is not finite or a string that is not UTF-8.
  std::string text() const;

  friend bool operator==(const Json&, const Json&);

 private:
  static Json read(JsonReader& reader);
  void append(std::string& out) const;

  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array,
               Object>
      value_;
};

struct Json::Member {
  std::string key;
  Json value;
  friend bool operator==(const Member&, const Member&) = default;
};

// Not in the class, where Member is incomplete.
inline Json::Json(std::nullptr_t) {}
inline Json::Json(bool value) : value_(value) {}
inline Json::Json(int value) : value_(std::int64_t{value}) {}
inline Json::Json(std::int64_t value) : value_(value) {}
inline Json::Json(std::uint64_t value) : value_(value) {}
inline Json::Json(double value) : value_(value) {}
inline Json::Json(const char* value) : value_(std::string(value)) {}
inline Json::Json(std::string_view value) : value_(std::string(value)) {}
inline Json::Json(std::string value) : value_(std::move(value)) {}
inline Json::Json(Array value) : value_(std::move(value)) {}
inline Json::Json(Object value) : value_(std::move(value)) {}

// An object from keys and values by turns. Not from a braced list of members: code of g++ 12 for
// one destroys what was never built when an allocation in it fails.
template <class... KeysAndValues>
Json::Object json_object(KeysAndValues&&... keys_and_values) {
  Json::Object object;
  const auto append = [&object](auto&& self, std::string_view key, Json value,
                                auto&&... rest) -> void {
    object.push_back({std::string(key), std::move(value)});
    if constexpr (sizeof...(rest) > 0) self(self, std::forward<decltype(rest)>(rest)...);
  };
  append(append, std::forward<KeysAndValues>(keys_and_values)...);
  return object;
}
inline bool operator==(const Json& a, const Json& b) { return a.value_ == b.value_; }

// `text` in quotes with JSON's escapes; ValueError when it is not UTF-8.
void append_json_string(std::string& out, std::string_view text);
// Any bytes for a message: in quotes, escaped, valid UTF-8, cut after about `limit` bytes.
std::string quoted(std::string_view text, std::size_t limit = 60);

}  // namespace thalweg
