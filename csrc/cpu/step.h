// The CPU backend: one loop compiled once per instruction set, chosen when the module loads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../segments.h"

namespace radam::cpu {

// A launch without containers, whose functions a build for one instruction set must not define.
struct Tables {
  const Segment* segments;
  std::int64_t count;  // of segments
  const StepCoefficients* coefficients;
  SegmentTypes types;
  bool amsgrad;
  bool prefetch;  // whether the loop prefetches by itself
};

// The part of a launch that one thread does: scalars [begin, end) of the concatenated segments.
using StepRange = void (*)(const Tables& tables, std::int64_t begin, std::int64_t end);

namespace baseline {
void step_range(const Tables&, std::int64_t, std::int64_t);
}
namespace avx2 {
void step_range(const Tables&, std::int64_t, std::int64_t);
}
namespace avx512 {
void step_range(const Tables&, std::int64_t, std::int64_t);
}

// Names of the instruction sets that this build has and this machine runs, best first.
std::vector<std::string> instruction_sets();

// Updates every segment on the calling thread's OpenMP team; any thread count gives the same bits.
// prefetch: whether the loop prefetches by itself; by default where the processor gains by it.
void step(const Work& work, int threads, const std::string& instruction_set,
          std::optional<bool> prefetch);

}  // namespace radam::cpu
