// Runs the kernels of one TensorTable. Decides which part of it is passed in kernel arguments and
// which is kept in device memory, and copies that part when it has changed.
#pragma once

#include <cstddef>
#include <vector>

#include "../chunk_index.h"
#include "../segments.h"
#include "kernels.h"

namespace radam::cuda {

// A range of device memory and a host copy of its content.
class CachedRange {
 public:
  // Copies `bytes`, a multiple of 8, from the host to `to`, unless the same bytes are there.
  // Returns whether it copies.
  bool copy(const Queue& queue, void* to, const void* from, std::size_t bytes);

 private:
  void* at_ = nullptr;
  std::vector<char> content_;
};

// Knows the content of one workspace. A new workspace needs a new Upload.
class Upload {
 public:
  // Enqueues one step. workspace: device memory for `num_rows` segments, `num_rows` coefficients in
  // float64 and then the options. All data is passed in kernel arguments, so a replay of a captured
  // graph reads no host memory. A captured step needs its own workspace and Upload: each replay
  // then writes the whole workspace.
  void step(const Queue& queue, const Work& work, void* workspace, std::size_t num_rows);

 private:
  CachedRange segments_, options_;
  ChunkIndex<IndexEntry> index_;  // of segments_
};

}  // namespace radam::cuda
