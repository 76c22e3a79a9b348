// The surface of the extension, with the host's engine under it, and what only tests need.
#include "bindings.h"

#include "engine.h"

namespace py = pybind11;

namespace radam::cuda {

// Coefficients as the prologue computes them.
py::tuple coefficients_of(std::int64_t step, double lr, double beta1, double beta2, double eps,
                          double weight_decay, double rectify_threshold, double grad_scale,
                          unsigned flags) {
  const auto flag = [&](unsigned bit) { return (flags >> bit & 1u) != 0; };
  const StepCoefficients c =
      coefficients(step, {lr, beta1, beta2, eps, weight_decay, rectify_threshold, grad_scale,
                          flag(0), flag(1), flag(2), flag(3), flag(4), flag(5), flag(6), flag(7)});
  const Coefficients<double>& v = c.values;
  return py::make_tuple(v.grad_mul, v.l2, v.decay, v.one_minus_beta1, v.beta2, v.one_minus_beta2,
                        v.step_size, v.eps, static_cast<int>(c.update));
}

void bind_tests(py::module_& m) {
  m.def("coefficients", &coefficients_of);
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
