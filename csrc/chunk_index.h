// Where the segments of a launch begin: for every so many chunks, the segment that holds the first
// of them. With it, a block finds its segment between two entries instead of in the whole table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "segments.h"

namespace radam {

// Entry i tells the segment that holds chunk i << shift, or the last segment if there is no such
// chunk: its number, shifted right by `scale` so that it fits. The segment of chunk c is
//   at least entry[c >> shift] << scale, and below (entry[(c >> shift) + 1] + 1) << scale.
template <typename Entry>
struct ChunkIndex {
  std::vector<Entry> entries;
  std::int32_t shift = 0;
  std::int32_t scale = 0;
};

// The chunks of some segments, of `chunk` elements each.
inline std::int64_t chunks_of(const std::vector<Segment>& segments, std::int64_t chunk) {
  if (segments.empty()) return 0;
  return (segments.back().first + segments.back().numel + chunk - 1) / chunk;
}

// The index with at most `most` entries, at least 2, that has the smallest shift.
template <typename Entry>
ChunkIndex<Entry> chunk_index(const std::vector<Segment>& segments, std::int64_t chunk,
                              std::size_t most) {
  const std::int64_t chunks = chunks_of(segments, chunk);
  const std::size_t last = segments.empty() ? 0 : segments.size() - 1;
  ChunkIndex<Entry> index;
  while (static_cast<std::size_t>(((chunks - 1) >> index.shift) + 2) > most) ++index.shift;
  while (last >> index.scale > std::numeric_limits<Entry>::max()) ++index.scale;
  const auto add = [&](std::size_t segment) {
    index.entries.push_back(static_cast<Entry>(segment >> index.scale));
  };
  std::size_t at = 0;
  for (std::int64_t first = 0; first < chunks; first += std::int64_t{1} << index.shift) {
    while (at < last && segments[at + 1].first <= first * chunk) ++at;
    add(at);
  }
  add(last);
  return index;
}

}  // namespace radam
