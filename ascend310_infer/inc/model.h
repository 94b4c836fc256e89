// A network in a MINDIR file, run by MindSpore Lite.
#ifndef ASCEND310_INFER_INC_MODEL_H_
#define ASCEND310_INFER_INC_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace mindspore {
class Model;
}

namespace midas {

enum class Device { kAscend, kCpu };

class DepthModel {
 public:
  // Loads a network of one input, float32 (1, 3, H, W) of fixed size, and runs it once, which also warms it up.
  // Throws RunError where the file is no MINDIR, is damaged, is refused by the library or holds another network.
  DepthModel(const std::filesystem::path &path, Device device, std::uint32_t device_id);
  ~DepthModel();
  DepthModel(const DepthModel &) = delete;
  DepthModel &operator=(const DepthModel &) = delete;

  // Size of the input.
  int height() const { return height_; }
  int width() const { return width_; }

  // Size of the output.
  std::size_t output_height() const { return output_height_; }
  std::size_t output_width() const { return output_width_; }

  // Runs the network on (3, H, W). Returns inverse depth, row by row.
  // Throws RunError where that fails or where values are not finite.
  std::vector<float> Predict(const std::vector<float> &image);

 private:
  void CheckInput(const std::filesystem::path &path);

  std::unique_ptr<mindspore::Model> model_;
  int height_ = 0;
  int width_ = 0;
  std::size_t output_height_ = 0;
  std::size_t output_width_ = 0;
};

}  // namespace midas

#endif  // ASCEND310_INFER_INC_MODEL_H_
