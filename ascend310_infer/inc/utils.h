// What every part of the runner uses: its errors, files, and what libraries say on stderr.
#ifndef ASCEND310_INFER_INC_UTILS_H_
#define ASCEND310_INFER_INC_UTILS_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace midas {

// An anticipated fault of the run. Its text is one line: file, what was expected, what was found.
class RunError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A wrong command line.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Prints one line on stderr. Bytes that would break a line or steer a terminal are escaped.
void PrintLine(std::string_view kind, std::string_view text);

// Whether there is a file (or a link to one) of this name; false for names that no file can have.
bool IsFile(const std::filesystem::path &path);

// Throws RunError where the file cannot be read.
std::vector<std::uint8_t> ReadFile(const std::filesystem::path &path);

// Writes a file that is never seen half written: under a hidden name beside it, then renamed. Makes its folder.
// Throws RunError where it cannot be written.
void WriteFile(const std::filesystem::path &path, const void *data, std::size_t size);

// Makes a folder, if need be, and throws RunError unless a file can be written in it.
void RequireWritable(const std::filesystem::path &folder);

// Keeps what libraries write to stderr in this process while it exists.
class CapturedStderr {
 public:
  CapturedStderr();
  ~CapturedStderr();
  CapturedStderr(const CapturedStderr &) = delete;
  CapturedStderr &operator=(const CapturedStderr &) = delete;

  // What has been written so far.
  std::string Text() const;

 private:
  int stderr_ = -1;
  int file_ = -1;
};

}  // namespace midas

#endif  // ASCEND310_INFER_INC_UTILS_H_
