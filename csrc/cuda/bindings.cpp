// The CUDA engine's part of radam_fused._C.
#include "../bindings.h"

#include <pybind11/stl.h>

#include "launch.h"

namespace radam::cuda {
namespace {

// As radam_fused.rectification.coefficients() names them; a learning rate that only the device
// knows is left out.
StepOptions options_from(const py::dict& d) {
  const auto number = [&](const char* name) { return d[name].cast<double>(); };
  const auto flag = [&](const char* name) { return d[name].cast<bool>(); };
  const auto betas = d["betas"].cast<std::pair<double, double>>();
  return {d.contains("lr") ? number("lr") : 0.0,
          betas.first,
          betas.second,
          number("eps"),
          number("weight_decay"),
          number("rectify_threshold"),
          1.0,
          flag("decoupled_weight_decay"),
          flag("maximize"),
          flag("rectify"),
          flag("exact_rectification"),
          flag("degenerated_to_sgd"),
          flag("eps_after_bias_correction"),
          flag("absolute_weight_decay"),
          flag("decay_skipped_steps")};
}

// A float32 scalar, or one of either width where `is_float64` is given, in the table's memory.
const void* scalar(const py::object& tensor, const char* name, const TensorTable& table,
                   bool* is_float64 = nullptr) {
  if (tensor.is_none()) return nullptr;
  const Range range = contiguous_range(tensor, name);
  const bool wide = range.dtype.bits == 64 && is_float64 != nullptr;
  if (range.device.type != table.device().type || range.device.id != table.device().id ||
      range.numel != 1 || range.dtype.code != dlpack::kFloat || !(range.dtype.bits == 32 || wide)) {
    throw std::invalid_argument(std::string(name) +
                                " must be one float32 number on the parameters' device");
  }
  if (wide) *is_float64 = true;
  return range.address;
}

void* workspace_of(const py::object& tensor, const TensorTable& table) {
  const Range range = contiguous_range(tensor, "workspace");
  const auto bytes = static_cast<std::size_t>(range.numel) * range.dtype.bits / 8;
  if (range.device.type != table.device().type || range.device.id != table.device().id ||
      bytes < Launch::workspace_bytes(table.size())) {
    throw std::invalid_argument("workspace lies elsewhere or is too small");
  }
  return range.address;
}

Queue queue_for(const TensorTable& table, std::uintptr_t stream) {
  if (!is_served(table.device())) {
    throw std::invalid_argument("cuda_step takes tensors in a CUDA device's memory");
  }
  return {table.device().id, reinterpret_cast<void*>(stream)};
}

void host_counted_step(Launch& launch, TensorTable& table, const py::object& workspace,
                       std::uintptr_t stream, const py::list& coefficients) {
  if (table.counts_on_device()) throw std::invalid_argument("the device counts these steps");
  const Queue queue = queue_for(table, stream);
  void* const memory = workspace_of(workspace, table);
  const auto steps = coefficients_for(table, coefficients);
  const py::gil_scoped_release release;  // a full queue makes a launch wait
  launch.step(queue, table, memory, steps);
}

void device_counted_step(Launch& launch, TensorTable& table, const py::object& workspace,
                         std::uintptr_t stream, const py::dict& options, const py::object& lr,
                         const py::object& grad_scale, const py::object& found_inf) {
  if (!table.counts_on_device()) throw std::invalid_argument("the host counts these steps");
  PrologueArguments arguments{};
  arguments.options = options_from(options);
  arguments.lr = scalar(lr, "lr", table, &arguments.lr_is_float64);
  arguments.grad_scale = static_cast<const float*>(scalar(grad_scale, "grad_scale", table));
  arguments.found_inf = static_cast<const float*>(scalar(found_inf, "found_inf", table));
  const Range counters = table.counters();
  arguments.counters = counters.address;
  arguments.counters_are_float64 = counters.dtype.bits == 64;
  const Queue queue = queue_for(table, stream);
  void* const memory = workspace_of(workspace, table);
  const py::gil_scoped_release release;
  launch.step(queue, table, memory, arguments);
}

}  // namespace

void bind(py::module_& m) {
  m.attr("cuda_chunk") = kChunk;
  m.attr("cuda_architectures") = RADAM_CUDA;
  m.def("cuda_missing", &missing);
  m.def("cuda_unusable", &unusable, py::arg("device"));
  m.def("cuda_workspace_bytes", &Launch::workspace_bytes, py::arg("rows"));
  py::class_<Launch>(m, "CudaLaunch", py::module_local())
      .def(py::init<>())
      .def("step", &host_counted_step, py::arg("table"), py::arg("workspace"), py::arg("stream"),
           py::arg("coefficients"))
      .def("counting_step", &device_counted_step, py::arg("table"), py::arg("workspace"),
           py::arg("stream"), py::arg("options"), py::arg("lr"), py::arg("grad_scale"),
           py::arg("found_inf"));
}

}  // namespace radam::cuda
