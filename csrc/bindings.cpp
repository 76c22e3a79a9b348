// The bindings of radam_fused._C, except for those of the CUDA backend (csrc/cuda/bindings.cpp).
#include "bindings.h"

#include <array>

#include <pybind11/stl.h>

#include "chunk_index.h"
#include "cpu/step.h"
#include "torch_tensors.h"
#include "waiting.h"

namespace py = pybind11;

namespace {

void cpu_step(radam::TensorTable& table, int threads, const std::string& instruction_set,
              std::optional<bool> prefetch) {
  if (table.device().type != radam::dlpack::kCPU) {
    throw std::invalid_argument("cpu_step: the tensors are on a device, expected CPU tensors");
  }
  radam::run_launch(table, [&](const radam::Work& work) {
    radam::cpu::step(work, threads, instruction_set, prefetch);
  });
}

// Four contiguous float32 tensors of one length on the CPU.
void cpu_move(const std::array<py::object, 4>& tensors, int threads,
              const std::string& instruction_set) {
  std::array<float*, 4> arrays{};
  std::int64_t numel = 0;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const std::string name = "tensor " + std::to_string(i);
    const radam::Range range = radam::contiguous_range(tensors[i], name);
    if (i == 0) numel = range.numel;
    if (range.device.type != radam::dlpack::kCPU || range.numel != numel ||
        range.dtype.code != radam::dlpack::kFloat || range.dtype.bits != 32) {
      throw std::invalid_argument("cpu_move: " + name +
                                  " differs, expected float32 tensors of one length on the CPU");
    }
    arrays[i] = static_cast<float*>(range.address);
  }
  const py::gil_scoped_release release;
  const auto [param, grad, exp_avg, exp_avg_sq] = arrays;
  radam::cpu::move({param, grad, exp_avg, exp_avg_sq}, numel, threads, instruction_set);
}

template <typename Row>
py::bytes bytes_of(const std::vector<Row>& rows) {
  return {reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(Row)};
}

// The entries of the index as bytes of int32, whose scale is 0, and its shift.
py::tuple chunk_index_of(const radam::TensorTable& table, std::size_t most) {
  const auto index = radam::chunk_index<std::int32_t>(table.work().segments, table.chunk(), most);
  return py::make_tuple(bytes_of(index.entries), index.shift);
}

py::tuple names(const char* const* begin, int count) {
  py::tuple result(count);
  for (int i = 0; i < count; ++i) result[i] = py::str(begin[i]);
  return result;
}

}  // namespace

PYBIND11_MODULE(RADAM_MODULE, m) {
  using radam::GroupOptions;
  using radam::TensorTable;
  using radam::Waiting;
  m.attr("role_names") = names(radam::kRoleNames, radam::kRoles);
  m.attr("option_names") = names(radam::kOptionNames, radam::kOptions);

  py::class_<GroupOptions>(m, "GroupOptions", py::module_local())
      .def(py::init<const py::dict&, const std::vector<std::string>&>(), py::arg("defaults"),
           py::arg("watched"))
      .def("read", &GroupOptions::read, py::arg("groups"))
      .def("release", &GroupOptions::release);

  py::class_<Waiting>(m, "Waiting", py::module_local())
      .def(py::init<const py::list&>(), py::arg("groups"))
      .def("take", &Waiting::take, py::arg("groups"));

  py::class_<TensorTable>(m, "TensorTable", py::module_local())
      .def(py::init<const std::vector<std::string>&, std::int64_t, bool>(), py::arg("state"),
           py::arg("chunk") = 1, py::arg("counts_on_device") = false)
      .def("add", &TensorTable::add, py::arg("place"), py::arg("types"),
           py::arg("dtensor") = py::none(), py::arg("flat") = py::none(), py::arg("offset") = 0)
      .def("__len__", &TensorTable::size)
      .def("read", &TensorTable::read, py::arg("groups"), py::arg("states"))
      .def("misfit", &TensorTable::misfit)
      .def("misplaced", &TensorTable::misplaced)
      .def("take_gradients", &TensorTable::take_gradients, py::arg("redistributed"))
      .def("has_moved", &TensorTable::has_moved)
      .def("written_ranges", &TensorTable::written_ranges)
      .def_static("are_apart", &TensorTable::are_apart, py::arg("tables"))
      .def("is_active", &TensorTable::is_active)
      .def("compute", &TensorTable::compute, py::arg("options"), py::arg("grad_scale"),
           py::arg("found_inf"), py::arg("capturing") = false)
      .def("start", [](TensorTable& table) { table.start(); })
      .def("finish", &TensorTable::finish)
      .def("release", &TensorTable::release)
      .def("workspace_bytes", &TensorTable::workspace_bytes, py::arg("groups"))
      .def_property_readonly("segments",
                             [](const TensorTable& t) { return bytes_of(t.work().segments); })
      .def_property_readonly("coefficients",
                             [](const TensorTable& t) { return bytes_of(t.work().coefficients); })
      .def("chunk_index", &chunk_index_of, py::arg("most"))
      .def_property_readonly("options",
                             [](const TensorTable& t) { return bytes_of(t.work().options); });

  m.def("connect", &radam::connect, py::arg("dense_copy"));
  m.def("slice_of", &radam::slice_of, py::arg("buffer"), py::arg("offset"), py::arg("shape"),
        py::arg("strides"));
  m.def("instruction_sets", &radam::cpu::instruction_sets);
  m.def("cpu_step", &cpu_step, py::arg("table"), py::arg("threads"), py::arg("instruction_set"),
        py::arg("prefetch") = py::none());
  m.def("cpu_move", &cpu_move, py::arg("tensors"), py::arg("threads"), py::arg("instruction_set"));
#if defined(RADAM_CUDA)
  radam::cuda::bind(m);
#endif
#if defined(RADAM_BIND_MORE)
  radam::cuda::RADAM_BIND_MORE(m);
#endif
}
