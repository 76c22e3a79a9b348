#include "launch.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace radam::cuda {
namespace {

static_assert(sizeof(StepArguments) <= 4096, "the arguments of a kernel on every device");
static_assert(sizeof(UploadArguments) <= 32764, "the arguments of a kernel since CUDA 12.1");
static_assert(std::has_unique_object_representations_v<Segment>, "compared by its bytes");

void upload_all(const Queue& queue, void* to, const void* from, std::size_t bytes) {
  const std::size_t words = bytes / sizeof(std::uint64_t);
  UploadArguments arguments;
  for (std::size_t done = 0; done < words;) {
    const std::size_t count = std::min(words - done, kUploadWords);
    arguments.to = static_cast<std::uint64_t*>(to) + done;
    arguments.count = static_cast<std::int64_t>(count);
    std::memcpy(arguments.words, static_cast<const char*>(from) + done * sizeof(std::uint64_t),
                count * sizeof(std::uint64_t));
    upload(queue, arguments);
    done += count;
  }
}

StepCoefficients* coefficients_in(void* workspace, const TensorTable& table) {
  return reinterpret_cast<StepCoefficients*>(static_cast<Segment*>(workspace) + table.size());
}

// Throws where no kernel has these types.
void check_types(const TensorTable& table) {
  const SegmentTypes& types = table.types();
  if (types.exp_avg_sq != types.exp_avg ||
      (table.has_amsgrad() && types.max_exp_avg_sq != types.exp_avg)) {
    throw std::invalid_argument("the moments of a parameter must have one dtype");
  }
}

void launch(const Queue& queue, const TensorTable& table, StepArguments& arguments) {
  const std::vector<Segment>& segments = table.segments();
  const Segment& last = segments.back();
  const std::int64_t blocks = (last.first + last.numel + kChunk - 1) / kChunk;
  if (blocks == 0) return;
  arguments.count = static_cast<std::int64_t>(segments.size());
  arguments.segments_per_block = static_cast<float>(arguments.count) / static_cast<float>(blocks);
  step(queue, table.types(), table.has_amsgrad(), arguments, blocks);
}

}  // namespace

std::size_t Launch::workspace_bytes(std::size_t rows) {
  return rows * (sizeof(Segment) + sizeof(StepCoefficients));
}

void Launch::upload_segments(const Queue& queue, const std::vector<Segment>& segments,
                             void* workspace) {
  const std::size_t bytes = segments.size() * sizeof(Segment);
  if (uploaded_.size() == segments.size() &&
      std::memcmp(uploaded_.data(), segments.data(), bytes) == 0) {
    return;
  }
  uploaded_.clear();  // unknown until all of it is there
  upload_all(queue, workspace, segments.data(), bytes);
  uploaded_ = segments;
}

void Launch::step(const Queue& queue, const TensorTable& table, void* workspace,
                  const std::vector<StepCoefficients>& coefficients) {
  const std::vector<Segment>& segments = table.segments();
  check_types(table);
  if (segments.empty()) return;
  StepArguments arguments{};
  if (segments.size() <= kFewSegments) {
    std::copy(segments.begin(), segments.end(), arguments.few_segments);
  } else {
    upload_segments(queue, segments, workspace);
    arguments.segments = static_cast<const Segment*>(workspace);
  }
  if (coefficients.size() <= kFewCoefficients) {
    std::copy(coefficients.begin(), coefficients.end(), arguments.few_coefficients);
  } else {
    StepCoefficients* const there = coefficients_in(workspace, table);
    upload_all(queue, there, coefficients.data(), coefficients.size() * sizeof(StepCoefficients));
    arguments.coefficients = there;
  }
  launch(queue, table, arguments);
}

void Launch::step(const Queue& queue, const TensorTable& table, void* workspace,
                  PrologueArguments prologue_arguments) {
  const std::vector<Segment>& segments = table.segments();
  check_types(table);
  if (segments.empty()) return;
  upload_segments(queue, segments, workspace);
  prologue_arguments.segments = static_cast<const Segment*>(workspace);
  prologue_arguments.count = static_cast<std::int64_t>(segments.size());
  prologue_arguments.coefficients = coefficients_in(workspace, table);
  prologue(queue, prologue_arguments);
  StepArguments arguments{};
  arguments.segments = prologue_arguments.segments;
  arguments.coefficients = prologue_arguments.coefficients;
  launch(queue, table, arguments);
}

}  // namespace radam::cuda
