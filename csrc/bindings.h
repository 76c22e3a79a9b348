// What the engines' bindings share.
#pragma once

#include <vector>

#include <pybind11/pybind11.h>

#include "tensor_table.h"

namespace radam {

// Coefficients from Python's tuples, one for each step count that the table is about to reach.
std::vector<StepCoefficients> coefficients_for(const TensorTable& table,
                                               const py::list& coefficients);

namespace cuda {
void bind(py::module_& m);
#if defined(RADAM_BIND_MORE)
void RADAM_BIND_MORE(py::module_& m);  // where the tests build the grid for the host
#endif
}  // namespace cuda

}  // namespace radam
