// Shared by the files of the bindings.
#pragma once

#include <pybind11/pybind11.h>

#include "tensor_table.h"

namespace radam {

// Runs the kernels of a launch between start() and finish() of its table, without the GIL.
template <typename Run>
void run_launch(TensorTable& table, const Run& run) {
  const Work& work = table.start();
  {
    const py::gil_scoped_release release;
    run(work);
  }
  table.finish();
}

namespace cuda {
void bind(py::module_& m);
#if defined(RADAM_BIND_MORE)
void RADAM_BIND_MORE(py::module_& m);  // in the host builds of the tests
#endif
}  // namespace cuda

}  // namespace radam
