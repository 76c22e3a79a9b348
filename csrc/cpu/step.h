// The CPU engine: one loop compiled once per instruction set, chosen when the module loads.
#pragma once

#include <string>
#include <vector>

#include "../segments.h"

namespace radam::cpu {

// The part of a launch that one thread does: scalars [begin, end) of the concatenated segments.
using StepRange = void (*)(const Segment* segments, std::int64_t count, const SegmentTypes& types,
                           const StepCoefficients* coefficients, std::int64_t begin,
                           std::int64_t end);

namespace baseline {
void step_range(const Segment*, std::int64_t, const SegmentTypes&, const StepCoefficients*,
                std::int64_t, std::int64_t);
}
namespace avx2 {
void step_range(const Segment*, std::int64_t, const SegmentTypes&, const StepCoefficients*,
                std::int64_t, std::int64_t);
}
namespace avx512 {
void step_range(const Segment*, std::int64_t, const SegmentTypes&, const StepCoefficients*,
                std::int64_t, std::int64_t);
}

// Names of the instruction sets that this build has and this machine runs, best first.
std::vector<std::string> instruction_sets();

// Updates every segment on the calling thread's OpenMP team; any thread count gives the same bits.
void step(const std::vector<Segment>& segments, const SegmentTypes& types,
          const std::vector<StepCoefficients>& coefficients, int threads,
          const std::string& instruction_set);

}  // namespace radam::cpu
