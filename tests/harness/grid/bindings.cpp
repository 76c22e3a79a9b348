// The bindings of the extension with the CUDA grid on the host, and additions for tests.
#include "bindings.h"

#include <array>
#include <cstring>

#include <pybind11/stl.h>

#include "host.h"

namespace py = pybind11;

namespace radam::cuda {

// The coefficients of the prologue; options in the order of option_names.
py::tuple coefficients_of(double step, const std::array<double, kOptions>& numbers,
                          double grad_scale, double clip_coefficient) {
  StepOptions options;
  static_assert(sizeof options == sizeof numbers);
  std::memcpy(&options, numbers.data(), sizeof options);
  const StepCoefficients<double> c =
      coefficients(step_terms(step, options), options, grad_scale, clip_coefficient);
  const Coefficients<double>& v = c.values;
  return py::make_tuple(v.grad_mul, v.l2, v.decay, v.one_minus_beta1, v.one_minus_beta2,
                        v.step_size, v.eps, static_cast<int>(c.update));
}

void bind_tests(py::module_& m) {
  m.def("coefficients", &coefficients_of, py::arg("step"), py::arg("options"),
        py::arg("grad_scale"), py::arg("clip_coefficient") = 1.0);
  m.def("launches", &launches);
  py::enum_<Fault>(m, "Fault", py::module_local())
      .value("none", Fault::none)
      .value("one_thread_less", Fault::one_thread_less)
      .value("last_block_left_out", Fault::last_block_left_out)
      .value("a_thread_twice", Fault::a_thread_twice);
  m.def("set_fault", &set_fault);
  py::class_<HostGraph>(m, "HostGraph", py::module_local())
      .def(py::init<>())
      .def("begin", &HostGraph::begin)
      .def("end", &HostGraph::end)
      .def("replay", &HostGraph::replay);
}

}  // namespace radam::cuda
