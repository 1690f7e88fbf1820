// Reading and writing of safetensors files: header, checksum, file system.
#include "training/checkpoint_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/layout.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace thalweg {
namespace {

constexpr std::string_view kMetadata = "__metadata__";
constexpr std::string_view kFormatKey = "format";
constexpr std::string_view kChecksumKey = "crc32c";
constexpr std::size_t kChecksumDigits = 8;
constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeader = 100'000'000;
// What a header may make the reader allocate: all tables together, and one string.
constexpr std::size_t kMaxTables = std::size_t{24} << 20;
constexpr std::size_t kMaxString = std::size_t{8} << 20;
// Tensors are aligned to this in memory; in files, by writing large elements first.
constexpr std::int64_t kAlignment = 8;

struct StoredType {
  DType dtype;
  const char* name;
};

constexpr StoredType kStoredTypes[] = {
    {DType::kBool, "BOOL"},   {DType::kInt8, "I8"},       {DType::kInt16, "I16"},
    {DType::kInt32, "I32"},   {DType::kInt64, "I64"},     {DType::kUInt8, "U8"},
    {DType::kUInt16, "U16"},  {DType::kUInt32, "U32"},    {DType::kUInt64, "U64"},
    {DType::kFloat16, "F16"}, {DType::kBFloat16, "BF16"}, {DType::kFloat32, "F32"},
    {DType::kFloat64, "F64"},
};

const char* stored_name(DType dtype) {
  for (const StoredType& type : kStoredTypes) {
    if (type.dtype == dtype) return type.name;
  }
  throw InternalError(
      concat("[checkpoint] no safetensors name for dtype ", static_cast<int>(dtype)));
}

// Errors are thrown without the path; the two entry points add it.
[[noreturn]] void fail_system(std::string_view operation, int error) {
  throw CheckpointError(concat(operation, " failed: ", std::generic_category().message(error)));
}

// Repeats a call that a signal interrupted.
template <class Call>
auto retry(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// Product of the shape and the element size; -1 when it leaves 63 bits. Zeros do not excuse the
// other dimensions.
std::int64_t bytes_of(const std::vector<std::int64_t>& shape, DType dtype) {
  std::int64_t bytes = item_size(dtype);
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) return -1;
    empty |= extent == 0;
    if (extent != 0 && __builtin_mul_overflow(bytes, extent, &bytes)) return -1;
  }
  return empty ? 0 : bytes;
}

constexpr std::string_view kHexDigits = "0123456789abcdef";

// All digits of a number, lower case.
template <class Number>
std::string hex(Number number) {
  std::string text(2 * sizeof(Number), '0');
  for (std::size_t i = text.size(); i-- > 0; number >>= 4) text[i] = kHexDigits[number & 15];
  return text;
}

// ---- CRC32C

constexpr std::uint32_t kReversedPolynomial = 0x82f63b78;

// table[k][b]: the CRC of byte b followed by k zero bytes.
constexpr auto kCrcTables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kReversedPolynomial : 0);
    table[0][byte] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t crc = table[k - 1][byte];
      table[k][byte] = (crc >> 8) ^ table[0][crc & 255];
    }
  }
  return table;
}();

std::uint32_t crc32c_by_table(std::uint32_t crc, const unsigned char* data, std::size_t size) {
  for (; size >= 8; size -= 8, data += 8) {
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < 8; ++i)
      next ^= kCrcTables[7 - i][(i < 4 ? data[i] ^ (crc >> (8 * i)) : data[i]) & 255];
    crc = next;
  }
  for (; size > 0; --size) crc = (crc >> 8) ^ kCrcTables[0][(crc ^ *data++) & 255];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t crc32c_by_instruction(std::uint32_t crc,
                                                                      const unsigned char* data,
                                                                      std::size_t size) {
  std::uint64_t wide = crc;
  for (; size >= 8; size -= 8, data += 8) {
    std::uint64_t word;
    std::memcpy(&word, data, sizeof(word));
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<std::uint32_t>(wide);
  for (; size > 0; --size) crc = _mm_crc32_u8(crc, *data++);
  return crc;
}
#endif

// ---- Reading

void read_exactly(int fd, std::uint64_t offset, void* out, std::size_t size) {
  char* at = static_cast<char*>(out);
  while (size > 0) {
    const std::size_t part = std::min(size, std::size_t{1} << 30);
    const ssize_t got = retry([&] { return ::pread(fd, at, part, static_cast<off_t>(offset)); });
    if (got < 0) fail_system("read", errno);
    if (got == 0)
      throw CheckpointError(
          concat("expected ", size, " more bytes at byte ", offset, ", got the end"));
    at += got;
    size -= static_cast<std::size_t>(got);
    offset += static_cast<std::uint64_t>(got);
  }
}

struct ReadTensor {
  StoredTensor tensor;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// The header as far as it can be checked without the data.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : text_(text), json_(text, kMaxString) {}

  void read() {
    if (!text_.starts_with('{')) json_.fail("'{' at the start of the header");
    json_.begin_object();
    bool has_metadata = false;
    while (auto key = json_.next_key()) {
      if (*key != kMetadata) {
        read_tensor(*std::move(key));
        continue;
      }
      if (std::exchange(has_metadata, true))
        throw CheckpointError("expected one __metadata__, got two");
      read_metadata();
    }
    json_.finish();
    check_names();
  }

  std::map<std::string, std::string> metadata;
  std::vector<ReadTensor> tensors;
  // Where the checksum's digits begin in the header; npos when there is none of the right length.
  std::size_t checksum_position = std::string_view::npos;

 private:
  void charge(std::size_t bytes) {
    charged_ += bytes;
    if (charged_ > kMaxTables) {
      throw CheckpointError(concat("expected tables of at most ", kMaxTables >> 20,
                                   " MiB, got more by ", tensors.size(), " tensors"));
    }
  }

  void read_metadata() {
    json_.begin_object();
    while (auto key = json_.next_key()) {
      if (json_.peek() != JsonReader::Token::kString) json_.fail("a string");
      const std::size_t begin = json_.position() + 1;
      std::string value = json_.read_string();
      const std::size_t end = json_.position() - 1;
      charge(sizeof(std::pair<std::string, std::string>) + 64 + key->size() + value.size());
      if (*key == kChecksumKey && end - begin == kChecksumDigits) checksum_position = begin;
      if (!metadata.emplace(*key, std::move(value)).second)
        throw CheckpointError(
            concat("expected every metadata key once, got ", quoted(*key), " twice"));
    }
  }

  void read_tensor(std::string name) {
    ReadTensor read;
    StoredTensor& tensor = read.tensor;
    const std::string label = "tensor " + quoted(name);
    unsigned seen = 0;
    const auto once = [&](unsigned flag) {
      if ((seen & flag) != 0) throw CheckpointError(concat(label, ": expected every key once"));
      seen |= flag;
    };
    json_.begin_object();
    while (const auto key = json_.next_key()) {
      if (*key == "dtype") {
        once(1);
        tensor.dtype = parse_dtype(json_.read_string(), label);
      } else if (*key == "shape") {
        once(2);
        json_.begin_array();
        while (json_.next_element()) {
          charge(2 * sizeof(std::int64_t));
          tensor.shape.push_back(json_.read_int64());
        }
      } else if (*key == "data_offsets") {
        once(4);
        read_offsets(read);
      } else {
        throw CheckpointError(
            concat(label, ": expected dtype, shape and data_offsets, got ", quoted(*key)));
      }
    }
    if (seen != 7)
      throw CheckpointError(concat(label, ": expected dtype, shape and data_offsets, got fewer"));
    tensor.bytes = bytes_of(tensor.shape, tensor.dtype);
    if (tensor.bytes < 0)
      throw CheckpointError(concat(label, ": expected a shape of fewer than 2^63 bytes, got more"));
    if (read.begin < 0 || read.end < read.begin || read.end - read.begin != tensor.bytes) {
      throw CheckpointError(concat(label, ": expected data_offsets ", tensor.bytes,
                                   " bytes apart, got [", read.begin, ", ", read.end, "]"));
    }
    charge(2 * sizeof(ReadTensor) + name.size());
    tensor.name = std::move(name);
    tensors.push_back(std::move(read));
  }

  void read_offsets(ReadTensor& read) {
    json_.begin_array();
    if (!json_.next_element()) json_.fail("two offsets");
    read.begin = json_.read_int64();
    if (!json_.next_element()) json_.fail("two offsets");
    read.end = json_.read_int64();
    if (json_.next_element()) json_.fail("two offsets");
  }

  static DType parse_dtype(const std::string& name, const std::string& label) {
    std::string known;
    for (const StoredType& type : kStoredTypes) {
      if (name == type.name) return type.dtype;
      known += concat(known.empty() ? "" : ", ", type.name);
    }
    throw CheckpointError(concat(label, ": expected a dtype of ", known, ", got ", quoted(name)));
  }

  void check_names() const {
    std::vector<std::string_view> names;
    names.reserve(tensors.size());
    for (const ReadTensor& read : tensors) names.push_back(read.tensor.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end())
      throw CheckpointError(concat("expected every tensor once, got ", quoted(*twice), " twice"));
  }

  std::string_view text_;
  JsonReader json_;
  std::size_t charged_ = 0;
};

// Orders the tensors by their data and checks that they cover it without gap or overlap.
void check_coverage(std::vector<ReadTensor>& tensors, std::int64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const ReadTensor& a, const ReadTensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::int64_t covered = 0;
  for (const ReadTensor& read : tensors) {
    if (read.begin != covered) {
      throw CheckpointError(concat("tensor ", quoted(read.tensor.name),
                                   ": expected data at offset ", covered, ", got ", read.begin));
    }
    covered = read.end;
  }
  if (covered != data_bytes)
    throw CheckpointError(concat("expected ", covered, " bytes of data, got ", data_bytes));
}

FileDescriptor open_regular(const std::string& path, std::uint64_t& size) {
  // Without O_NONBLOCK opening a pipe would wait for its writer.
  FileDescriptor file(
      retry([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
  if (file.get() < 0) fail_system("open", errno);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) fail_system("fstat", errno);
  if (!S_ISREG(status.st_mode)) {
    throw CheckpointError(concat("expected a regular file, got ",
                                 S_ISDIR(status.st_mode) ? "a folder" : "another kind"));
  }
  size = static_cast<std::uint64_t>(status.st_size);
  return file;
}

CheckpointFile read_file(const std::string& path, bool require_thalweg) {
  std::uint64_t size = 0;
  const FileDescriptor file = open_regular(path, size);
  if (size < kLengthBytes)
    throw CheckpointError(concat("expected a safetensors file, got ", size, " bytes"));
  unsigned char length_bytes[kLengthBytes];
  read_exactly(file.get(), 0, length_bytes, kLengthBytes);
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= std::uint64_t{length_bytes[i]} << (8 * i);
  const std::uint64_t longest = std::min(size - kLengthBytes, kMaxHeader);
  if (length > longest)
    throw CheckpointError(concat("expected a header of at most ", longest, " bytes, got ", length));

  std::string header(length, '\0');
  read_exactly(file.get(), kLengthBytes, header.data(), header.size());
  HeaderReader parsed(header);
  try {
    parsed.read();
  } catch (const ValueError& error) {
    throw CheckpointError(concat("expected a safetensors header; ", error.what()));
  }
  const std::uint64_t data_offset = kLengthBytes + length;
  check_coverage(parsed.tensors, static_cast<std::int64_t>(size - data_offset));

  const auto format = parsed.metadata.find(std::string(kFormatKey));
  const bool is_thalweg = format != parsed.metadata.end() && format->second == kCheckpointFormat;
  if (require_thalweg && !is_thalweg) {
    throw CheckpointError(concat("expected the format ", kCheckpointFormat, ", got ",
                                 format == parsed.metadata.end() ? "none" : quoted(format->second),
                                 "; weights of other programs come in through load_weights"));
  }
  std::uint32_t crc = 0;
  std::string stored_checksum;
  if (is_thalweg) {
    if (parsed.checksum_position == std::string_view::npos)
      throw CheckpointError("expected a crc32c of 8 digits, got none");
    stored_checksum = header.substr(parsed.checksum_position, kChecksumDigits);
    header.replace(parsed.checksum_position, kChecksumDigits, kChecksumDigits, '0');
    crc = crc32c(crc32c(0, length_bytes, kLengthBytes), header.data(), header.size());
  }
  header = std::string();

  CheckpointFile out;
  out.metadata = std::move(parsed.metadata);
  std::int64_t stored = 0;
  for (const ReadTensor& read : parsed.tensors) stored += round_up(read.tensor.bytes, kAlignment);
  out.storage = Arena<std::byte>(stored);
  out.tensors.reserve(parsed.tensors.size());
  std::byte* at = out.storage.data();
  for (ReadTensor& read : parsed.tensors) {
    StoredTensor& tensor = out.tensors.emplace_back(std::move(read.tensor));
    const auto bytes = static_cast<std::size_t>(tensor.bytes);
    if (bytes == 0) continue;
    read_exactly(file.get(), data_offset + static_cast<std::uint64_t>(read.begin), at, bytes);
    if (is_thalweg) crc = crc32c(crc, at, bytes);
    tensor.data = at;
    at += round_up(tensor.bytes, kAlignment);
  }
  if (is_thalweg) {
    if (stored_checksum != hex(crc)) {
      throw CheckpointError(concat("expected the checksum ", hex(crc), ", got ",
                                   quoted(stored_checksum), "; the file is corrupt"));
    }
  }
  return out;
}

// ---- Writing

// Header text, padded; `checksum_position` is where the digits begin.
std::string header_text(const CheckpointFile& file, const std::vector<const StoredTensor*>& order,
                        std::size_t& checksum_position) {
  std::string out = "{";
  append_json_string(out, kMetadata);
  out += ":{";
  append_json_string(out, kChecksumKey);
  out += ":\"";
  checksum_position = out.size();
  out.append(kChecksumDigits, '0');
  out += "\",";
  append_json_string(out, kFormatKey);
  out += ':';
  append_json_string(out, kCheckpointFormat);
  for (const auto& [key, value] : file.metadata) {
    if (key == kChecksumKey || key == kFormatKey) continue;
    out += ',';
    append_json_string(out, key);
    out += ':';
    append_json_string(out, value);
  }
  out += '}';
  std::int64_t offset = 0;
  for (const StoredTensor* tensor : order) {
    out += ',';
    append_json_string(out, tensor->name);
    out += concat(":{\"dtype\":\"", stored_name(tensor->dtype), "\",\"shape\":[");
    for (std::size_t i = 0; i < tensor->shape.size(); ++i)
      out += concat(i == 0 ? "" : ",", tensor->shape[i]);
    out += concat("],\"data_offsets\":[", offset, ",", offset + tensor->bytes, "]}");
    offset += tensor->bytes;
  }
  out += '}';
  out.append((8 - out.size() % 8) % 8, ' ');
  if (out.size() >= kMaxHeader)
    throw CheckpointError(
        concat("expected a header of less than ", kMaxHeader, " bytes, got ", out.size()));
  return out;
}

// Large elements first, which aligns every tensor in the file.
std::vector<const StoredTensor*> file_order(const CheckpointFile& file) {
  std::vector<const StoredTensor*> order;
  std::vector<std::string_view> names{kMetadata};
  std::int64_t total = 0;
  for (const StoredTensor& tensor : file.tensors) {
    const std::int64_t bytes = bytes_of(tensor.shape, tensor.dtype);
    if (bytes < 0 || tensor.bytes != bytes || __builtin_add_overflow(total, bytes, &total)) {
      throw CheckpointError(concat("tensor ", quoted(tensor.name),
                                   ": expected the bytes of its shape, ", bytes, ", got ",
                                   tensor.bytes));
    }
    order.push_back(&tensor);
    names.push_back(tensor.name);
  }
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end())
    throw CheckpointError(concat("expected every tensor once, got ", quoted(*twice), " twice"));
  std::stable_sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return item_size(a->dtype) > item_size(b->dtype);
  });
  return order;
}

void write_exactly(int fd, const void* data, std::size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const std::size_t part = std::min(size, std::size_t{1} << 30);
    const ssize_t done = retry([&] { return ::write(fd, at, part); });
    if (done < 0) fail_system("write", errno);
    at += done;
    size -= static_cast<std::size_t>(done);
  }
}

struct Location {
  std::string folder;  // with its slash; empty for the current one
  std::string name;

  explicit Location(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    const std::size_t split = slash == std::string::npos ? 0 : slash + 1;
    folder = path.substr(0, split);
    name = path.substr(split);
    if (name.empty()) throw CheckpointError("expected a file name, got none");
  }
  // What the names of this file's temporary files begin with; short enough for what follows.
  std::string temporary_prefix() const { return "." + name.substr(0, 200) + "."; }
  const char* folder_path() const { return folder.empty() ? "." : folder.c_str(); }
};

constexpr std::string_view kTemporarySuffix = ".tmp";

// A locked temporary file. The lock tells a living writer from a dead one; it dies with its
// process.
class TemporaryFile {
 public:
  explicit TemporaryFile(const Location& location) : file_(create(location, path_)) {}
  ~TemporaryFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  int fd() const { return file_.get(); }

  void sync() {
    if (retry([&] { return ::fsync(fd()); }) != 0) fail_system("fsync", errno);
  }

  void rename_to(const std::string& target) {
    if (::rename(path_.c_str(), target.c_str()) != 0) fail_system("rename", errno);
    path_.clear();
  }

 private:
  static FileDescriptor create(const Location& location, std::string& path) {
    static std::atomic<std::uint64_t> serial{0};
    while (true) {
      const auto now = std::chrono::system_clock::now().time_since_epoch().count();
      const auto unique = static_cast<std::uint64_t>(now) + serial.fetch_add(1);
      path = concat(location.folder, location.temporary_prefix(), ::getpid(), ".", hex(unique),
                    kTemporarySuffix);
      FileDescriptor file(retry(
          [&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }));
      if (file.get() < 0) {
        if (errno == EEXIST) continue;
        fail_system("open", errno);
      }
      // File systems without locks still get a correct file.
      retry([&] { return ::flock(file.get(), LOCK_EX); });
      struct stat status{};
      if (::fstat(file.get(), &status) != 0 || status.st_nlink > 0) return file;
      // Another writer took the file for a dead one before it was locked.
    }
  }

  std::string path_;
  FileDescriptor file_;
};

// Whether `name` is the prefix, a process id, a dot, 16 digits and the suffix.
bool is_temporary(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix) || !name.ends_with(kTemporarySuffix)) return false;
  name.remove_prefix(prefix.size());
  const std::size_t dot = name.find('.');
  return name.find_first_not_of("0123456789") == dot &&
         name.size() == dot + 17 + kTemporarySuffix.size() &&
         name.substr(dot + 1, 16).find_first_not_of(kHexDigits) == std::string_view::npos;
}

// Removes what writers of the same file left when they were killed.
void remove_stale_temporaries(const Location& location) {
  const auto close = [](DIR* open) { ::closedir(open); };
  const std::unique_ptr<DIR, decltype(close)> folder(::opendir(location.folder_path()));
  if (folder == nullptr) return;
  const std::string prefix = location.temporary_prefix();
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string_view name = entry->d_name;
    if (!is_temporary(name, prefix)) continue;
    const std::string path = location.folder + entry->d_name;
    const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
    if (file.get() >= 0 && ::flock(file.get(), LOCK_EX | LOCK_NB) == 0) ::unlink(path.c_str());
  }
}

void sync_folder(const Location& location) {
  const FileDescriptor folder(
      retry([&] { return ::open(location.folder_path(), O_RDONLY | O_CLOEXEC | O_DIRECTORY); }));
  if (folder.get() < 0) fail_system("open of the folder", errno);
  // Some file systems cannot do it and say EINVAL.
  if (retry([&] { return ::fsync(folder.get()); }) != 0 && errno != EINVAL && errno != ENOTSUP)
    fail_system("fsync of the folder", errno);
}

void write_file(const std::string& path, const CheckpointFile& file) {
  const Location location(path);
  const std::vector<const StoredTensor*> order = file_order(file);
  std::size_t checksum_position = 0;
  std::string header = header_text(file, order, checksum_position);
  unsigned char length_bytes[kLengthBytes];
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length_bytes[i] = static_cast<unsigned char>(header.size() >> (8 * i));
  std::uint32_t crc = crc32c(crc32c(0, length_bytes, kLengthBytes), header.data(), header.size());
  for (const StoredTensor* tensor : order)
    crc = crc32c(crc, tensor->data, static_cast<std::size_t>(tensor->bytes));
  header.replace(checksum_position, kChecksumDigits, hex(crc));

  remove_stale_temporaries(location);
  TemporaryFile temporary(location);
  write_exactly(temporary.fd(), length_bytes, kLengthBytes);
  write_exactly(temporary.fd(), header.data(), header.size());
  for (const StoredTensor* tensor : order)
    write_exactly(temporary.fd(), tensor->data, static_cast<std::size_t>(tensor->bytes));
  temporary.sync();
  temporary.rename_to(path);
  sync_folder(location);
}

// A null byte would cut the path short in system calls.
void check_path(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos)
    throw CheckpointError("expected a path that is not empty and has no null byte");
}

std::string located(std::string_view operation, const std::string& path, const char* what) {
  return concat("[", operation, "] ", quoted(path, 4096), ": ", what);
}

}  // namespace

const StoredTensor* CheckpointFile::find(std::string_view name) const {
  for (const StoredTensor& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return ~crc32c_by_instruction(~crc, bytes, size);
#endif
  return ~crc32c_by_table(~crc, bytes, size);
}

void write_checkpoint_file(const std::string& path, const CheckpointFile& file) {
  try {
    check_path(path);
    write_file(path, file);
  } catch (const Error& error) {
    throw CheckpointError(located("save", path, error.what()));
  }
}

CheckpointFile read_checkpoint_file(const std::string& path, bool require_thalweg) {
  try {
    check_path(path);
    return read_file(path, require_thalweg);
  } catch (const Error& error) {
    throw CheckpointError(located("load", path, error.what()));
  }
}

}  // namespace thalweg
