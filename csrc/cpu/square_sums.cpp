// The sums of squares of gradients, one for each chunk (see ../sums.h). It is built once per
// instruction set, like the step.
#include "fold.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Distance of a prefetch in chunks.
constexpr std::int64_t kAhead = 2;

// The gradients of ascending chunks.
template <typename Stored>
class Cursor {
 public:
  Cursor(const SumTables& tables, std::int64_t chunk)
      : tables_(tables), segment_(segment_of(tables.first_chunks, tables.num_segments, chunk)) {}

  // Moves to a chunk that is not before the last one.
  void move_to(std::int64_t chunk) {
    while (tables_.first_chunks[segment_ + 1] <= chunk) ++segment_;
    const Segment& s = tables_.segments[segment_];
    const std::int64_t offset = (chunk - tables_.first_chunks[segment_]) * kSumChunk;
    at = static_cast<const Stored*>(s.at[role::grad]) + offset;
    numel = s.numel - offset < kSumChunk ? s.numel - offset : kSumChunk;
  }

  const Stored* at = nullptr;
  std::int64_t numel = 0;

 private:
  const SumTables& tables_;
  std::int64_t segment_;
};

template <typename Stored>
void sum_chunks_of(const SumTables& tables, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t line = 64 / sizeof(Stored);
  Cursor<Stored> here(tables, begin), ahead(tables, begin);
  for (std::int64_t chunk = begin; chunk < end; ++chunk) {
    if (chunk + kAhead < end) {
      ahead.move_to(chunk + kAhead);
      for (std::int64_t i = 0; i < ahead.numel; i += line) __builtin_prefetch(ahead.at + i);
    }
    here.move_to(chunk);
    const Stored* const x = here.at;
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
