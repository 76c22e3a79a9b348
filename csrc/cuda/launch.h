// One table's launches: what travels in arguments, what lies in device memory and when it is
// brought there.
#pragma once

#include <vector>

#include "../tensor_table.h"
#include "engine.h"

namespace radam::cuda {

// What it has brought there it does not bring again: a workspace belongs to one Launch.
class Launch {
 public:
  // Bytes of device memory for a table of so many parameters.
  static std::size_t workspace_bytes(std::size_t rows);

  // The step that refresh() prepared, counted on the host.
  void step(const Queue& queue, const TensorTable& table, void* workspace,
            const std::vector<StepCoefficients>& coefficients);

  // The same counted on the device; `prologue` says what the coefficients are computed from and
  // where the counters are, and the tables are filled in.
  void step(const Queue& queue, const TensorTable& table, void* workspace,
            PrologueArguments prologue);

 private:
  void upload_segments(const Queue& queue, const std::vector<Segment>& segments, void* workspace);

  std::vector<Segment> uploaded_;  // empty: unknown
};

}  // namespace radam::cuda
