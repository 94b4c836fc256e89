#include "inc/utils.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <system_error>

namespace midas {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void Fail(const fs::path &path, const char *what, int error) {
  throw RunError(path.string() + ": " + what + ": " + std::generic_category().message(error));
}

// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor &) = delete;
  Descriptor &operator=(const Descriptor &) = delete;
  int get() const { return number_; }

 private:
  int number_;
};

// Deletes a file unless it has been renamed.
class Temporary {
 public:
  explicit Temporary(fs::path path) : path_(std::move(path)) {}
  ~Temporary() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  Temporary(const Temporary &) = delete;
  Temporary &operator=(const Temporary &) = delete;
  const fs::path &path() const { return path_; }

 private:
  fs::path path_;
};

void MakeFolder(const fs::path &folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error || !fs::is_directory(folder, error)) {
    throw RunError(folder.string() + ": expected a folder that can be written to, found none: " +
                   (error ? error : std::make_error_code(std::errc::not_a_directory)).message());
  }
}

// Short, since the name of the file itself may be as long as the file system allows.
fs::path HiddenName(const fs::path &folder) { return folder / ("." + std::to_string(getpid()) + ".tmp"); }

}  // namespace

void PrintLine(std::string_view kind, std::string_view text) {
  std::string line(kind);
  line += ": ";
  for (const char letter : text) {
    const auto byte = static_cast<unsigned char>(letter);
    if (byte < 0x20 || byte == 0x7f) {
      std::array<char, 5> escaped{};
      std::snprintf(escaped.data(), escaped.size(), "\\x%02x", static_cast<unsigned int>(byte));
      line += escaped.data();
    } else {
      line += letter;
    }
  }
  line += '\n';
  std::fflush(stdout);
  std::fputs(line.c_str(), stderr);
}

bool IsFile(const fs::path &path) {
  std::error_code ignored;
  return path.native().find('\0') == std::string::npos && fs::is_regular_file(path, ignored);
}

std::vector<std::uint8_t> ReadFile(const fs::path &path) {
  if (path.native().find('\0') != std::string::npos) Fail(path, "cannot be read", EINVAL);
  const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) Fail(path, "cannot be read", errno);
  std::vector<std::uint8_t> data;
  std::error_code unknown;
  const std::uintmax_t size_hint = fs::file_size(path, unknown);
  if (!unknown) data.reserve(size_hint);
  std::array<std::uint8_t, 1U << 16U> block;
  while (const std::size_t size = std::fread(block.data(), 1, block.size(), file.get())) {
    data.insert(data.end(), block.begin(), block.begin() + static_cast<std::ptrdiff_t>(size));
  }
  if (std::ferror(file.get()) != 0) Fail(path, "cannot be read", errno);
  return data;
}

void WriteFile(const fs::path &path, const void *data, std::size_t size) {
  MakeFolder(path.parent_path());
  const Temporary temporary(HiddenName(path.parent_path()));
  {
    const Descriptor file(open(temporary.path().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (file.get() < 0) Fail(path, "cannot be written", errno);
    const auto *next = static_cast<const char *>(data);
    while (size > 0) {
      const ssize_t written = write(file.get(), next, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) Fail(path, "cannot be written", errno);
      next += written;
      size -= static_cast<std::size_t>(written);
    }
    if (fsync(file.get()) != 0 && errno != EINVAL) Fail(path, "cannot be written", errno);
  }
  std::error_code error;
  fs::rename(temporary.path(), path, error);
  if (error) Fail(path, "cannot be written", error.value());
}

void RequireWritable(const fs::path &folder) {
  MakeFolder(folder);
  const Temporary probe(HiddenName(folder));
  const Descriptor file(open(probe.path().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (file.get() < 0) Fail(folder, "cannot be written to", errno);
}

CapturedStderr::CapturedStderr() {
  std::fflush(stderr);
  stderr_ = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
  file_ = memfd_create("stderr", MFD_CLOEXEC);
  if (stderr_ >= 0 && file_ >= 0) dup2(file_, STDERR_FILENO);  // else lines appear where they always do
}

CapturedStderr::~CapturedStderr() {
  std::fflush(stderr);
  if (stderr_ >= 0) {
    dup2(stderr_, STDERR_FILENO);
    close(stderr_);
  }
  if (file_ >= 0) close(file_);
}

std::string CapturedStderr::Text() const {
  std::fflush(stderr);
  std::string text;
  std::array<char, 4096> block;
  off_t at = 0;
  while (file_ >= 0) {
    const ssize_t size = pread(file_, block.data(), block.size(), at);
    if (size <= 0) break;
    text.append(block.data(), static_cast<std::size_t>(size));
    at += size;
  }
  return text;
}

}  // namespace midas
