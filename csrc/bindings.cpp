// The whole raw surface of radam_fused._C, the CUDA engine's apart. Only radam_fused.backends calls
// it.
#include "bindings.h"

#include <pybind11/stl.h>

#include "cpu/step.h"

namespace py = pybind11;

namespace radam {
namespace {

// Mirrors radam_fused.rectification.Coefficients, field by field.
StepCoefficients coefficients_from(const py::tuple& t) {
  if (t.size() != 9) throw std::invalid_argument("expected the nine coefficients of a step");
  const auto value = [&](std::size_t i) { return t[i].cast<double>(); };
  const int update = t[8].cast<int>();
  if (update < 0 || update > 2) throw std::invalid_argument("unknown kind of update");
  return {{value(0), value(1), value(2), value(3), value(4), value(5), value(6), value(7)},
          static_cast<Update>(update)};
}

}  // namespace

std::vector<StepCoefficients> coefficients_for(const TensorTable& table,
                                               const py::list& coefficients) {
  if (coefficients.size() != table.coefficients_needed()) {
    throw std::invalid_argument("expected coefficients for every distinct step count");
  }
  std::vector<StepCoefficients> result;
  for (const py::handle& item : coefficients) {
    result.push_back(coefficients_from(item.cast<py::tuple>()));
  }
  return result;
}

}  // namespace radam

namespace {

void cpu_step(radam::TensorTable& table, const py::list& coefficients, int threads,
              const std::string& instruction_set) {
  if (table.device().type != radam::dlpack::kCPU) {
    throw std::invalid_argument("cpu_step takes tensors in the CPU's memory");
  }
  const auto steps = radam::coefficients_for(table, coefficients);
  const py::gil_scoped_release release;
  radam::cpu::step(table.segments(), table.types(), steps, threads, instruction_set);
}

// The segments of the step that refresh() prepared, as segments.h has them.
py::bytes segments_of(const radam::TensorTable& table) {
  const auto& segments = table.segments();
  return {reinterpret_cast<const char*>(segments.data()), segments.size() * sizeof(radam::Segment)};
}

// Null while an object is still being made.
radam::TensorTable* table_of(PyObject* self) {
  auto held = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder();
  return held.holder_constructed() ? held.value_ptr<radam::TensorTable>() : nullptr;
}

// A parameter may lead back to its optimizer: a cycle that only Python's collector can see.
void make_collectable(PyHeapTypeObject* heap_type) {
  PyTypeObject* const type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const radam::TensorTable* const table = table_of(self);
    return table == nullptr ? 0 : table->traverse(visit, arg);
  };
  type->tp_clear = [](PyObject* self) {
    if (radam::TensorTable* const table = table_of(self)) table->clear();
    return 0;
  };
}

}  // namespace

PYBIND11_MODULE(RADAM_MODULE, m) {
  py::class_<radam::TensorTable>(m, "TensorTable", py::module_local(),
                                 py::custom_type_setup(make_collectable))
      .def(py::init<py::list, py::list, py::object, bool, py::object, std::int64_t, bool>(),
           py::arg("params"), py::arg("states"), py::arg("steps"), py::arg("amsgrad"),
           py::arg("flat") = py::none(), py::arg("chunk") = 1, py::arg("counts_on_device") = false)
      .def("refresh", &radam::TensorTable::refresh, py::arg("alignment"))
      .def("finish", &radam::TensorTable::finish)
      .def_property_readonly("segments", &segments_of)
      .def_property_readonly("ranges",
                             [](const radam::TensorTable& t) { return t.segments().size(); })
      .def_property_readonly("active", &radam::TensorTable::active)
      .def_property_readonly("active_is_unchanged", &radam::TensorTable::active_is_unchanged);
  m.def("connect", &radam::connect);
  m.def("any_gradient", &radam::any_gradient, py::arg("params"));
  m.def("same_objects", &radam::same_objects, py::arg("held"), py::arg("expected"));
  m.def("instruction_sets", &radam::cpu::instruction_sets);
  m.def("cpu_step", &cpu_step, py::arg("table"), py::arg("coefficients"), py::arg("threads"),
        py::arg("instruction_set"));
#if defined(RADAM_CUDA)
  radam::cuda::bind(m);
#endif
#if defined(RADAM_BIND_MORE)
  radam::cuda::RADAM_BIND_MORE(m);
#endif
}
