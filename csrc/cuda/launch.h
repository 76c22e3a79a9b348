// The launches of one table: what travels in a kernel's arguments, what lies in device memory and
// when it is brought there.
#pragma once

#include <cstddef>
#include <vector>

#include "../segments.h"
#include "kernels.h"

namespace radam::cuda {

// A table in device memory and what it holds.
class DeviceTable {
 public:
  // Brings `bytes`, a multiple of 8, to `to`, unless they are there.
  void bring(const Queue& queue, void* to, const void* from, std::size_t bytes);

 private:
  void* at_ = nullptr;
  std::vector<char> held_;
};

// What a workspace holds. A workspace in new memory needs a new Upload.
class Upload {
 public:
  // Enqueues a step. workspace: device memory for `rows` segments, then as many coefficients, then
  // the options. Everything comes from the arguments of kernels, so a replay of a captured graph
  // needs no host memory; a capture needs a workspace and an Upload of its own, so that each replay
  // writes the whole workspace.
  void step(const Queue& queue, const Work& work, void* workspace, std::size_t rows);

 private:
  DeviceTable segments_, options_;
};

}  // namespace radam::cuda
