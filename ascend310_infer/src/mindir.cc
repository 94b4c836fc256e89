#include "inc/mindir.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "inc/utils.h"

namespace midas {
namespace {

// A MINDIR file is a protobuf message. These are its fields that matter here.
constexpr std::uint64_t kIrVersion = 1;  // text; a number in ONNX, a tensor in a checkpoint
constexpr std::uint64_t kModelVersion = 5;
constexpr std::uint64_t kGraph = 7;
constexpr std::uint64_t kFunctions = 8;
constexpr std::uint64_t kMindIrVersion = 13;

enum WireType : std::uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  std::uint64_t number = 0;
  std::uint64_t type = 0;
  std::uint64_t value = 0;  // of a varint
  std::string_view bytes;   // of kBytes
};

std::optional<std::uint64_t> TakeVarint(std::string_view *message) {
  std::uint64_t value = 0;
  for (unsigned int shift = 0; shift < 64 && !message->empty(); shift += 7) {
    const auto byte = static_cast<std::uint8_t>(message->front());
    message->remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
    if ((byte & 0x80U) == 0) return value;
  }
  return std::nullopt;
}

// Takes the next field off a message; nothing where the message is cut or damaged there.
std::optional<Field> TakeField(std::string_view *message) {
  const auto tag = TakeVarint(message);
  if (!tag || *tag >> 3U == 0) return std::nullopt;
  Field field{*tag >> 3U, *tag & 7U, 0, {}};
  std::uint64_t length = 0;
  switch (field.type) {
    case kVarint:
    case kBytes: {
      const auto value = TakeVarint(message);
      if (!value) return std::nullopt;
      (field.type == kVarint ? field.value : length) = *value;
      break;
    }
    case kFixed64:
      length = 8;
      break;
    case kFixed32:
      length = 4;
      break;
    default:
      return std::nullopt;
  }
  if (length > message->size()) return std::nullopt;
  field.bytes = message->substr(0, length);
  message->remove_prefix(length);
  return field;
}

std::optional<std::vector<Field>> TakeFields(std::string_view message) {
  std::vector<Field> fields;
  while (!message.empty()) {
    const auto field = TakeField(&message);
    if (!field) return std::nullopt;
    fields.push_back(*field);
  }
  return fields;
}

// Whether a graph and what it lists (nodes, weights, inputs, outputs, attributes) are whole messages.
bool IsWholeGraph(std::string_view graph) {
  const auto fields = TakeFields(graph);
  return fields && std::all_of(fields->begin(), fields->end(), [](const Field &field) {
           const bool is_message =
               field.type == kBytes &&
               (field.number == 1 || field.number == 3 || field.number == 5 || field.number == 6 || field.number == 8);
           return !is_message || TakeFields(field.bytes).has_value();
         });
}

std::string KindOf(std::string_view data) {
  const auto first = [&]() -> std::optional<Field> {
    std::string_view rest = data;
    return TakeField(&rest);
  }();
  if (data.substr(0, 2) == "PK") return "a zip archive, as PyTorch writes weights";
  if (data.substr(4, 4) == "MSL2" || data.substr(4, 4) == "MSL1") return "a .ms file of MindSpore Lite";
  if (first && first->number == kIrVersion && first->type == kVarint) return "an ONNX file";
  if (first && first->number == kIrVersion && first->type == kBytes && TakeFields(first->bytes) &&
      first->bytes.substr(0, 1) == "\x0a") {
    return "a checkpoint of MindSpore";  // a list of names and tensors
  }
  return std::to_string(data.size()) + " bytes of something else";
}

}  // namespace

MindirFacts InspectMindir(const std::filesystem::path &path) {
  const std::vector<std::uint8_t> bytes = ReadFile(path);
  const std::string_view data(reinterpret_cast<const char *>(bytes.data()), bytes.size());
  if (data.empty()) throw RunError(path.string() + ": expected a MINDIR file, found an empty file");
  std::string_view rest = data;
  const auto first = TakeField(&rest);
  const bool is_text = first && std::all_of(first->bytes.begin(), first->bytes.end(),
                                            [](char letter) { return letter >= ' ' && letter < '\x7f'; });
  if (!first || first->number != kIrVersion || first->type != kBytes || first->bytes.empty() || !is_text) {
    throw RunError(path.string() + ": expected a MINDIR file, found " + KindOf(data) +
                   "; docs/deploy.md says how to export or convert one");
  }
  MindirFacts facts;
  bool has_graph = false;
  const auto fields = TakeFields(data);
  bool is_whole = fields.has_value();
  for (const Field &field : fields.value_or(std::vector<Field>())) {
    if (field.number == kModelVersion && field.type == kBytes) facts.release = field.bytes;
    if (field.number == kMindIrVersion && field.type == kVarint) facts.version = field.value;
    if ((field.number == kGraph || field.number == kFunctions) && field.type == kBytes) {
      has_graph = true;
      is_whole = is_whole && IsWholeGraph(field.bytes);
    }
  }
  if (!is_whole || !has_graph) {
    throw RunError(path.string() + ": expected a whole MINDIR file, found a truncated or damaged one of " +
                   std::to_string(data.size()) + " bytes");
  }
  return facts;
}

}  // namespace midas
