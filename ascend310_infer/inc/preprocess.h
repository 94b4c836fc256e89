// From a picture file to the input of the network. The steps are those of src/decode.py and src/utils/transforms.py.
#ifndef ASCEND310_INFER_INC_PREPROCESS_H_
#define ASCEND310_INFER_INC_PREPROCESS_H_

#include <array>
#include <cstddef>
#include <filesystem>
#include <opencv2/core.hpp>
#include <vector>

namespace midas {

// Mean and standard deviation per channel, RGB, on the scale 0..1.
struct Normalization {
  std::array<double, 3> mean = {0.485, 0.456, 0.406};
  std::array<double, 3> std = {0.229, 0.224, 0.225};
};

// Reads a PNG or JPEG file, pixels as stored (orientation does not count). Grey is repeated on three channels, 16 bits
// per channel are cut to the upper 8, what is transparent is laid over white.
// Returns 8-bit RGB. Throws RunError where the file is missing, damaged or of another kind.
cv::Mat ReadPicture(const std::filesystem::path &path);

// Resizes 8-bit RGB to exactly ``height`` x ``width`` (cubic, on float32) and normalises it.
// Returns 3 x height x width values, channel by channel.
std::vector<float> Prepare(const cv::Mat &picture, int height, int width, const Normalization &normalization);

}  // namespace midas

#endif  // ASCEND310_INFER_INC_PREPROCESS_H_
