// From Python tensors to segments: the one place where addresses enter C++, after every check.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pybind11/pybind11.h>

#include "dlpack.h"
#include "group_options.h"
#include "segments.h"

namespace radam {

namespace py = pybind11;

// A contiguous tensor's memory.
struct Range {
  void* address;
  dlpack::Device device;
  dlpack::DataType dtype;
  std::int64_t numel;
};

// Throws ValueError where `what`, as the error calls it, is not a contiguous tensor.
Range contiguous_range(const py::handle& tensor, const std::string& what);

bool is_tensor(PyObject* object);

// A parameter's place: its group, and its index in group["params"].
using Place = std::pair<std::size_t, std::size_t>;

// The rows of one launch: parameters of any group that agree in device, dtypes, state tensors and
// place of counting. A row owns nothing: read() finds the parameter, its gradient and its state
// where they are now, and holds them until finish() or release().
class TensorTable {
 public:
  // state: the tensors that every state holds, by name. chunk: scalars to whose multiples the
  // launch pads its segments, a power of two. counts_on_device: whether the device adds 1 to the
  // steps and computes the coefficients.
  TensorTable(const std::vector<std::string>& state, std::int64_t chunk, bool counts_on_device);
  ~TensorTable() { release(); }
  TensorTable(const TensorTable&) = delete;
  TensorTable& operator=(const TensorTable&) = delete;

  // Adds the parameter at a place. types: those of its tensors, all with memory of their own. flat:
  // the flat buffer in which it has to lie at an offset, or None. The tensors of the first row that
  // is read decide the device and the dtypes.
  void add(Place place, const std::vector<py::object>& types, const py::object& flat,
           std::int64_t offset);
  std::size_t size() const { return rows_.size(); }

  // Reads the tensors of every row whose parameter has a gradient; writes nothing. groups:
  // optimizer.param_groups. states: optimizer.state. Returns false where a row does not fit the
  // launch, or no longer; misfit() says which row, and which of its tensors.
  bool read(const py::list& groups, const py::dict& states);
  std::pair<Place, std::string> misfit() const { return misfit_; }

  // Whether read() has found a gradient.
  bool is_active() const { return !steps_.empty(); }

  // What the launch needs of the groups' options. grad_scale and found_inf: None, or one number
  // (a float32 tensor on the device where that counts). Writes nothing.
  void compute(GroupOptions& options, const py::object& grad_scale, const py::object& found_inf,
               bool capturing);

  // Counts up the versions of the parameters, as autograd does not see addresses. Those of the
  // state would take a step over 1,000 tensors 30 % longer (AMD EPYC).
  const Work& start();

  // Writes the step counts if the host counts, copies back what the launch could not address, and
  // lets go of every tensor.
  void finish();
  // Lets go of every tensor where no launch runs.
  void release();

  const Work& work() const { return work_; }
  const dlpack::Device& device() const { return device_; }

  // Bytes of device memory for the tables of a launch over every row.
  std::size_t workspace_bytes(std::size_t groups) const {
    return rows_.size() * (sizeof(Segment) + sizeof(StepCoefficients)) +
           groups * sizeof(DeviceOptions);
  }

 private:
  // Compact, because a step reads every row with cold caches.
  struct Row {
    Place place;
    std::int64_t numel = 0;            // real scalars
    std::int32_t ndim = -1;            // of the layout, that of the last step; -1: none yet
    std::int32_t layout = 0;           // where in layouts_ its shape and then its strides stand
    std::size_t entry = 0;             // where the state stood in optimizer.state at the last step
    std::size_t count = 0;             // and the step count in counts_
    const void* flat_at = nullptr;     // where the parameter has to lie, if in a flat buffer
    const void* tensors[kRoles] = {};  // and the tensors, only to be prefetched
    const void* sizes[kRoles] = {};
  };
  struct Step {
    void* counter;
    double next;
  };
  enum class Fit { fits, odd, misfits };

  bool read_row(Row& row, PyObject* param);
  PyObject* state_of(Row& row, PyObject* param);
  bool fail(const Row& row, int role);
  void hold(PyObject* reference) { held_.push_back(reference); }
  void place(Segment& segment, Row& row, int role, const dlpack::TensorView& view);
  bool has_own_memory(PyObject* tensor) const;
  bool is_known(PyObject* type) const;
  Fit view(PyObject* tensor, int role, std::int64_t numel, dlpack::TensorView& out) const;
  Fit compare_layout(const dlpack::TensorView& view, const Row& row) const;
  void keep_layout(const dlpack::TensorView& view, Row& row);
  int decide_types();
  int scalar_bytes(int role) const;
  bool is_continued() const;
  void close_segment();
  std::size_t count_of(Row& row, std::int64_t step);

  std::int64_t chunk_;
  bool has_[kRoles] = {};
  std::vector<Row> rows_;
  std::vector<std::int64_t> layouts_;
  std::vector<py::object> types_;  // subclasses of torch.Tensor among the tensors
  bool types_known_ = false;
  dlpack::Device device_{};
  dlpack::DataType dtypes_[kRoles]{};
  dlpack::Device devices_[kRoles]{};  // of the first row
  std::pair<Place, std::string> misfit_;

  // Of the step that read() has prepared.
  Work work_{};
  std::int64_t padded_ = 0;  // scalars of the segments, each padded to whole chunks
  std::vector<std::pair<PyObject*, PyObject*>> states_;       // optimizer.state in its order
  std::vector<std::pair<std::size_t, std::int64_t>> counts_;  // distinct (group, step)
  std::vector<Step> steps_;
  std::vector<PyObject*> held_;     // references: every tensor that is read, parameter first
  std::vector<PyObject*> written_;  // among these, the parameters
  py::list list_;                   // the same as a list, while their versions are counted up
  std::vector<std::pair<py::object, py::object>> copied_;  // a parameter and its dense copy
  std::vector<py::object> scalars_;                        // gradient scale and overflow flag
  std::vector<std::size_t> slots_;                         // scratch of compute()
};

// The places of parameters that no launch has a row for, because they have had no gradient.
class Waiting {
 public:
  explicit Waiting(const py::list& groups);

  // Takes out the places whose parameter has a gradient now. Nothing where the groups are no longer
  // as large as they were.
  std::optional<std::vector<Place>> take(const py::list& groups);

 private:
  std::vector<std::size_t> sizes_;
  std::vector<Place> places_;
};

// Finds torch's exchange interface; called once, before anything else here. dense_copy(tensor,
// like) is to return a temporary copy of a tensor in the memory order of another. Throws where this
// torch has no such interface.
void connect(const py::object& dense_copy);

// A tensor with a storage of its own over a part of a contiguous buffer, which it keeps alive.
py::object slice_of(const py::object& buffer, std::int64_t offset, std::vector<std::int64_t> shape,
                    std::vector<std::int64_t> strides);

}  // namespace radam
