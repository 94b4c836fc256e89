// The evaluation sets: which pictures there are, under which names. The rules are those of src/evaluation/datasets.
#ifndef ASCEND310_INFER_INC_DATASETS_H_
#define ASCEND310_INFER_INC_DATASETS_H_

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace midas {

struct Sample {
  std::string name;               // DRIVE/NAME, SCENE/FRAME, or the stem of the colour picture (TUM)
  std::filesystem::path picture;  // empty where there is a fault
  std::string fault;              // why it cannot be read, if that is known already: one line
};

// Returns the canonical name of a set that is given in any letter case. Throws UsageError where there is none.
std::string CanonicalSet(std::string_view name);

// Lists the samples of a set (a canonical name) in order.
// Throws RunError where there are none, saying what was expected, or where the set as a whole cannot be read.
std::vector<Sample> ListSamples(const std::string &set, const std::filesystem::path &folder);

}  // namespace midas

#endif  // ASCEND310_INFER_INC_DATASETS_H_
