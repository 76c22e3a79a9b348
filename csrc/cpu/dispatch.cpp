#include <algorithm>
#include <stdexcept>

#include <omp.h>

#include "step.h"

namespace radam::cpu {
namespace {

// Below this many scalars a thread, waking it costs more than it saves.
constexpr std::int64_t kGrain = 32768;
// Boundaries between threads fall on whole cache lines of a flat buffer of any dtype.
constexpr std::int64_t kAlign = 64;

struct Build {
  const char* name;
  StepRange step_range;
  bool (*runs_here)();
};

const Build kBuilds[] = {
#if defined(RADAM_X86_64)
    {"avx512", avx512::step_range,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {"avx2", avx2::step_range, [] { return bool(__builtin_cpu_supports("avx2")); }},
#endif
    {"baseline", baseline::step_range, [] { return true; }},
};

StepRange find(const std::string& instruction_set) {
  for (const Build& build : kBuilds) {
    if (instruction_set == build.name && build.runs_here()) return build.step_range;
  }
  throw std::invalid_argument("instruction set '" + instruction_set + "' does not run here");
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Build& build : kBuilds) {
    if (build.runs_here()) names.emplace_back(build.name);
  }
  return names;
}

void step(const std::vector<Segment>& segments, const SegmentTypes& types,
          const std::vector<StepCoefficients>& coefficients, int threads,
          const std::string& instruction_set) {
  const StepRange step_range = find(instruction_set);
  if (segments.empty()) return;
  const std::int64_t total = segments.back().first + segments.back().numel;
  const std::int64_t count = static_cast<std::int64_t>(segments.size());
  const std::int64_t useful = std::clamp<std::int64_t>(total / kGrain, 1, std::max(threads, 1));
  const auto boundary = [&](std::int64_t part, std::int64_t parts) {
    return part == parts ? total : total / parts * part / kAlign * kAlign;
  };
  // The team can be smaller than asked for, so the parts are counted inside.
#pragma omp parallel num_threads(static_cast<int>(useful))
  {
    const std::int64_t parts = omp_get_num_threads();
    const std::int64_t part = omp_get_thread_num();
    step_range(segments.data(), count, types, coefficients.data(), boundary(part, parts),
               boundary(part + 1, parts));
  }
}

}  // namespace radam::cpu
