#include "inc/model.h"

#include <include/api/context.h>
#include <include/api/model.h>
#include <include/api/status.h>
#include <include/api/types.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <thread>

#include "inc/mindir.h"
#include "inc/utils.h"

namespace midas {
namespace {

using mindspore::MSTensor;

constexpr std::int64_t kMostPixelsPerSide = 1 << 15;
#ifdef MIDAS_ASCEND310_DEVICE_INFO
using AscendInfo = mindspore::Ascend310DeviceInfo;  // of older releases
#else
using AscendInfo = mindspore::AscendDeviceInfo;
#endif

// The message of an error in MindSpore's log: "[ERROR] ME(..):time [file:line] Function] message".
std::string MessageOf(std::string line) {
  for (int count = 0; count < 3; ++count) {
    const std::size_t end = line.find("] ");
    if (end != std::string::npos) line.erase(0, end + 2);
  }
  return line;
}

// The line of MindSpore's log that tells most of a failure, which its Status seldom does; "" where there is none.
std::string ReasonIn(const std::string &log) {
  const std::string exception = "Catch exception: ";
  for (const std::string &mark : {exception, std::string("dlopen "), std::string("[ERROR] ")}) {
    const std::size_t at = log.find(mark);
    if (at == std::string::npos) continue;
    const std::string line = log.substr(at, log.find('\n', at) - at);
    return mark == exception ? line.substr(exception.size()) : line.front() == '[' ? MessageOf(line) : line;
  }
  return "";
}

// Runs a call of the library. Its log is kept off the screen, unless the user asks for it with GLOG_v.
// Returns nothing if all went well, else the reason.
template <typename Call>
std::optional<std::string> Try(Call call) {
  std::optional<CapturedStderr> captured;
  if (std::getenv("GLOG_v") == nullptr) captured.emplace();
  std::string text;
  try {
    const mindspore::Status status = call();
    if (status == mindspore::kSuccess) return std::nullopt;
    text = status.ToString();
  } catch (const std::exception &error) {
    text = error.what();
  }
  const std::string reason = captured ? ReasonIn(captured->Text()) : "";
  if (!reason.empty()) text = reason;
  text = text.substr(0, text.find('\n'));
  if (text.find("bad_alloc") != std::string::npos) throw std::bad_alloc();  // the library catches it
  return text.empty() ? "no reason given; set GLOG_v=1 to see its log" : text;
}

std::string ShapeText(const std::vector<std::int64_t> &shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) text += (axis ? ", " : "") + std::to_string(shape[axis]);
  return text + ")";
}

std::string TensorText(const MSTensor &tensor) {
  const mindspore::DataType type = tensor.DataType();
  std::string name = "type " + std::to_string(static_cast<int>(type));
  if (type == mindspore::DataType::kNumberTypeFloat32) name = "float32";
  if (type == mindspore::DataType::kNumberTypeFloat16) name = "float16";
  return name + " " + ShapeText(tensor.Shape());
}

std::shared_ptr<mindspore::Context> MakeContext(Device device, std::uint32_t device_id) {
  auto context = std::make_shared<mindspore::Context>();
  if (device == Device::kCpu) {
    context->SetThreadNum(static_cast<std::int32_t>(std::max(1U, std::thread::hardware_concurrency())));
    context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
  } else {
    auto ascend = std::make_shared<AscendInfo>();
    ascend->SetDeviceID(device_id);
    context->MutableDeviceInfo().push_back(ascend);
  }
  return context;
}

}  // namespace

DepthModel::DepthModel(const std::filesystem::path &path, Device device, std::uint32_t device_id) {
  const MindirFacts facts = InspectMindir(path);
  model_ = std::make_unique<mindspore::Model>();
  const auto failure =
      Try([&] { return model_->Build(path.string(), mindspore::kMindIR, MakeContext(device, device_id)); });
  if (failure) {
    const std::string release = facts.release.empty() ? "" : " (MindSpore " + facts.release + ")";
    const std::string file = path.string() + ": expected a network that this MindSpore Lite can load on " +
                             (device == Device::kCpu ? "CPU" : "Ascend") + ", found mind_ir_version " +
                             std::to_string(facts.version) + release + ", which it refuses: " + *failure + "; ";
    if (failure->find("mind ir version") != std::string::npos) {
      throw RunError(file + "convert the network with the converter_lite of the same release, see docs/deploy.md");
    }
    throw RunError(file + (device == Device::kCpu
                               ? "one that was converted for Ascend runs there only, see docs/deploy.md"
                               : "is the environment of the Ascend toolkit set up (set_env.sh)? --device CPU does without"));
  }
  CheckInput(path);
  try {
    Predict(std::vector<float>(3 * static_cast<std::size_t>(height_) * static_cast<std::size_t>(width_)));
  } catch (const RunError &error) {
    throw RunError(path.string() + ": " + error.what());
  }
}

DepthModel::~DepthModel() = default;

void DepthModel::CheckInput(const std::filesystem::path &path) {
  const std::vector<MSTensor> inputs = model_->GetInputs();
  const auto fail = [&](const std::string &found) {
    throw RunError(path.string() + ": expected a network with one input, float32 (1, 3, H, W) of fixed size, found " +
                   found);
  };
  if (inputs.size() != 1) fail(std::to_string(inputs.size()) + " inputs");
  const std::vector<std::int64_t> shape = inputs[0].Shape();
  if (std::any_of(shape.begin(), shape.end(), [](std::int64_t side) { return side < 0; })) {
    fail(TensorText(inputs[0]) + ", which is dynamic; export it with --export_shapes static");
  }
  const bool is_image = shape.size() == 4 && shape[0] == 1 && shape[1] == 3 && std::min(shape[2], shape[3]) > 0 &&
                        std::max(shape[2], shape[3]) <= kMostPixelsPerSide;
  if (!is_image || inputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32) fail(TensorText(inputs[0]));
  height_ = static_cast<int>(shape[2]);
  width_ = static_cast<int>(shape[3]);
}

std::vector<float> DepthModel::Predict(const std::vector<float> &image) {
  std::vector<MSTensor> inputs = model_->GetInputs();
  const std::size_t size = image.size() * sizeof(float);
  void *input = inputs[0].MutableData();
  if (input == nullptr || inputs[0].DataSize() != size) {
    throw RunError("inference failed: expected an input of " + std::to_string(size) + " bytes, found " +
                   std::to_string(inputs[0].DataSize()));
  }
  std::memcpy(input, image.data(), size);
  std::vector<MSTensor> outputs;
  if (const auto failure = Try([&] { return model_->Predict(inputs, &outputs); })) {
    throw RunError("inference failed: " + *failure);
  }
  if (outputs.size() != 1) {
    throw RunError("inference failed: expected one output, found " + std::to_string(outputs.size()));
  }
  const std::vector<std::int64_t> shape = outputs[0].Shape();
  const auto rows = shape.size() < 2 ? 0 : shape[shape.size() - 2];
  const auto columns = shape.size() < 2 ? 0 : shape.back();
  const std::shared_ptr<const void> data = outputs[0].Data();
  const bool is_map = rows > 0 && columns > 0 && outputs[0].ElementNum() == rows * columns;
  const auto count = static_cast<std::size_t>(std::max<std::int64_t>(outputs[0].ElementNum(), 0));
  if (!is_map || outputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32 || !data ||
      outputs[0].DataSize() != count * sizeof(float)) {
    const bool is_half = outputs[0].DataType() == mindspore::DataType::kNumberTypeFloat16;
    throw RunError("inference failed: expected float32 (1, H, W), found " + TensorText(outputs[0]) +
                   (is_half ? "; convert it with output_type=FP32 under [ascend_context]" : ""));
  }
  output_height_ = static_cast<std::size_t>(rows);
  output_width_ = static_cast<std::size_t>(columns);
  std::vector<float> result(count);
  std::memcpy(result.data(), data.get(), count * sizeof(float));
  const auto bad = std::count_if(result.begin(), result.end(), [](float value) { return !std::isfinite(value); });
  if (bad > 0) {
    throw RunError("the network predicted " + std::to_string(bad) + " of " + std::to_string(count) +
                   " values that are not finite");
  }
  return result;
}

}  // namespace midas
