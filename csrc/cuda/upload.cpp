#include "upload.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace radam::cuda {
namespace {

static_assert(sizeof(StepArguments) <= 4096, "at most 4 KB of kernel arguments on every device");
static_assert(sizeof(UploadArguments) <= 32764,
              "at most 32,764 bytes of kernel arguments since CUDA 12.1");
static_assert(std::has_unique_object_representations_v<Segment>, "rows are compared byte by byte");
static_assert(std::has_unique_object_representations_v<Draw>, "rows are compared byte by byte");
static_assert(sizeof(DeviceOptions) == (kOptions + 5) * 8, "rows are compared byte by byte");

void upload_all(const Queue& queue, void* to, const void* from, std::size_t bytes) {
  const std::size_t words = bytes / sizeof(std::uint64_t);
  UploadArguments arguments;
  for (std::size_t done = 0; done < words;) {
    const std::size_t num_words = std::min(words - done, kUploadWords);
    arguments.to = static_cast<std::uint64_t*>(to) + done;
    arguments.num_words = static_cast<std::int64_t>(num_words);
    std::memcpy(arguments.words, static_cast<const char*>(from) + done * sizeof(std::uint64_t),
                num_words * sizeof(std::uint64_t));
    upload(queue, arguments);
    done += num_words;
  }
}

std::int64_t larger(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}

template <typename Row>
std::size_t bytes_of(const std::vector<Row>& rows) {
  return rows.size() * sizeof(Row);
}

}  // namespace

bool CachedRange::copy(const Queue& queue, void* to, const void* from, std::size_t bytes) {
  if (at_ == to && content_.size() == bytes && std::memcmp(content_.data(), from, bytes) == 0) {
    return false;
  }
  at_ = nullptr;  // the content is unknown if a copy fails
  upload_all(queue, to, from, bytes);
  const char* const begin = static_cast<const char*>(from);
  content_.assign(begin, begin + bytes);
  at_ = to;
  return true;
}

std::int64_t fold_results(std::int64_t numel) {
  std::int64_t results = 0;
  do {
    numel = larger(sum_chunks(numel), 1);
    results += numel;
  } while (numel > 1);
  return results;
}

void fold_all(const Queue& queue, const double* from, std::int64_t numel, double* to) {
  do {
    const std::int64_t chunks = larger(sum_chunks(numel), 1);
    fold(queue, {from, nullptr, to, numel}, chunks);
    from = to;
    to += chunks;
    numel = chunks;
  } while (numel > 1);
}

std::size_t Upload::scratch_bytes(const Work& work) {
  const std::vector<std::int64_t> indices(work.segments.size());
  const FoldLevels found = fold_levels(work.segments, indices);
  return static_cast<std::size_t>(found.numbers) * sizeof(double) + bytes_of(found.rows);
}

void Upload::sum_squares(const Queue& queue, const Work& work, void* workspace, const Sums& sums) {
  if (work.segments.empty()) return;
  StepArguments arguments{};
  set_segments(queue, work, workspace, arguments);
  arguments.sums = static_cast<double*>(sums.scratch);
  const std::int64_t blocks = chunks_of(work.segments, kSumChunk);
  if (blocks > 0) sum(queue, work.types, arguments, blocks);
  fold_chunks(queue, work, sums);
}

// Folds the sums of chunks, which lie at the start of the scratch, into those of segments.
void Upload::fold_chunks(const Queue& queue, const Work& work, const Sums& sums) {
  const FoldLevels found = fold_levels(work.segments, sums.indices);
  auto* const numbers = static_cast<double*>(sums.scratch);
  auto* row = reinterpret_cast<FoldRow*>(numbers + found.numbers);
  rows_.copy(queue, row, found.rows.data(), bytes_of(found.rows));
  for (const std::int64_t& size : found.sizes) {
    const bool is_last = &size == &found.sizes.back();
    fold(queue, {numbers, row, is_last ? sums.sums : numbers, 0}, size);
    row += size;
  }
}

void Upload::set_segments(const Queue& queue, const Work& work, void* workspace,
                          StepArguments& arguments) {
  auto* const segments = static_cast<Segment*>(workspace);
  arguments.num_segments = static_cast<std::int64_t>(work.segments.size());
  if (work.counts_on_device || work.segments.size() > kFewSegments) {
    if (segments_.copy(queue, segments, work.segments.data(), bytes_of(work.segments))) {
      index_ = chunk_index<IndexEntry>(work.segments, kChunk, kIndexEntries);
    }
    arguments.segments = segments;
    arguments.index_shift = index_.shift;
    arguments.index_scale = index_.scale;
    std::copy(index_.entries.begin(), index_.entries.end(), arguments.index);
  } else {
    std::copy(work.segments.begin(), work.segments.end(), arguments.few_segments);
  }
}

void Upload::step(const Queue& queue, const Work& work, void* workspace, std::size_t num_rows,
                  const Sums* tracked) {
  if (work.segments.empty()) return;
  auto* const segments = static_cast<Segment*>(workspace);
  auto* const coefficients = reinterpret_cast<StepCoefficients<double>*>(segments + num_rows);
  auto* const given = coefficients + num_rows;
  auto* draws = reinterpret_cast<Draw*>(given + num_rows);
  auto* const options =
      reinterpret_cast<DeviceOptions*>(draws + (work.types.draws_any() ? num_rows : 0));
  const std::int64_t blocks = chunks_of(work.segments, kChunk);

  StepArguments arguments{};
  set_segments(queue, work, workspace, arguments);
  if (work.draws.empty()) draws = nullptr;
  arguments.draws = draws;
  draws_.copy(queue, draws, work.draws.data(), bytes_of(work.draws));
  if (work.counts_on_device) {
    options_.copy(queue, options, work.options.data(), bytes_of(work.options));
    prologue(queue,
             {segments, arguments.num_segments, options, coefficients, draws,
              work.types.of[role::step] == DType::float64, work.types.arithmetic_is_float64()});
    arguments.coefficients = coefficients;
  } else if (work.clip != nullptr) {
    upload_all(queue, given, work.coefficients.data(), work.coefficients.size());
    const std::size_t rows = work.coefficients.size() / sizeof *given;
    round(queue, {given, work.clip, coefficients, static_cast<std::int64_t>(rows),
                  work.types.arithmetic_is_float64()});
    arguments.coefficients = coefficients;
  } else if (work.coefficients.size() > kFewCoefficientsBytes) {
    upload_all(queue, coefficients, work.coefficients.data(), work.coefficients.size());
    arguments.coefficients = coefficients;
  } else {
    std::copy(work.coefficients.begin(), work.coefficients.end(), arguments.few_coefficients);
  }
  if (tracked != nullptr) arguments.sums = static_cast<double*>(tracked->scratch);
  if (blocks > 0) cuda::step(queue, work.types, arguments, blocks);
  if (tracked != nullptr) fold_chunks(queue, work, *tracked);
}

}  // namespace radam::cuda
