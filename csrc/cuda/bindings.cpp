// The CUDA backend in radam_fused._C.
#include "../bindings.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include <pybind11/stl.h>

#include "../torch_tensors.h"
#include "upload.h"

namespace radam::cuda {
namespace {

std::string name_of(const dlpack::Device& device) {
  if (device.type == dlpack::kCPU) return "the CPU";
  if (device.type == dlpack::kCUDA) return "CUDA device " + std::to_string(device.id);
  return "a device of DLPack type " + std::to_string(device.type);
}

void* workspace_of(const py::object& tensor, const TensorTable& table) {
  const Range range = contiguous_range(tensor, "workspace");
  const auto bytes = static_cast<std::size_t>(range.numel) * range.dtype.bits / 8;
  const std::size_t needed = table.workspace_bytes(table.work().options.size());
  if (range.device.type != table.device().type || range.device.id != table.device().id ||
      bytes < needed) {
    throw std::invalid_argument("workspace has " + std::to_string(bytes) + " bytes on " +
                                name_of(range.device) + ", expected at least " +
                                std::to_string(needed) + " on " + name_of(table.device()));
  }
  return range.address;
}

std::size_t bytes_of(const Range& range) {
  return static_cast<std::size_t>(range.numel) * range.dtype.bits / 8;
}

// Device memory of a tensor.
Range on_device(const py::object& tensor, const std::string& name, std::size_t bytes) {
  const Range range = contiguous_range(tensor, name);
  if (!is_served(range.device) || bytes_of(range) < bytes) {
    throw std::invalid_argument(name + " has " + std::to_string(bytes_of(range)) + " bytes on " +
                                name_of(range.device) + ", expected at least " +
                                std::to_string(bytes) + " on a CUDA device");
  }
  return range;
}

Range numbers_on_device(const py::object& tensor, const std::string& name, std::size_t count) {
  const Range range = on_device(tensor, name, count * sizeof(double));
  if (range.dtype.code != dlpack::kFloat || range.dtype.bits != 64) {
    throw std::invalid_argument(name + " is not float64");
  }
  return range;
}

Upload::Sums sums_of(const TensorTable& table, const std::vector<std::int64_t>& first_of_group,
                     const py::object& sums, const py::object& scratch) {
  std::vector<std::int64_t> indices = table.indices(first_of_group);
  if (indices.size() != table.work().segments.size()) {
    throw std::invalid_argument("the table was not read for sums");
  }
  const auto last = std::max_element(indices.begin(), indices.end());
  const auto count = static_cast<std::size_t>(last == indices.end() ? 0 : *last + 1);
  const Range to = numbers_on_device(sums, "sums", count);
  const Range memory = on_device(scratch, "scratch", Upload::scratch_bytes(table.work()));
  return {std::move(indices), memory.address, static_cast<double*>(to.address)};
}

void upload_and_step(Upload& upload, TensorTable& table, const py::object& workspace,
                     std::uintptr_t stream, const std::vector<std::int64_t>& first_of_group,
                     const py::object& sums, const py::object& scratch) {
  const dlpack::Device& device = table.device();
  if (!is_served(device)) {
    throw std::invalid_argument("expected CUDA tensors, got tensors on " + name_of(device));
  }
  void* const memory = workspace_of(workspace, table);
  const Queue queue{device.id, reinterpret_cast<void*>(stream)};
  std::optional<Upload::Sums> tracked;
  if (!sums.is_none()) tracked = sums_of(table, first_of_group, sums, scratch);
  run_launch(table, [&](const Work& work) {
    upload.step(queue, work, memory, table.size(), tracked ? &*tracked : nullptr);
  });
}

void sum_squares(Upload& upload, TensorTable& table, const py::object& workspace,
                 std::uintptr_t stream, const std::vector<std::int64_t>& first_of_group,
                 const py::object& sums, const py::object& scratch) {
  if (!table.is_active()) return;
  const Upload::Sums found = sums_of(table, first_of_group, sums, scratch);
  const Queue queue{table.device().id, reinterpret_cast<void*>(stream)};
  void* const memory = workspace_of(workspace, table);
  const py::gil_scoped_release release;
  upload.sum_squares(queue, table.work(), memory, found);
}

void fold_numbers(const py::object& numbers, const py::object& results, std::uintptr_t stream) {
  const Range from = numbers_on_device(numbers, "numbers", 0);
  const Range to =
      numbers_on_device(results, "results", static_cast<std::size_t>(fold_results(from.numel)));
  const Queue queue{from.device.id, reinterpret_cast<void*>(stream)};
  const py::gil_scoped_release release;
  fold_all(queue, static_cast<const double*>(from.address), from.numel,
           static_cast<double*>(to.address));
}

void clip_step(const py::object& square_sum, const py::object& grad_scale, const py::object& failed,
               double max_norm, double skip_above, bool skips_nonfinite, const py::object& state,
               std::uintptr_t stream) {
  const Range to = numbers_on_device(state, "state", sizeof(ClipState) / sizeof(double));
  const auto number = [](const py::object& tensor, const char* name) -> const double* {
    if (tensor.is_none()) return nullptr;
    return static_cast<const double*>(numbers_on_device(tensor, name, 1).address);
  };
  const float* scale = nullptr;
  if (!grad_scale.is_none()) {
    scale = static_cast<const float*>(on_device(grad_scale, "grad_scale", sizeof *scale).address);
  }
  clip({to.device.id, reinterpret_cast<void*>(stream)},
       {number(square_sum, "square_sum"),
        scale,
        number(failed, "failed"),
        {max_norm, skip_above, skips_nonfinite ? 1.0 : 0.0},
        static_cast<ClipState*>(to.address)});
}

}  // namespace

void bind(py::module_& m) {
  m.attr("cuda_chunk") = kPadding;
  m.attr("cuda_architectures") = RADAM_CUDA;
  m.def("cuda_unavailable", &unavailable);
  m.def("cuda_unsupported", &unsupported, py::arg("device"));
  py::class_<Upload>(m, "CudaUpload", py::module_local())
      .def(py::init<>())
      .def("step", &upload_and_step, py::arg("table"), py::arg("workspace"), py::arg("stream"),
           py::arg("first_of_group") = std::vector<std::int64_t>(), py::arg("sums") = py::none(),
           py::arg("scratch") = py::none())
      .def("forget_rows", &Upload::forget_rows)
      .def("sum_squares", &sum_squares, py::arg("table"), py::arg("workspace"), py::arg("stream"),
           py::arg("first_of_group"), py::arg("sums"), py::arg("scratch"));
  m.def("cuda_scratch_bytes", [](const TensorTable& t) { return Upload::scratch_bytes(t.work()); });
  m.def("cuda_fold_results", &fold_results, py::arg("numel"));
  m.def("cuda_fold", &fold_numbers, py::arg("numbers"), py::arg("results"), py::arg("stream"));
  m.def("cuda_clip", &clip_step, py::arg("square_sum"), py::arg("grad_scale"), py::arg("failed"),
        py::arg("max_norm"), py::arg("skip_above"), py::arg("skips_nonfinite"), py::arg("state"),
        py::arg("stream"));
}

}  // namespace radam::cuda
