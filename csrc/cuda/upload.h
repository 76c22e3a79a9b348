// Runs the kernels of one TensorTable. Decides which part of it is passed in kernel arguments and
// which is kept in device memory, and copies that part when it has changed.
#pragma once

#include <cstddef>
#include <vector>

#include "../chunk_index.h"
#include "../segments.h"
#include "kernels.h"

namespace radam::cuda {

// The sum of numbers in device memory, in the order of ../sums.h. to: device memory for
// fold_results() numbers; the last one is the sum.
void fold_all(const Queue& queue, const double* from, std::int64_t numel, double* to);
std::int64_t fold_results(std::int64_t numel);

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
  // What sums of squares of a launch need: the index of each segment's sum among `sums`, which lie
  // in device memory, and scratch_bytes() of device memory.
  struct Sums {
    std::vector<std::int64_t> indices;
    void* scratch;
    double* sums;
  };

  // Enqueues one step. workspace: device memory for `num_rows` segments, `num_rows` coefficients in
  // float64, as many Draws if values are rounded stochastically, and the options. All data is
  // passed in kernel arguments, so a replay of a captured graph reads no host memory. A captured
  // step needs its own workspace and Upload: each replay then writes the whole workspace. tracked:
  // null, or where to sum the squares of the differences that the step makes to the stored
  // parameters.
  void step(const Queue& queue, const Work& work, void* workspace, std::size_t num_rows,
            const Sums* tracked);

  // Enqueues the sum of the squares of each segment's gradient.
  void sum_squares(const Queue& queue, const Work& work, void* workspace, const Sums& sums);
  static std::size_t scratch_bytes(const Work& work);
  // Another scratch follows, perhaps at the same address.
  void forget_rows() { rows_ = {}; }

 private:
  void set_segments(const Queue& queue, const Work& work, void* workspace,
                    StepArguments& arguments);
  void fold_chunks(const Queue& queue, const Work& work, const Sums& sums);

  CachedRange segments_, draws_, options_, rows_;
  ChunkIndex<IndexEntry> index_;  // of segments_
};

}  // namespace radam::cuda
