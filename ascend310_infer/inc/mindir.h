// What can be told of a MINDIR file without loading it.
#ifndef ASCEND310_INFER_INC_MINDIR_H_
#define ASCEND310_INFER_INC_MINDIR_H_

#include <cstdint>
#include <filesystem>
#include <string>

namespace midas {

struct MindirFacts {
  std::uint64_t version = 0;  // mind_ir_version; 0 where the file does not say
  std::string release;        // release of MindSpore that wrote it; "" where the file does not say
};

// Reads the frame of a MINDIR file, which the libraries that load it trust.
// Throws RunError where the file cannot be read, is truncated, damaged or of another kind, and names that kind.
MindirFacts InspectMindir(const std::filesystem::path &path);

}  // namespace midas

#endif  // ASCEND310_INFER_INC_MINDIR_H_
