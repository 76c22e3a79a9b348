// What the modules of the bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include "tensor_table.h"

namespace radam {

// A launch's kernels, run between start() and finish() of its table without Python's lock.
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
void RADAM_BIND_MORE(py::module_& m);  // where the tests build the grid for the host
#endif
}  // namespace cuda

}  // namespace radam
