// The CUDA backend's kernels as calls of Python, which runs their PTX.
#include "bindings.h"

#include <utility>

#include "cuda/kernels.h"

namespace py = pybind11;

namespace radam::cuda {
namespace {

py::object& launcher() {
  static auto* const held = new py::object;  // not destroyed, because Python ends before
  return *held;
}

// Hands over the arguments by value. types: those of the parameter, the gradient and the moments,
// and whether there is amsgrad.
template <typename Arguments>
void launch(const char* kernel, const Arguments& arguments, std::int64_t blocks,
            const SegmentTypes& types = {}, bool amsgrad = false) {
  const py::gil_scoped_acquire gil;
  const auto type = [&](int role) { return static_cast<int>(types.of[role]); };
  launcher()(kernel, py::bytes(reinterpret_cast<const char*>(&arguments), sizeof arguments), blocks,
             py::make_tuple(type(role::param), type(role::grad), type(role::exp_avg)), amsgrad);
}

std::int64_t blocks_for(std::int64_t count) {
  return (count + kThreads - 1) / kThreads;
}

}  // namespace

bool is_served(const dlpack::Device& device) {
  return device.type == dlpack::kCPU;
}

std::optional<std::string> missing() {
  return std::nullopt;
}

std::optional<std::string> unusable(int) {
  return std::nullopt;
}

void upload(const Queue&, const UploadArguments& arguments) {
  launch("upload", arguments, blocks_for(arguments.count));
}

void prologue(const Queue&, const PrologueArguments& arguments) {
  launch("prologue", arguments, blocks_for(arguments.count));
}

void step(const Queue&, const SegmentTypes& types, bool amsgrad, const StepArguments& arguments,
          std::int64_t blocks) {
  launch("step", arguments, blocks, types, amsgrad);
}

void bind_tests(py::module_& m) {
  m.def("set_launcher", [](py::object given) { launcher() = std::move(given); });
}

}  // namespace radam::cuda
