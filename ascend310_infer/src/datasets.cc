#include "inc/datasets.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <system_error>
#include <utility>

#include "inc/text.h"
#include "inc/utils.h"

namespace midas {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char *, 6> kPictureSuffixes = {".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG"};
constexpr const char *kTumSequence = "rgbd_dataset_freiburg2_desk_with_person";

// Where the suffix of a file name starts, as Python's pathlib has it: "a." and ".a" have none.
std::size_t SuffixStart(const std::string &name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string::npos || dot == 0 || dot + 1 == name.size() ? name.size() : dot;
}

std::string Stem(const fs::path &path) {
  const std::string name = path.filename().string();
  return name.substr(0, SuffixStart(name));
}

// The picture of a sample: ``path``, or the one beside it of the same name and another usual suffix; ``path`` itself if
// there is none: reading it says so.
fs::path FindPicture(const fs::path &path) {
  if (IsFile(path) || !path.has_filename()) return path;
  for (const char *suffix : kPictureSuffixes) {
    fs::path other = path.parent_path() / (Stem(path) + suffix);
    if (IsFile(other)) return other;
  }
  return path;
}

bool IsFolder(const fs::path &path) {
  std::error_code ignored;
  return path.native().find('\0') == std::string::npos && fs::is_directory(path, ignored);
}

// Names in a folder, in order; none where it cannot be listed.
std::vector<std::string> ListNames(const fs::path &folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool EndsWith(const std::string &text, const std::string &end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Folders of ground truth and of pictures, per drive or scene.
struct Layout {
  fs::path groups;                                       // lists the drives or scenes
  std::function<fs::path(const std::string &)> truth;    // folder of a drive or scene
  std::function<fs::path(const std::string &)> picture;  // folder, too
  std::string truth_suffix;
};

// Pictures without ground truth are no samples. Hidden files, which archivers and killed runs leave behind, do not
// count.
std::vector<Sample> ListPairs(const Layout &layout) {
  std::vector<Sample> samples;
  for (const std::string &group : ListNames(layout.groups)) {
    for (const std::string &file : ListNames(layout.truth(group))) {
      if (file.front() == '.' || !EndsWith(file, layout.truth_suffix)) continue;
      const std::string name = file.substr(0, file.size() - layout.truth_suffix.size());
      samples.push_back({group + "/" + name, FindPicture(layout.picture(group) / (name + ".png")), ""});
    }
  }
  return samples;
}

std::vector<Sample> ListKitti(const fs::path &folder) {
  return ListPairs({folder, [&](const std::string &drive) { return folder / drive / "depth"; },
                    [&](const std::string &drive) { return folder / drive / "image"; }, ".png"});
}

std::vector<Sample> ListSintel(const fs::path &folder) {
  return ListPairs({folder / "depth", [&](const std::string &scene) { return folder / "depth" / scene; },
                    [&](const std::string &scene) { return folder / "final_left" / scene; }, ".dpt"});
}

// A path of a list without empty parts and dots, as Python's pathlib has it.
fs::path CleanPath(const std::string &text) {
  fs::path clean = text.rfind('/', 0) == 0 ? "/" : "";
  for (const fs::path &part : fs::path(text).relative_path()) {
    if (!part.empty() && part != ".") clean /= part;
  }
  return clean;
}

bool IsInDepthFolder(const fs::path &path) {
  return Lower(path.parent_path().filename().string()).find("depth") != std::string::npos;
}

// The file itself, or its place where an archive was unpacked into the folder it makes (rgb/rgb/*.png).
fs::path Unpacked(const fs::path &path) {
  const fs::path folder = path.parent_path();
  const fs::path nested = folder / folder.filename();
  const fs::path found = FindPicture(path);
  if (IsFile(found)) return found;
  return IsFolder(nested) ? FindPicture(nested / path.filename()) : path;
}

// A line of associate.txt names a colour and a depth picture, the one in a folder ``depth``; time stamps and further
// columns do not count.
Sample ReadAssociation(const fs::path &root, const fs::path &associations, const Line &line) {
  std::vector<fs::path> files;
  for (const std::string &field : line.fields) {
    if (!IsNumber(field)) files.push_back(CleanPath(field));
  }
  if (files.size() < 2) {
    std::string found;
    for (const std::string &field : line.fields) found += (found.empty() ? "" : " ") + field;
    const std::string place = "line " + std::to_string(line.number);
    return {place,
            {},
            associations.string() + ": " + place + ": expected a colour and a depth picture, found '" + found + "'"};
  }
  const auto truth = std::find_if(files.begin(), files.end(), IsInDepthFolder);
  const auto colour = std::find_if_not(files.begin(), files.end(), IsInDepthFolder);
  const std::size_t truth_index = truth == files.end() ? 1 : static_cast<std::size_t>(truth - files.begin());
  const std::size_t index = colour == files.end() ? 1 - truth_index : static_cast<std::size_t>(colour - files.begin());
  fs::path picture = Unpacked(files[index].empty() ? root : root / files[index]);  // no slash at the end
  std::string name = Stem(picture);
  return {std::move(name), std::move(picture), ""};
}

std::vector<Sample> ListTum(const fs::path &folder) {
  const fs::path root = IsFolder(folder / kTumSequence) ? folder / kTumSequence : folder;
  const fs::path associations = root / "associate.txt";
  std::vector<Sample> samples;
  if (!IsFile(associations)) return samples;
  std::map<std::string, fs::path> pictures;
  for (const Line &line : ReadFields(associations)) {
    Sample sample = ReadAssociation(root, associations, line);
    if (sample.fault.empty()) {
      const auto [first, is_new] = pictures.emplace(sample.name, sample.picture);
      if (!is_new && first->second != sample.picture) {
        sample.fault = sample.picture.string() + ": expected a picture of another name than " + first->second.string() +
                       ": their results would be one file";
      }
    }
    samples.push_back(std::move(sample));
  }
  return samples;
}

struct Set {
  const char *name;
  const char *layout;
  std::vector<Sample> (*list)(const fs::path &);
};

constexpr std::array<Set, 3> kSets = {{
    {"Kitti", "DRIVE/image/NAME.png and DRIVE/depth/NAME.png", ListKitti},
    {"TUM", "rgbd_dataset_freiburg2_desk_with_person/associate.txt with rgb/ and depth/ beside it", ListTum},
    {"Sintel", "depth/SCENE/FRAME.dpt and final_left/SCENE/FRAME.png", ListSintel},
}};

}  // namespace

std::string CanonicalSet(std::string_view name) {
  for (const Set &set : kSets) {
    if (Lower(set.name) == Lower(name)) return set.name;
  }
  throw UsageError("--dataset_name: expected Kitti, TUM or Sintel, found '" + std::string(name) + "'");
}

std::vector<Sample> ListSamples(const std::string &set, const fs::path &folder) {
  const auto *kind = std::find_if(kSets.begin(), kSets.end(), [&](const Set &other) { return other.name == set; });
  std::vector<Sample> samples = kind->list(folder);
  if (samples.empty()) {
    throw RunError(folder.string() + ": expected " + set + " as " + kind->layout + ", found no such files");
  }
  return samples;
}

}  // namespace midas
