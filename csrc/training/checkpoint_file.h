// The checkpoint container: a safetensors file with a checksum, written atomically.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/array_view.h"
#include "core/export.h"

namespace thalweg {

struct StoredTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;  // contiguous, little endian; on reading it is aligned, in `storage`
  std::int64_t bytes = 0;
};

struct CheckpointFile {
  std::map<std::string, std::string> metadata;
  std::vector<StoredTensor> tensors;  // after reading: in the order of their data in the file
  Arena<std::byte> storage;           // owns what tensors point to after reading

  const StoredTensor* find(std::string_view name) const;
};

// The value of the metadata key "format".
inline constexpr const char* kCheckpointFormat = "thalweg.1";

// Temporary file in the same folder, fsync, rename, fsync of the folder; also removes temporary
// files of the same name whose writers died. Sets the metadata keys "format" and "crc32c".
// CheckpointError on any failure; an older file of that name stays intact (after a failed fsync of
// the folder, the complete new one may stand in its place).
TW_INTERNAL_API void write_checkpoint_file(const std::string& path, const CheckpointFile& file);

// require_thalweg: want the format key and its checksum; otherwise any valid safetensors file (the
// checksum is compared where the format key is present). Trusts nothing in the file:
// CheckpointError for whatever is wrong with it, memory at most the size of the file and 64 MiB.
TW_INTERNAL_API CheckpointFile read_checkpoint_file(const std::string& path, bool require_thalweg);

// CRC32C (Castagnoli) of `data` appended to what gave `crc` (0 at the start), by the processor's
// instruction where it has one.
TW_INTERNAL_API std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size);

}  // namespace thalweg
