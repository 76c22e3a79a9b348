// Where a thread begins in the segments, and its way through their chunks. It is compiled once per
// instruction set.
#pragma once

#include "step.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// The last segment that starts at or before a place. first(i): where segment i starts.
template <typename First>
std::int64_t segment_of(std::int64_t num_segments, std::int64_t place, const First& first) {
  std::int64_t low = 0, high = num_segments;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (first(middle) <= place ? low : high) = middle;
  }
  return low;
}

// Ascending chunks of the segments of Tables or SumTables.
template <typename T>
class Cursor {
 public:
  Cursor(const T& tables, std::int64_t chunk)
      : tables_(tables), index_(segment_of(tables.num_segments, chunk, [&](std::int64_t i) {
          return tables.first_chunks[i];
        })) {}

  // Moves to a chunk that is not before the last one.
  void move_to(std::int64_t chunk) {
    while (tables_.first_chunks[index_ + 1] <= chunk) ++index_;
    segment = &tables_.segments[index_];
    offset = (chunk - tables_.first_chunks[index_]) * kSumChunk;
    numel = segment->numel - offset < kSumChunk ? segment->numel - offset : kSumChunk;
  }

  const Segment* segment = nullptr;
  std::int64_t offset = 0, numel = 0;  // of the chunk in its segment

 private:
  const T& tables_;
  std::int64_t index_;
};

}  // namespace
}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
