// The bindings of radam_fused._C, except for those of the CUDA backend (csrc/cuda/bindings.cpp).
#include "bindings.h"

#include <algorithm>
#include <array>

#include <pybind11/stl.h>

#include "chunk_index.h"
#include "cpu/step.h"
#include "torch_tensors.h"
#include "waiting.h"

namespace py = pybind11;

namespace {

radam::Range numbers_on_host(const py::object& tensor) {
  const radam::Range range = radam::contiguous_range(tensor, "sums");
  if (range.device.type != radam::dlpack::kCPU || range.dtype.code != radam::dlpack::kFloat ||
      range.dtype.bits != 64) {
    throw std::invalid_argument("sums: expected float64 numbers on the CPU");
  }
  return range;
}

// Where the sums of a launch belong among those of all parameters.
struct Sums {
  std::vector<std::int64_t> indices;
  std::vector<double> found;
  double* to;

  Sums(const radam::TensorTable& table, const std::vector<std::int64_t>& first_of_group,
       const py::object& sums)
      : indices(table.indices(first_of_group)), found(indices.size()) {
    const radam::Range range = numbers_on_host(sums);
    to = static_cast<double*>(range.address);
    const auto last = std::max_element(indices.begin(), indices.end());
    if (indices.size() != table.work().segments.size() ||
        (last != indices.end() && *last >= range.numel)) {
      throw std::invalid_argument("the table was not read for these sums");
    }
  }

  void keep() const {
    for (std::size_t i = 0; i < found.size(); ++i) to[indices[i]] = found[i];
  }
};

// sums: None, or receives the sum of the squares of the differences to each parameter.
void cpu_step(radam::TensorTable& table, int threads, const std::string& instruction_set,
              std::optional<bool> prefetch, const std::vector<std::int64_t>& first_of_group,
              const py::object& sums) {
  if (table.device().type != radam::dlpack::kCPU) {
    throw std::invalid_argument("cpu_step: the tensors are on a device, expected CPU tensors");
  }
  std::optional<Sums> kept;
  if (!sums.is_none()) kept.emplace(table, first_of_group, sums);
  radam::run_launch(table, [&](const radam::Work& work) {
    radam::cpu::step(work, threads, instruction_set, prefetch, table.sum_memory(),
                     kept ? kept->found.data() : nullptr);
  });
  if (kept) kept->keep();
}

// Writes the sum of the squares of each parameter's gradient to float64 numbers of the host, one
// for each parameter of all groups. first_of_group: the index of the first one of each group.
void cpu_sum_squares(radam::TensorTable& table, const std::vector<std::int64_t>& first_of_group,
                     const py::object& sums, int threads, const std::string& instruction_set) {
  Sums kept(table, first_of_group, sums);
  if (kept.indices.empty()) return;
  if (table.device().type != radam::dlpack::kCPU) {
    throw std::invalid_argument("cpu_sum_squares: the tensors are on a device");
  }
  {
    const py::gil_scoped_release release;
    radam::cpu::sum_squares(table.work(), threads, instruction_set, table.sum_memory(),
                            kept.found.data());
  }
  kept.keep();
}

// The sum of float64 numbers of the host, in the order of sums.h.
double fold(const py::object& numbers) {
  const radam::Range range = numbers_on_host(numbers);
  const auto* const first = static_cast<const double*>(range.address);
  std::vector<double> copy(first, first + range.numel);
  return radam::fold_all(copy.data(), range.numel);
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

// The rows of all levels of a device's sums, the number of rows of each level, and the numbers that
// they need.
py::tuple fold_levels_of(const radam::TensorTable& table,
                         const std::vector<std::int64_t>& first_of_group) {
  const auto found = radam::fold_levels(table.work().segments, table.indices(first_of_group));
  return py::make_tuple(bytes_of(found.rows), found.sizes, found.numbers);
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
      .def(py::init<const std::vector<std::string>&, std::int64_t, bool,
                    const std::vector<std::string>&>(),
           py::arg("state"), py::arg("chunk") = 1, py::arg("counts_on_device") = false,
           py::arg("draws") = std::vector<std::string>())
      .def("add", &TensorTable::add, py::arg("place"), py::arg("types"),
           py::arg("dtensor") = py::none(), py::arg("flat") = py::none(), py::arg("offset") = 0,
           py::arg("elements") = py::none())
      .def("__len__", &TensorTable::size)
      .def("read", &TensorTable::read, py::arg("groups"), py::arg("states"),
           py::arg("is_separate") = false)
      .def("misfit", &TensorTable::misfit)
      .def("misplaced", &TensorTable::misplaced)
      .def("take_gradients", &TensorTable::take_gradients, py::arg("redistributed"))
      .def("has_moved", &TensorTable::has_moved)
      .def("written_ranges", &TensorTable::written_ranges)
      .def_static("are_apart", &TensorTable::are_apart, py::arg("tables"))
      .def("is_active", &TensorTable::is_active)
      .def("compute", &TensorTable::compute, py::arg("options"), py::arg("grad_scale"),
           py::arg("found_inf"), py::arg("capturing") = false, py::arg("clip") = py::none())
      .def("start", [](TensorTable& table) { table.start(); })
      .def("finish", &TensorTable::finish)
      .def("release", &TensorTable::release)
      .def("workspace_bytes", &TensorTable::workspace_bytes, py::arg("groups"))
      .def_property_readonly("segments",
                             [](const TensorTable& t) { return bytes_of(t.work().segments); })
      .def_property_readonly("coefficients",
                             [](const TensorTable& t) { return bytes_of(t.work().coefficients); })
      .def_property_readonly("draws", [](const TensorTable& t) { return bytes_of(t.work().draws); })
      .def("fold_levels", &fold_levels_of, py::arg("first_of_group"))
      .def("chunk_index", &chunk_index_of, py::arg("most"))
      .def_property_readonly("options",
                             [](const TensorTable& t) { return bytes_of(t.work().options); });

  m.def("connect", &radam::connect, py::arg("dense_copy"));
  m.def("slice_of", &radam::slice_of, py::arg("buffer"), py::arg("offset"), py::arg("shape"),
        py::arg("strides"));
  m.def("instruction_sets", &radam::cpu::instruction_sets);
  m.def("cpu_step", &cpu_step, py::arg("table"), py::arg("threads"), py::arg("instruction_set"),
        py::arg("prefetch") = py::none(), py::arg("first_of_group") = std::vector<std::int64_t>(),
        py::arg("sums") = py::none());
  m.def("cpu_sum_squares", &cpu_sum_squares, py::arg("table"), py::arg("first_of_group"),
        py::arg("sums"), py::arg("threads"), py::arg("instruction_set"));
  m.def("fold", &fold, py::arg("numbers"));
  m.def("cpu_move", &cpu_move, py::arg("tensors"), py::arg("threads"), py::arg("instruction_set"));
#if defined(RADAM_CUDA)
  radam::cuda::bind(m);
#endif
#if defined(RADAM_BIND_MORE)
  radam::cuda::RADAM_BIND_MORE(m);
#endif
}
