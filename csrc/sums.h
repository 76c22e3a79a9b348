// Sums of squares in float64, in an order that is the same on every backend: with any number of
// threads, blocks or processes they have the same bits.
//
// 1,024 numbers are summed by folding: the second half is added to the first half, number by
// number, then the second quarter to the first, until one is left. Missing numbers count as zeros.
// A parameter is summed in chunks of 1,024 scalars in its memory order, then its chunks in chunks
// of 1,024, and so on; then the parameters in the order of the groups in the same way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "segments.h"

namespace radam {

constexpr std::int64_t kSumChunk = 1024;

inline std::int64_t sum_chunks(std::int64_t numel) {
  return (numel + kSumChunk - 1) / kSumChunk;
}

// The sum of at most kSumChunk numbers, which it overwrites.
inline __attribute__((always_inline)) double fold(double* values, std::int64_t numel) {
  if (numel == 0) return 0;
  for (std::int64_t width = kSumChunk / 2; width > 0; width /= 2) {
    double* __restrict to = values;
    const double* __restrict from = values + width;
    for (std::int64_t i = 0; i < numel - width; ++i) to[i] += from[i];
    numel = numel < width ? numel : width;  // no function that the linker could share
  }
  return values[0];
}

// Numbers that are folded into one.
struct FoldRow {
  std::int64_t first;  // index of the first one
  std::int64_t numel;  // at most kSumChunk
  std::int64_t to;     // index of the result
};

// How a device sums the chunks of several parameters: in levels, each of which folds every
// kSumChunk numbers of a parameter into one.
struct FoldLevels {
  std::vector<FoldRow> rows;        // of all levels, one after the other
  std::vector<std::int64_t> sizes;  // the number of rows of each level
  std::int64_t numbers = 0;  // of the chunks, followed by the results of all levels but the last
};

// segments: they begin at whole chunks. indices: of their sums.
inline FoldLevels fold_levels(const std::vector<Segment>& segments,
                              const std::vector<std::int64_t>& indices) {
  FoldLevels result;
  std::vector<std::int64_t> firsts, counts;
  for (const Segment& segment : segments) {
    firsts.push_back(segment.first / kSumChunk);
    counts.push_back(sum_chunks(segment.numel));
    result.numbers = firsts.back() + counts.back();
  }
  bool is_last = false;
  while (!is_last) {
    is_last = std::all_of(counts.begin(), counts.end(),
                          [](std::int64_t count) { return count <= kSumChunk; });
    const std::size_t begin = result.rows.size();
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const std::int64_t first = firsts[i], count = counts[i];
      const std::int64_t chunks = std::max<std::int64_t>(sum_chunks(count), 1);
      firsts[i] = result.numbers;
      counts[i] = chunks;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        const std::int64_t done = chunk * kSumChunk;
        result.rows.push_back({first + done, std::min(kSumChunk, count - done),
                               is_last ? indices[i] : result.numbers++});
      }
    }
    result.sizes.push_back(static_cast<std::int64_t>(result.rows.size() - begin));
  }
  return result;
}

// The sum of any number of numbers, which it overwrites.
inline double fold_all(double* values, std::int64_t numel) {
  while (numel > kSumChunk) {
    const std::int64_t chunks = sum_chunks(numel);
    for (std::int64_t i = 0; i < chunks; ++i) {
      const std::int64_t first = i * kSumChunk;
      values[i] = fold(values + first, std::min(kSumChunk, numel - first));
    }
    numel = chunks;
  }
  return fold(values, numel);
}

// The memory of the sums of a launch, kept between steps.
struct SumMemory {
  std::vector<std::int64_t> first_chunks;
  std::vector<double> partial;
};

// Finds the index of the first chunk of each segment, and the number of all chunks.
inline void find_first_chunks(const std::vector<Segment>& segments, SumMemory& memory) {
  memory.first_chunks.assign(1, 0);
  for (const Segment& segment : segments) {
    memory.first_chunks.push_back(memory.first_chunks.back() + sum_chunks(segment.numel));
  }
  memory.partial.resize(static_cast<std::size_t>(memory.first_chunks.back()));
}

}  // namespace radam
