// Predicts inverse depth for the pictures of an evaluation set with a network in a MINDIR file, by MindSpore Lite.

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <map>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "inc/datasets.h"
#include "inc/model.h"
#include "inc/preprocess.h"
#include "inc/text.h"
#include "inc/utils.h"

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "results are stored as little-endian float32");

constexpr int kStatusOk = 0;
constexpr int kStatusFailed = 1;
constexpr int kStatusUsage = 2;
constexpr std::chrono::seconds kProgressInterval(10);

constexpr const char *kHelp =
    R"(usage: main --midas_file FILE --image_path FOLDER --dataset_name Kitti|TUM|Sintel [options]

Predicts inverse depth for every sample of an evaluation set. Results are RESULT_PATH/SET/NAME_HxW.bin (float32, little
endian, row by row) and time_Result/test_perform_static.txt beside RESULT_PATH. Earlier results of the set are removed.

  --midas_file FILE     network, a MINDIR file with one input (1, 3, H, W) of fixed size
  --image_path FOLDER   folder of the set: of the drives (Kitti), of final_left and depth (Sintel), of
                        rgbd_dataset_freiburg2_desk_with_person or that folder itself (TUM)
  --dataset_name NAME   Kitti, TUM or Sintel, in any letter case
  --device NAME         Ascend or CPU (default: Ascend)
  --device_id N         number of the Ascend device (default: 0)
  --result_path FOLDER  folder of the results (default: ./result_Files)
  --mean R,G,B          mean of the training images on the scale 0..1 (default: 0.485,0.456,0.406)
  --std R,G,B           their standard deviation (default: 0.229,0.224,0.225)
  --list                only list the samples: name, tab, picture
  --help                show this text

--key=value works, too. If a flag is repeated, the last one counts. GLOG_v=1 in the environment shows the log of
MindSpore Lite. Exit status: 0 all samples predicted, 1 some or all failed, 2 wrong usage.
)";

struct Options {
  fs::path model;
  fs::path images;
  std::string set;
  midas::Device device = midas::Device::kAscend;
  std::uint32_t device_id = 0;
  fs::path results;
  midas::Normalization normalization;
  bool only_list = false;
  bool help = false;
};

[[noreturn]] void FailUsage(const std::string &flag, const char *expected, const std::string &found) {
  throw midas::UsageError("--" + flag + ": expected " + expected + ", found '" + found + "'");
}

bool ParseNumber(const std::string &text, std::uint32_t *number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
  return error == std::errc() && end == text.data() + text.size();
}

// from_chars does not know floating-point numbers before GCC 11.
bool ParseNumber(const std::string &text, double *number) {
  char *end = nullptr;
  *number = std::strtod(text.c_str(), &end);
  return !text.empty() && end == text.c_str() + text.size();
}

// Three numbers, separated by commas, perhaps in the brackets of a YAML list.
std::array<double, 3> ParseChannels(const std::string &flag, const std::string &text) {
  constexpr const char *kExpected = "three numbers from 0 to 1, such as 0.5,0.5,0.5";
  std::string plain = text;
  plain.erase(std::remove(plain.begin(), plain.end(), ' '), plain.end());
  std::string_view rest = plain;
  if (rest.size() >= 2 && rest.front() == '[' && rest.back() == ']') rest = rest.substr(1, rest.size() - 2);
  std::array<double, 3> values{};
  for (std::size_t index = 0; index < 3; ++index) {
    const std::size_t comma = index < 2 ? rest.find(',') : rest.size();
    const bool is_number = comma <= rest.size() && ParseNumber(std::string(rest.substr(0, comma)), &values.at(index));
    if (!is_number || !(values.at(index) >= 0 && values.at(index) <= 1)) FailUsage(flag, kExpected, text);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return values;
}

// Reads --key value and --key=value into texts; a switch has none.
std::map<std::string, std::string> SplitArguments(const std::vector<std::string> &arguments) {
  std::map<std::string, std::string> values = {{"midas_file", ""},   {"image_path", ""},
                                               {"dataset_name", ""}, {"device", "Ascend"},
                                               {"device_id", "0"},   {"result_path", "./result_Files"},
                                               {"mean", ""},         {"std", ""},
                                               {"list", ""},         {"help", ""}};
  for (std::size_t at = 0; at < arguments.size(); ++at) {
    const std::string &argument = arguments[at];
    const std::size_t equals = std::min(argument.find('='), argument.size());
    const std::string key = argument.rfind("--", 0) == 0 ? argument.substr(2, equals - 2) : "";
    const auto value = values.find(key);
    if (value == values.end()) throw midas::UsageError("unknown argument '" + argument + "'; --help lists the flags");
    const bool is_switch = key == "list" || key == "help";
    if (is_switch && equals < argument.size()) FailUsage(key, "no value", argument.substr(equals + 1));
    if (is_switch) {
      value->second = "yes";
    } else if (equals < argument.size()) {
      value->second = argument.substr(equals + 1);
    } else if (at + 1 < arguments.size()) {
      value->second = arguments[++at];
    } else {
      FailUsage(key, "a value after it", "none");
    }
  }
  return values;
}

Options ParseOptions(const std::vector<std::string> &arguments) {
  auto values = SplitArguments(arguments);
  Options options;
  options.help = !values["help"].empty();
  options.only_list = !values["list"].empty();
  if (options.help) return options;
  for (const char *key : {"midas_file", "image_path", "dataset_name", "result_path"}) {
    const bool is_needed = !options.only_list || std::string_view(key) != "midas_file";
    if (is_needed && values[key].empty()) {
      throw midas::UsageError(std::string("--") + key + ": expected a value, found none");
    }
  }
  options.model = values["midas_file"];
  options.images = values["image_path"];
  options.set = midas::CanonicalSet(values["dataset_name"]);
  const std::string device = midas::Lower(values["device"]);
  if (device != "ascend" && device != "cpu") FailUsage("device", "Ascend or CPU", values["device"]);
  options.device = device == "cpu" ? midas::Device::kCpu : midas::Device::kAscend;
  if (!ParseNumber(values["device_id"], &options.device_id)) FailUsage("device_id", "0 or more", values["device_id"]);
  options.results = fs::absolute(values["result_path"]).lexically_normal();
  if (!options.results.has_filename()) options.results = options.results.parent_path();
  if (!values["mean"].empty()) options.normalization.mean = ParseChannels("mean", values["mean"]);
  if (!values["std"].empty()) options.normalization.std = ParseChannels("std", values["std"]);
  for (const double value : options.normalization.std) {
    if (!(value > 0)) FailUsage("std", "three numbers above 0", values["std"]);
  }
  return options;
}

int ListOnly(const std::vector<midas::Sample> &samples) {
  int status = kStatusOk;
  for (const midas::Sample &sample : samples) {
    if (sample.fault.empty()) {
      std::printf("%s\t%s\n", sample.name.c_str(), sample.picture.c_str());
    } else {
      midas::PrintLine("warning", sample.fault);
      status = kStatusFailed;
    }
  }
  return status;
}

// Whether a file name ends in the size and suffix of a result, _HxW.bin.
bool IsResult(const std::string &name) {
  const std::string_view suffix = ".bin";
  std::string_view rest = name;
  if (rest.size() < suffix.size() || rest.substr(rest.size() - suffix.size()) != suffix) return false;
  rest.remove_suffix(suffix.size());
  for (const char mark : {'x', '_'}) {
    const std::size_t at = rest.find_last_not_of("0123456789");
    if (at == std::string_view::npos || at + 1 == rest.size() || rest[at] != mark) return false;
    rest = rest.substr(0, at);
  }
  return true;
}

// A size that the network no longer has would be scored beside the new one.
void RemoveEarlierResults(const fs::path &folder) {
  std::vector<fs::path> earlier;
  for (const fs::directory_entry &entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && IsResult(entry.path().filename().string())) earlier.push_back(entry.path());
  }
  for (const fs::path &path : earlier) fs::remove(path);
}

double Milliseconds(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

struct Times {
  std::size_t images = 0;
  Clock::duration preprocessing{};
  Clock::duration inference{};
};

void WriteTimes(const fs::path &path, const Options &options, const midas::DepthModel &model, const Times &times,
                Clock::duration total) {
  const auto count = static_cast<double>(times.images);
  std::array<char, 512> text{};
  const int length =
      std::snprintf(text.data(), text.size(),
                    "data set: %s\ndevice: %s\ninput (height x width): %d x %d\nimages: %zu\n"
                    "average inference time, without the warm-up run: %.3f ms\naverage preprocessing time: %.3f ms\n"
                    "total time, with reading and writing: %.3f ms\n",
                    options.set.c_str(), options.device == midas::Device::kCpu ? "CPU" : "Ascend", model.height(),
                    model.width(), times.images, Milliseconds(times.inference) / count,
                    Milliseconds(times.preprocessing) / count, Milliseconds(total));
  midas::WriteFile(path, text.data(), static_cast<std::size_t>(length));
  std::printf("average inference time %.3f ms, preprocessing %.3f ms: %s\n", Milliseconds(times.inference) / count,
              Milliseconds(times.preprocessing) / count, path.c_str());
}

// Predicts one sample and writes its result. Throws RunError where the sample cannot be read or predicted.
void PredictSample(const midas::Sample &sample, const Options &options, midas::DepthModel *model, Times *times,
                   std::vector<float> *prediction) {
  if (!sample.fault.empty()) throw midas::RunError(sample.fault);
  const auto start = Clock::now();
  const auto image = midas::LoadImage(sample.picture, model->height(), model->width(), options.normalization);
  const auto prepared = Clock::now();
  try {
    *prediction = model->Predict(image);
  } catch (const midas::RunError &error) {
    throw midas::RunError(sample.picture.string() + ": " + error.what());
  }
  ++times->images;
  times->preprocessing += prepared - start;
  times->inference += Clock::now() - prepared;
}

int PredictAll(const Options &options, const std::vector<midas::Sample> &samples) {
  const fs::path folder = options.results / options.set;
  const fs::path times_folder = options.results.parent_path() / "time_Result";
  midas::RequireWritable(folder);
  midas::RequireWritable(times_folder);
  midas::DepthModel model(options.model, options.device, options.device_id);
  RemoveEarlierResults(folder);
  std::printf("%s: %zu samples; network input %d x %d (height x width)\n", options.set.c_str(), samples.size(),
              model.height(), model.width());
  const auto start = Clock::now();
  auto last_progress = start;
  Times times;
  std::vector<float> prediction;
  for (std::size_t index = 0; index < samples.size(); ++index) {
    const midas::Sample &sample = samples[index];
    try {
      PredictSample(sample, options, &model, &times, &prediction);
    } catch (const midas::RunError &error) {
      midas::PrintLine("warning", "sample " + sample.name + " is left out: " + error.what());
      continue;
    }
    const std::string size = std::to_string(model.output_height()) + "x" + std::to_string(model.output_width());
    midas::WriteFile(folder / (sample.name + "_" + size + ".bin"), prediction.data(),
                     prediction.size() * sizeof(float));
    if (Clock::now() - last_progress >= kProgressInterval) {
      last_progress = Clock::now();
      std::printf("%zu of %zu samples\n", index + 1, samples.size());
      std::fflush(stdout);
    }
  }
  std::printf("%zu of %zu samples predicted: %s\n", times.images, samples.size(), folder.c_str());
  if (times.images > 0) {
    WriteTimes(times_folder / "test_perform_static.txt", options, model, times, Clock::now() - start);
  }
  if (times.images < samples.size()) {
    throw midas::RunError(std::to_string(samples.size() - times.images) + " of " + std::to_string(samples.size()) +
                          " samples could not be predicted, see the warnings");
  }
  return kStatusOk;
}

int Run(const std::vector<std::string> &arguments) {
  const Options options = ParseOptions(arguments);
  if (options.help) {
    std::fputs(kHelp, stdout);
    return kStatusOk;
  }
  const auto samples = midas::ListSamples(options.set, options.images);
  return options.only_list ? ListOnly(samples) : PredictAll(options, samples);
}

}  // namespace

int main(int count, char **arguments) {
  try {
    const int status = Run({arguments + 1, arguments + count});
    const bool is_told = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
    if (!is_told) throw midas::RunError("standard output cannot be written to");
    return status;
  } catch (const midas::UsageError &error) {
    midas::PrintLine("error", error.what());
    return kStatusUsage;
  } catch (const fs::filesystem_error &error) {
    midas::PrintLine("error", error.path1().string() + ": " + error.code().message());
  } catch (const std::bad_alloc &) {
    midas::PrintLine("error", "there is not enough memory");
  } catch (const std::exception &error) {
    midas::PrintLine("error", error.what());
  }
  return kStatusFailed;
}
