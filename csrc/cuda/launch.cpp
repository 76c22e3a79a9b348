#include "launch.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace radam::cuda {
namespace {

static_assert(sizeof(StepArguments) <= 4096, "the arguments of a kernel on every device");
static_assert(sizeof(UploadArguments) <= 32764, "the arguments of a kernel since CUDA 12.1");
static_assert(std::has_unique_object_representations_v<Segment>, "compared by its bytes");
static_assert(sizeof(DeviceOptions) == (kOptions + 4) * 8, "compared by its bytes");

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

template <typename Row>
std::size_t bytes_of(const std::vector<Row>& rows) {
  return rows.size() * sizeof(Row);
}

}  // namespace

void DeviceTable::bring(const Queue& queue, void* to, const void* from, std::size_t bytes) {
  if (at_ == to && held_.size() == bytes && std::memcmp(held_.data(), from, bytes) == 0) return;
  at_ = nullptr;  // unknown until all of it is there
  upload_all(queue, to, from, bytes);
  const char* const begin = static_cast<const char*>(from);
  held_.assign(begin, begin + bytes);
  at_ = to;
}

void Upload::step(const Queue& queue, const Work& work, void* workspace, std::size_t rows) {
  if (work.segments.empty()) return;
  auto* const segments = static_cast<Segment*>(workspace);
  auto* const coefficients = reinterpret_cast<StepCoefficients*>(segments + rows);
  auto* const options = reinterpret_cast<DeviceOptions*>(coefficients + rows);
  const Segment& last = work.segments.back();
  const std::int64_t blocks = (last.first + last.numel + kChunk - 1) / kChunk;

  StepArguments arguments{};
  arguments.count = static_cast<std::int64_t>(work.segments.size());
  if (work.counts_on_device || work.segments.size() > kFewSegments) {
    segments_.bring(queue, segments, work.segments.data(), bytes_of(work.segments));
    arguments.segments = segments;
  } else {
    std::copy(work.segments.begin(), work.segments.end(), arguments.few_segments);
  }
  if (work.counts_on_device) {
    options_.bring(queue, options, work.options.data(), bytes_of(work.options));
    prologue(queue, {segments, arguments.count, options, coefficients,
                     work.types.of[role::step] == DType::float64});
    arguments.coefficients = coefficients;
  } else if (work.coefficients.size() > kFewCoefficients) {
    upload_all(queue, coefficients, work.coefficients.data(), bytes_of(work.coefficients));
    arguments.coefficients = coefficients;
  } else {
    std::copy(work.coefficients.begin(), work.coefficients.end(), arguments.few_coefficients);
  }
  if (blocks == 0) return;
  arguments.segments_per_block = static_cast<float>(arguments.count) / static_cast<float>(blocks);
  cuda::step(queue, work.types, work.amsgrad, arguments, blocks);
}

}  // namespace radam::cuda
