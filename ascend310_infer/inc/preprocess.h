// From a picture file to the input of the network. The steps are those of src/decode.py and src/utils/transforms.py.
#ifndef ASCEND310_INFER_INC_PREPROCESS_H_
#define ASCEND310_INFER_INC_PREPROCESS_H_

#include <array>
#include <filesystem>
#include <vector>

namespace midas {

// Mean and standard deviation per channel, RGB, on the scale 0..1.
struct Normalization {
  std::array<double, 3> mean = {0.485, 0.456, 0.406};
  std::array<double, 3> std = {0.229, 0.224, 0.225};
};

// Reads a PNG or JPEG file, pixels as stored (orientation does not count), resizes it to exactly ``height`` x ``width``
// (cubic, on float32) and normalises it. Grey is repeated on three channels, 16 bits per channel are cut to the upper
// 8, what is transparent is laid over white. Returns 3 x height x width values, RGB, channel by channel. Throws
// RunError where the file is missing, damaged or of another kind.
std::vector<float> LoadImage(const std::filesystem::path &path, int height, int width,
                             const Normalization &normalization);

}  // namespace midas

#endif  // ASCEND310_INFER_INC_PREPROCESS_H_
