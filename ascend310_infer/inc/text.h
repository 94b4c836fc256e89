// Text: lists with several fields per line, whatever program has written them. The rules are those of src/util.py.
#ifndef ASCEND310_INFER_INC_TEXT_H_
#define ASCEND310_INFER_INC_TEXT_H_

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace midas {

struct Line {
  std::size_t number;  // from 1
  std::vector<std::string> fields;
};

// Reads the lines of a text file (UTF-8, or UTF-16 with its byte order mark) that are not empty and do not start with
// #. Fields are separated by blanks, commas or semicolons; those that hold one are quoted; backslashes separate
// folders. Throws RunError where the file cannot be read or has no such line.
std::vector<Line> ReadFields(const std::filesystem::path &path);

// Whether a field is a number as Python's float() takes them (of ASCII digits), such as a time stamp, and so no file.
bool IsNumber(std::string_view text);

// Makes ASCII letters small.
std::string Lower(std::string_view text);

}  // namespace midas

#endif  // ASCEND310_INFER_INC_TEXT_H_
