// Passes the arguments of CUDA kernels to Python, which executes their PTX.
#include "bindings.h"

#include <utility>
#include <vector>

#include <pybind11/stl.h>

#include "cuda/kernels.h"

namespace py = pybind11;

namespace radam::cuda {
namespace {

py::object& launcher() {
  static auto* const held = new py::object;  // never destroyed: Python ends earlier
  return *held;
}

// Passes the arguments by value, with the DTypes of parameter, gradient and moments, which tensors
// of the state there are, and whether some are rounded stochastically.
template <typename Arguments>
void launch(const char* kernel, const Arguments& arguments, std::int64_t blocks,
            const SegmentTypes& types = {}) {
  const py::gil_scoped_acquire gil;
  const auto type = [&](int role) { return static_cast<int>(types.of[role]); };
  const auto* const bytes = reinterpret_cast<const char*>(&arguments);
  launcher()(kernel, py::bytes(bytes, sizeof arguments), blocks,
             py::make_tuple(type(role::param), type(role::grad), type(role::exp_avg)),
             std::vector<bool>(types.has, types.has + kRoles), types.draws_any());
}

std::int64_t blocks_for(std::int64_t num_items) {
  return (num_items + kThreads - 1) / kThreads;
}

}  // namespace

void upload(const Queue&, const UploadArguments& arguments) {
  launch("upload", arguments, blocks_for(arguments.num_words));
}

void prologue(const Queue&, const PrologueArguments& arguments) {
  launch("prologue", arguments, blocks_for(arguments.num_segments));
}

void step(const Queue&, const SegmentTypes& types, const StepArguments& arguments,
          std::int64_t blocks) {
  launch("step", arguments, blocks, types);
}

void sum(const Queue&, const SegmentTypes& types, const StepArguments& arguments,
         std::int64_t blocks) {
  launch("sum", arguments, blocks, types);
}

void fold(const Queue&, const FoldArguments& arguments, std::int64_t blocks) {
  launch("fold", arguments, blocks);
}

void clip(const Queue&, const ClipArguments& arguments) {
  launch("clip", arguments, 1);
}

void round(const Queue&, const RoundArguments& arguments) {
  launch("round", arguments, blocks_for(arguments.num_rows));
}

void bind_tests(py::module_& m) {
  m.def("set_launcher", [](py::object given) { launcher() = std::move(given); });
}

}  // namespace radam::cuda
