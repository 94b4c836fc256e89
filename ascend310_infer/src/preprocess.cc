#include "inc/preprocess.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <string>
#include <string_view>

#include "inc/utils.h"

namespace midas {
namespace {

constexpr std::string_view kPngSignature = "\x89PNG\r\n\x1a\n";
constexpr std::string_view kJpegSignature = "\xff\xd8\xff";
constexpr long kMostStrayBytes = 16;  // after the pixels of a JPEG file, which some cameras write

bool StartsWith(const std::vector<std::uint8_t> &data, std::string_view signature) {
  return data.size() >= signature.size() &&
         std::equal(signature.begin(), signature.end(), data.begin(),
                    [](char letter, std::uint8_t byte) { return static_cast<std::uint8_t>(letter) == byte; });
}

std::string FirstLine(const std::string &text) { return text.substr(0, text.find('\n')); }

// Whether a warning of libjpeg says nothing of the pixels. It returns grey or shifted blocks after all others.
bool IsHarmless(const std::string &warning) {
  if (warning.find("Invalid SOS parameters") != std::string::npos) return true;
  if (warning.find("unknown JFIF revision") != std::string::npos) return true;
  const std::string_view corrupt = "Corrupt JPEG data: ";
  return warning.rfind(corrupt, 0) == 0 && warning.find("extraneous bytes before marker 0xd9") != std::string::npos &&
         std::strtol(warning.c_str() + corrupt.size(), nullptr, 10) <= kMostStrayBytes;
}

[[noreturn]] void FailDamaged(const std::filesystem::path &path, const char *kind, std::size_t size,
                              const std::string &reason) {
  throw RunError(path.string() + ": expected an image, found a truncated or damaged " + kind + " file of " +
                 std::to_string(size) + " bytes" + (reason.empty() ? "" : " (" + reason + ")"));
}

// Where the last marker of a kind is in a JPEG file; 0, which is before all others, where there is none. Compressed
// pixels hold no markers of these kinds.
std::size_t LastMarker(const std::vector<std::uint8_t> &jpeg, std::uint8_t kind) {
  for (std::size_t at = jpeg.size() - 1; at > 0; --at) {
    if (jpeg[at - 1] == 0xFF && jpeg[at] == kind) return at;
  }
  return 0;
}

// OpenCV takes a JPEG file that lacks its end, and repeats grey or black there.
bool LacksEnd(const std::vector<std::uint8_t> &jpeg) {
  constexpr std::uint8_t kStartOfScan = 0xDA;
  constexpr std::uint8_t kEndOfImage = 0xD9;
  return LastMarker(jpeg, kEndOfImage) <= LastMarker(jpeg, kStartOfScan);
}

// Makes white what a grey PNG file declares transparent by its value: OpenCV does not.
void WhitenKey(const std::vector<std::uint8_t> &png, cv::Mat *image) {
  constexpr std::size_t kHeaderEnd = 33;
  constexpr std::size_t kFrame = 12;                    // length, kind and checksum of a chunk
  if (png.size() < kHeaderEnd || png[25] != 0) return;  // not grey
  const auto number = [&](std::size_t at) {
    return static_cast<std::size_t>(png[at]) << 24U | static_cast<std::size_t>(png[at + 1]) << 16U |
           static_cast<std::size_t>(png[at + 2]) << 8U | png[at + 3];
  };
  for (std::size_t at = kHeaderEnd; at + kFrame <= png.size(); at += kFrame + number(at)) {
    const std::string_view kind(reinterpret_cast<const char *>(&png[at + 4]), 4);
    if (kind == "IDAT") return;
    if (kind != "tRNS" || number(at) < 2) continue;
    const unsigned int bits = png[24];
    const unsigned int key = (static_cast<unsigned int>(png[at + 8]) << 8U) | png[at + 9];
    const double stored = bits < 8 ? key * 255 / ((1U << bits) - 1) : key;  // as libpng has scaled the pixels
    cv::Mat is_key;
    cv::compare(*image, stored, is_key, cv::CMP_EQ);
    image->setTo(image->depth() == CV_16U ? 65535 : 255, is_key);
    return;
  }
}

// Lays colours with alpha over white, rounded, and drops alpha.
template <typename Value, typename Wide>
cv::Mat OverWhite(const cv::Mat &image) {
  constexpr Wide kTop = std::numeric_limits<Value>::max();
  cv::Mat result(image.size(), CV_MAKETYPE(image.depth(), 3));
  for (int row = 0; row < image.rows; ++row) {
    const Value *source = image.ptr<Value>(row);
    Value *target = result.ptr<Value>(row);
    for (int column = 0; column < image.cols; ++column, source += 4, target += 3) {
      const Wide alpha = source[3];
      for (int channel = 0; channel < 3; ++channel) {
        const Wide product = static_cast<Wide>(source[channel] * alpha + kTop * (kTop - alpha));
        target[channel] = static_cast<Value>((product + kTop / 2) / kTop);
      }
    }
  }
  return result;
}

// Returns 8-bit RGB.
cv::Mat ReadPicture(const std::filesystem::path &path) {
  const std::vector<std::uint8_t> data = ReadFile(path);
  const bool is_jpeg = StartsWith(data, kJpegSignature);
  if (!is_jpeg && !StartsWith(data, kPngSignature)) {
    throw RunError(path.string() + ": expected a PNG or JPEG file, found " + std::to_string(data.size()) +
                   " bytes of something else; convert it to PNG");
  }
  const char *kind = is_jpeg ? "JPEG" : "PNG";
  cv::Mat image;
  std::string said;
  {
    const CapturedStderr captured;
    try {
      image = cv::imdecode(data, cv::IMREAD_UNCHANGED | cv::IMREAD_IGNORE_ORIENTATION);
    } catch (const cv::Exception &error) {
      throw RunError(path.string() + ": expected an image, found a " + kind +
                     " file that cannot be decoded: " + FirstLine(error.err.empty() ? error.what() : error.err));
    }
    said = FirstLine(captured.Text());
  }
  if (is_jpeg && said.empty() && LacksEnd(data)) said = "it ends too early";
  if (image.empty() || (is_jpeg && !said.empty() && !IsHarmless(said))) FailDamaged(path, kind, data.size(), said);
  if (!is_jpeg && image.channels() == 1) WhitenKey(data, &image);
  if (image.channels() == 4) {
    image = image.depth() == CV_16U ? OverWhite<std::uint16_t, std::uint64_t>(image)
                                    : OverWhite<std::uint8_t, std::uint32_t>(image);
  }
  if (image.depth() == CV_16U) {
    cv::Mat upper(image.size(), CV_MAKETYPE(CV_8U, image.channels()));
    for (int row = 0; row < image.rows; ++row) {
      const auto *source = image.ptr<std::uint16_t>(row);
      std::transform(source, source + static_cast<std::ptrdiff_t>(image.cols) * image.channels(),
                     upper.ptr<std::uint8_t>(row),
                     [](std::uint16_t value) { return static_cast<std::uint8_t>(value >> 8U); });
    }
    image = upper;
  }
  cv::Mat picture;
  cv::cvtColor(image, picture, image.channels() == 1 ? cv::COLOR_GRAY2RGB : cv::COLOR_BGR2RGB);
  return picture;
}

}  // namespace

std::vector<float> LoadImage(const std::filesystem::path &path, int height, int width,
                             const Normalization &normalization) {
  const cv::Mat picture = ReadPicture(path);
  const std::size_t plane_size = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  std::vector<float> planes(3 * plane_size);
  cv::Mat channel;
  cv::Mat source;
  for (std::size_t index = 0; index < 3; ++index) {
    cv::Mat plane(height, width, CV_32F, planes.data() + index * plane_size);
    cv::extractChannel(picture, channel, static_cast<int>(index));
    channel.convertTo(source, CV_32F);
    cv::resize(source, plane, plane.size(), 0, 0, cv::INTER_CUBIC);
    const double gain = 1.0 / normalization.std[index];
    const auto scale = static_cast<float>(gain);
    const auto shift = static_cast<float>(normalization.mean[index] * -gain);
    for (std::size_t at = index * plane_size; at < (index + 1) * plane_size; ++at) {
      planes[at] = planes[at] * (1.0F / 255) * scale + shift;
    }
  }
  return planes;
}

}  // namespace midas
