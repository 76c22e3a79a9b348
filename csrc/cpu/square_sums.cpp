// The sums of squares of gradients, one for each chunk (see ../sums.h). It is built once per
// instruction set, like the step.
#include "cursor.h"
#include "fold.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Distance of a prefetch in chunks.
constexpr std::int64_t kAhead = 2;

template <typename Stored>
void sum_chunks_of(const SumTables& tables, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t line = 64 / sizeof(Stored);
  Cursor here(tables, begin), ahead(tables, begin);
  const auto grad_of = [](const auto& cursor) {
    return static_cast<const Stored*>(cursor.segment->at[role::grad]) + cursor.offset;
  };
  for (std::int64_t chunk = begin; chunk < end; ++chunk) {
    if (chunk + kAhead < end) {
      ahead.move_to(chunk + kAhead);
      const Stored* const x = grad_of(ahead);
      for (std::int64_t i = 0; i < ahead.numel; i += line) __builtin_prefetch(x + i);
    }
    here.move_to(chunk);
    const Stored* const x = grad_of(here);
    tables.sums[chunk] = fold_squares(here.numel, [x](std::int64_t i) { return load(x[i]); });
  }
}

}  // namespace

void sum_range(const SumTables& tables, std::int64_t begin, std::int64_t end) {
  switch (tables.grad) {
    case DType::float64:
      return sum_chunks_of<double>(tables, begin, end);
    case DType::float32:
      return sum_chunks_of<float>(tables, begin, end);
    case DType::bfloat16:
      return sum_chunks_of<BFloat16>(tables, begin, end);
    case DType::float16:
      return sum_chunks_of<Half>(tables, begin, end);
  }
}

}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
