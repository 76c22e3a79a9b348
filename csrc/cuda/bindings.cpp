// The CUDA backend in radam_fused._C.
#include "../bindings.h"

#include <string>

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

void upload_and_step(Upload& upload, TensorTable& table, const py::object& workspace,
                     std::uintptr_t stream) {
  const dlpack::Device& device = table.device();
  if (!is_served(device)) {
    throw std::invalid_argument("expected CUDA tensors, got tensors on " + name_of(device));
  }
  void* const memory = workspace_of(workspace, table);
  const Queue queue{device.id, reinterpret_cast<void*>(stream)};
  run_launch(table, [&](const Work& work) { upload.step(queue, work, memory, table.size()); });
}

}  // namespace

void bind(py::module_& m) {
  m.attr("cuda_chunk") = kChunk;
  m.attr("cuda_architectures") = RADAM_CUDA;
  m.def("cuda_unavailable", &unavailable);
  m.def("cuda_unsupported", &unsupported, py::arg("device"));
  py::class_<Upload>(m, "CudaUpload", py::module_local())
      .def(py::init<>())
      .def("step", &upload_and_step, py::arg("table"), py::arg("workspace"), py::arg("stream"));
}

}  // namespace radam::cuda
