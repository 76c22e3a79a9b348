// From Python tensors to segments. Addresses enter C++ only here, after all checks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <pybind11/pybind11.h>

#include "dlpack.h"
#include "dtensor.h"
#include "group_options.h"
#include "segments.h"
#include "sums.h"
#include "waiting.h"

namespace radam {

namespace py = pybind11;

// The parameters of one launch, one row each. They can be of several groups, but have the same
// device, dtypes and state tensors, and their steps are counted in the same place. A row owns
// nothing: read() finds the current parameter, gradient and state, and holds them until finish() or
// release().
class TensorTable {
 public:
  // state: names of the state tensors. chunk: segments are padded to multiples of so many elements,
  // a power of two. counts_on_device: whether the device increments the step counters and computes
  // the coefficients. draws: names of the tensors whose values are rounded stochastically.
  TensorTable(const std::vector<std::string>& state, std::int64_t chunk, bool counts_on_device,
              const std::vector<std::string>& draws);
  ~TensorTable() { release(); }
  TensorTable(const TensorTable&) = delete;
  TensorTable& operator=(const TensorTable&) = delete;

  // Adds a parameter. types: the types of its tensors, or of their local tensors, all of which have
  // their own memory. dtensor: the parameter if it is a DTensor, or None; the row then takes only
  // DTensors. flat: the flat buffer that must hold the parameter at an offset, or None. elements:
  // if values are rounded stochastically, the number of the parameter, and offset, run and stride
  // of its elements (see Draw). The first row that is read determines the device and the dtypes of
  // the launch.
  using Elements = std::tuple<std::uint64_t, std::int64_t, std::int64_t, std::int64_t>;
  void add(Place place, const std::vector<py::object>& types, const py::object& dtensor,
           const py::object& flat, std::int64_t offset, const std::optional<Elements>& elements);
  std::size_t size() const { return rows_.size(); }
  std::int64_t chunk() const { return chunk_; }

  // Reads the tensors of every row whose parameter has a gradient. Writes nothing. groups:
  // optimizer.param_groups. states: optimizer.state. is_separate: whether no segment holds several
  // parameters. Returns false if a row does not fit the launch any more; misfit() returns its place
  // and the name of its tensor.
  bool read(const py::list& groups, const py::object& states, bool is_separate);
  std::pair<Place, std::string> misfit() const { return misfit_; }

  // The place, the parameter and the gradient of the rows whose gradient is a DTensor that is
  // placed in another way than its parameter. Before the step, they need the same gradients,
  // redistributed.
  std::vector<std::tuple<Place, py::object, py::object>> misplaced() const;
  // Returns false if one of them does not fit; misfit() returns which.
  bool take_gradients(const std::vector<py::object>& redistributed);

  // Whether a tensor that the step writes lies at another address than at the last step.
  bool has_moved() const { return has_moved_; }

  // The memory that the step writes: the place, the name of the tensor, its first address and its
  // end. A parameter that is stepped through a temporary copy has no address here.
  using WrittenRange = std::tuple<Place, std::string, std::uintptr_t, std::uintptr_t>;
  std::vector<WrittenRange> written_ranges() const;

  // Whether the tensors that the steps of some launches write have no gaps and do not overlap.
  static bool are_apart(const std::vector<const TensorTable*>& tables);

  // Whether read() found a gradient.
  bool is_active() const { return !steps_.empty(); }

  // The index of each segment's parameter among those of all groups, given the index of the first
  // one of each group; only after a separate read.
  std::vector<std::int64_t> indices(const std::vector<std::int64_t>& first_of_group) const;
  SumMemory& sum_memory() { return sum_memory_; }

  // Computes the coefficients, or the options for a device that counts. grad_scale and found_inf:
  // None, or one number; a float32 tensor on the device if the device counts. clip: None, the clip
  // coefficient, or the Clip on the device as a tensor. Writes no tensor.
  void compute(GroupOptions& options, const py::object& grad_scale, const py::object& found_inf,
               bool capturing, const py::object& clip);

  // Increments the version counters of the parameters, since autograd cannot see the writes. To do
  // so for the state as well would make a step over 1,000 tensors 30 % slower (AMD EPYC).
  const Work& start();

  // Writes the step counters if the host counts, copies temporary copies back to their parameters,
  // and releases every tensor.
  void finish();
  // Releases every tensor without a step.
  void release();

  const Work& work() const { return work_; }
  const dlpack::Device& device() const { return device_; }

  // Bytes of device memory for the tables of a launch over all rows.
  std::size_t workspace_bytes(std::size_t groups) const {
    return rows_.size() * (sizeof(Segment) + 2 * sizeof(StepCoefficients<double>)) +
           elements_.size() * sizeof(Draw) + groups * sizeof(DeviceOptions);
  }

 private:
  // Small, because a step reads every row from memory.
  struct Row {
    Place place;
    std::int64_t numel = 0;            // real numbers; a complex element counts twice
    std::int32_t ndim = -1;            // of the last step; -1: not read yet
    std::int32_t layout = 0;           // index of its shape, then its strides, in layouts_
    std::size_t state_index = 0;       // in optimizer.state at the last step
    std::size_t count_index = 0;       // in counts_ at the last step
    const void* flat_at = nullptr;     // required address in a flat buffer, or null
    const void* tensors[kRoles] = {};  // of the last step, only for prefetches
    const void* sizes[kRoles] = {};    // addresses of their sizes, also for prefetches
    const void* at[kRoles] = {};       // addresses of their elements
    bool is_copied = false;            // whether a temporary copy of the parameter is updated
    std::int32_t dtensor = -1;         // index in dtensors_; -1: the tensors are no DTensors
    std::int32_t elements = -1;        // index in elements_; -1: nothing is drawn
  };
  // What a row of DTensors needs more.
  struct DTensors {
    Placement placement;
    const void* tensors[kRoles] = {};    // of the last step, only for prefetches
    const void* sizes[role::step] = {};  // of the parameter and the gradient, also for prefetches
  };
  // A gradient that has to be redistributed.
  struct Misplaced {
    std::size_t row;
    std::ptrdiff_t segment;  // -1: the local tensors have no elements
    py::object param;
    py::object grad;
    py::object dense;  // local tensor of the parameter, or its dense copy
  };
  struct Step {
    void* counter;
    double next;
  };
  enum class Fit { fits, odd, misfits };

  void hold_states(const py::object& states);
  bool read_row(Row& row, PyObject* param);
  bool read_gradient(Row& row, Segment& segment, py::object grad, PyObject* dense);
  py::object memory_of(Row& row, int role, py::object tensor);
  PyObject* state_of(Row& row, PyObject* param);
  bool fail(const Row& row, int role);
  std::optional<WithoutTorchFunction> without_torch_function() const;
  PyObject* hold(py::object object);
  bool remember(Row& row, int role, PyObject* tensor, const dlpack::TensorView& view);
  void place(Segment& segment, Row& row, int role, const dlpack::TensorView& view);
  bool has_own_memory(PyObject* tensor) const;
  bool is_known(PyObject* type) const;
  Fit view(PyObject* tensor, int role, std::int64_t numel, dlpack::TensorView& out) const;
  Fit compare_layout(const dlpack::TensorView& view, const Row& row) const;
  void keep_layout(const dlpack::TensorView& view, Row& row);
  int decide_types();
  int element_bytes(int role) const;
  bool is_continued() const;
  bool close_segment();
  std::size_t count_index(Row& row, double step);
  void compute_keys(const GroupOptions& options);
  void add_coefficients(const StepCoefficients<double>& given);
  template <typename T>
  void add_row(const StepCoefficients<double>& given);

  std::int64_t chunk_;
  std::vector<Row> rows_;
  std::vector<DTensors> dtensors_;
  std::vector<Elements> elements_;
  std::vector<std::int64_t> layouts_;
  std::vector<py::object> types_;  // subclasses of torch.Tensor that have their own memory
  bool types_known_ = false;
  dlpack::Device device_{};
  dlpack::DataType dtypes_[kRoles]{};
  dlpack::Device devices_[kRoles]{};  // of the first row that is read
  std::pair<Place, std::string> misfit_;
  bool has_moved_ = false;
  SumMemory sum_memory_;

  // Filled by read() and compute(), for one step.
  Work work_{};
  bool is_separate_ = false;
  std::vector<Place> places_;              // of the segments, if they are separate
  std::vector<std::uint64_t> parameters_;  // numbers of those whose bits are drawn
  std::int64_t padded_ = 0;                // elements of the segments, each padded to whole chunks
  std::vector<std::pair<PyObject*, PyObject*>> states_;  // items of optimizer.state
  std::vector<std::pair<std::size_t, double>> counts_;   // distinct (group, step count)
  std::vector<Step> steps_;
  std::vector<PyObject*> held_;     // references to every tensor that is read
  std::vector<PyObject*> written_;  // the parameters among them
  py::list list_;                   // written_ as a Python list, for increment_version
  std::vector<std::pair<py::object, py::object>> copied_;  // a parameter and its dense copy
  std::vector<Misplaced> misplaced_;
  std::vector<py::object> scalars_;  // gradient scale, overflow flag and clip
};

}  // namespace radam
