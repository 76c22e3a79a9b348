#include "tensor_table.h"

#include <algorithm>
#include <array>
#include <utility>

namespace radam {
namespace {

constexpr std::array<const char*, 5> kNames = {"parameter", "gradient", "exp_avg", "exp_avg_sq",
                                               "max_exp_avg_sq"};

// Rows to prefetch ahead: far enough for memory to answer, near enough to still be in the first
// cache.
constexpr std::size_t kAhead = 4;

// Python objects used at every step, made once and never released: they outlive the interpreter's
// module teardown on purpose.
struct Interned {
  PyObject* tensor_type;
  PyObject* grad;
  PyObject* step;
  PyObject* is_conj;
  PyObject* is_neg;
  std::array<PyObject*, 5> state;
  const dlpack::ExchangeApi* api;
};

Interned the_interned{};

const Interned& interned() {
  if (the_interned.api == nullptr) throw std::logic_error("radam_fused._C is not connected");
  return the_interned;
}

bool same(const dlpack::DataType& a, const dlpack::DataType& b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

bool same(const dlpack::Device& a, const dlpack::Device& b) {
  return a.type == b.type && a.id == b.id;
}

bool is_complex(const dlpack::DataType& dtype) {
  return dtype.code == dlpack::kComplex;
}

std::optional<DType> real_dtype(const dlpack::DataType& dtype) {
  if (dtype.lanes != 1) return {};
  if (dtype.code == dlpack::kBFloat && dtype.bits == 16) return DType::bfloat16;
  if (dtype.code != dlpack::kFloat && dtype.code != dlpack::kComplex) return {};
  switch (dtype.bits / (is_complex(dtype) ? 2 : 1)) {
    case 64:
      return DType::float64;
    case 32:
      return DType::float32;
    case 16:
      if (!is_complex(dtype)) return DType::float16;
  }
  return {};
}

// Whether the elements fill one range of memory, each place once, in whatever order.
bool is_dense(const dlpack::TensorView& view) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, size
  for (std::int32_t d = 0; d < view.ndim; ++d) {
    if (view.shape[d] == 0) return true;
    if (view.shape[d] != 1) dims.emplace_back(view.strides[d], view.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  std::int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool answers_no(PyObject* object, PyObject* method) {
  PyObject* const answer = PyObject_CallMethodNoArgs(object, method);
  if (answer == nullptr) throw py::error_already_set();
  Py_DECREF(answer);
  return answer == Py_False;
}

py::object gradient(PyObject* param) {
  PyObject* const grad = PyObject_GetAttr(param, interned().grad);
  if (grad == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(grad);
}

// A step finds the Python objects in memory, not in cache, and each look-up waits for the one
// before. `sizes` is where torch kept the tensor's sizes at the last step, within the tensor's own
// record; its storage and its autograd record are usually allocated beside that. Inlined by force,
// because a function that only prefetches counts as one without effect, and calls to it are left
// out.
RADAM_INLINE void prefetch(const void* object, const void* sizes, int lines_before,
                           int lines_after) {
  __builtin_prefetch(object);
  const auto start = reinterpret_cast<std::uintptr_t>(sizes) - 64 * lines_before;
  for (int line = 0; line <= lines_before + lines_after; ++line) {
    __builtin_prefetch(reinterpret_cast<const void*>(start + 64 * line));
  }
}

void* address(const dlpack::TensorView& view) {
  return static_cast<char*>(view.data) + view.byte_offset;
}

}  // namespace

// Whether the state still holds the tensors that the table was made for.
bool TensorTable::state_is_current(const Row& row) const {
  if (PyDict_GetItem(row.state, interned().step) != row.step) return false;
  for (int r = kExpAvg; r < roles_; ++r) {
    if (PyDict_GetItem(row.state, interned().state[r]) != row.tensors[r]) return false;
  }
  return true;
}

// False where the object is no readable tensor of an expected Python type.
bool TensorTable::view(const Row& row, Role role, dlpack::TensorView& out) const {
  PyObject* const tensor = row.tensors[role];
  const auto* tensor_type = reinterpret_cast<PyTypeObject*>(interned().tensor_type);
  if (Py_TYPE(tensor) != tensor_type && Py_TYPE(tensor) != row.param_type) return false;
  if (interned().api->view_from_object(tensor, &out) != 0) {
    PyErr_Clear();
    return false;
  }
  // Memory does not hold a lazy conjugate or the lazy negative that its parts become; autograd
  // leaves the latter as a dense gradient of real numbers only where that has one element.
  if (is_complex(out.dtype)) return answers_no(tensor, interned().is_conj);
  if (role == kGrad && row.numel == 1) return answers_no(tensor, interned().is_neg);
  return true;
}

bool TensorTable::matches(const dlpack::TensorView& view, const Row& row, Role role) const {
  if (!same(view.device, device_) || !same(view.dtype, dtypes_[role])) return false;
  if (view.ndim != row.ndim) return false;
  const std::int64_t* const shape = layouts_.data() + row.layout;
  const std::int64_t* const strides = shape + row.ndim;
  for (std::int32_t d = 0; d < row.ndim; ++d) {
    if (view.shape[d] != shape[d]) return false;
    // The stride of a single element, or of none, is never used.
    if (shape[d] > 1 && row.numel > 0 && view.strides[d] != strides[d]) return false;
  }
  return true;
}

Range contiguous_range(const py::handle& tensor, const std::string& what) {
  dlpack::TensorView v{};
  if (interned().api->view_from_object(tensor.ptr(), &v) != 0) throw py::error_already_set();
  std::int64_t numel = 1;
  for (std::int32_t d = v.ndim - 1; d >= 0; --d) {
    if (v.shape[d] > 1 && v.strides[d] != numel) {
      throw std::invalid_argument(what + " is not contiguous");
    }
    numel *= v.shape[d];
  }
  return {address(v), v.device, v.dtype, numel};
}

TensorTable::TensorTable(py::list params, py::list states, py::object steps, bool amsgrad,
                         py::object flat, std::int64_t chunk, bool counts_on_device)
    : steps_(std::move(steps)),
      roles_(amsgrad ? kRoles : kMaxExpAvgSq),
      chunk_(chunk),
      counts_on_device_(counts_on_device),
      is_flat_(!flat.is_none()) {
  if (chunk < 1) throw std::invalid_argument("chunk must be positive");
  const std::size_t count = params.size();
  if (count == 0 || states.size() != count) {
    throw std::invalid_argument("expected as many states as parameters, at least one");
  }
  const auto keep = [this](py::object object) {
    kept_.push_back(std::move(object));
    return kept_.back().ptr();
  };
  bool types_known[kRoles] = {};
  for (std::size_t i = 0; i < count; ++i) {
    Row row{};
    const py::dict state = states[i].cast<py::dict>();
    const py::object grad = gradient(py::object(params[i]).ptr());
    row.state = keep(state);
    row.step = keep(state["step"]);
    row.tensors[kParam] = keep(params[i]);
    row.tensors[kGrad] = grad.ptr();
    for (int r = kExpAvg; r < roles_; ++r) row.tensors[r] = keep(state[kNames[r]]);
    row.param_type = Py_TYPE(row.tensors[kParam]);
    for (int r = kParam; r < roles_; ++r) {
      const Role role = static_cast<Role>(r);
      if (row.tensors[r] == Py_None) continue;  // no gradient yet
      dlpack::TensorView v{};
      const std::string what = std::string(kNames[r]) + " " + std::to_string(i);
      if (!view(row, role, v)) {
        throw std::invalid_argument(what + " is no tensor with memory of its own");
      }
      if (role == kParam) {
        if (!is_dense(v)) throw std::invalid_argument(what + " does not fill a range of memory");
        row.ndim = v.ndim;
        row.layout = static_cast<std::int32_t>(layouts_.size());
        row.numel = is_complex(v.dtype) ? 2 : 1;
        for (std::int32_t d = 0; d < v.ndim; ++d) row.numel *= v.shape[d];
        layouts_.insert(layouts_.end(), v.shape, v.shape + v.ndim);
        layouts_.insert(layouts_.end(), v.strides, v.strides + v.ndim);
        if (i == 0) device_ = v.device;
      }
      if (!types_known[r]) {
        dtypes_[r] = v.dtype;
        types_known[r] = true;
      }
      if (!matches(v, row, role)) {
        throw std::invalid_argument(what + " differs in device, dtype, shape or memory order");
      }
    }
    rows_.push_back(row);
  }
  // Where no gradient is known yet, one of the parameter's dtype is expected.
  if (!types_known[kGrad]) dtypes_[kGrad] = dtypes_[kParam];

  DType resolved[kRoles] = {};
  for (int r = kParam; r < roles_; ++r) {
    const std::optional<DType> dtype = real_dtype(dtypes_[r]);
    if (!dtype || is_complex(dtypes_[r]) != is_complex(dtypes_[kParam])) {
      throw std::invalid_argument(std::string(kNames[r]) + " has an unsupported dtype");
    }
    resolved[r] = *dtype;
    // A moment is stored in the arithmetic type or, for 16-bit parameters, in theirs.
    const DType arithmetic = resolved[kParam] == DType::float64 ? DType::float64 : DType::float32;
    if (r >= kExpAvg && resolved[r] != arithmetic && resolved[r] != resolved[kParam]) {
      throw std::invalid_argument(std::string(kNames[r]) + " has an unsupported dtype");
    }
  }
  types_ = {resolved[kParam], resolved[kGrad], resolved[kExpAvg], resolved[kExpAvgSq],
            resolved[kMaxExpAvgSq]};

  const Range counts = counters();
  const bool in_place =
      counts_on_device_ ? same(counts.device, device_) : counts.device.type == dlpack::kCPU;
  if (!in_place || counts.dtype.code != dlpack::kFloat ||
      (counts.dtype.bits != 32 && counts.dtype.bits != 64) ||
      counts.numel != static_cast<std::int64_t>(count)) {
    throw std::invalid_argument(
        "steps must be one tensor of float32 or float64, on the CPU or, if "
        "counted there, on the device");
  }
  steps_are_float64_ = counts.dtype.bits == 64;

  if (is_flat_) {
    const py::list buffers = flat;
    if (static_cast<int>(buffers.size()) != roles_) {
      throw std::invalid_argument("expected a flat buffer for every role");
    }
    for (int r = kParam; r < roles_; ++r) flat_[r] = buffers[r];
    place_in_flat_buffers();
  }

  grads_.resize(count);
  segments_.reserve(count);
  active_.reserve(count);
}

Range TensorTable::counters() const {
  return contiguous_range(steps_, "steps");
}

int TensorTable::scalar_bytes(int role) const {
  return dtypes_[role].bits / 8 / (is_complex(dtypes_[role]) ? 2 : 1);
}

// Finds every parameter and moment at one and the same offset in its flat buffer.
void TensorTable::place_in_flat_buffers() {
  for (int r = kParam; r < roles_; ++r) {
    const std::string what = std::string("the flat buffer of ") + kNames[r];
    if (r == kGrad && flat_[r].is_none()) continue;
    const Range buffer = contiguous_range(flat_[r], what);
    if (!same(buffer.device, device_) || !same(buffer.dtype, dtypes_[r])) {
      throw std::invalid_argument(what + " differs in device or dtype");
    }
    const std::int64_t scalars = buffer.numel * (is_complex(buffer.dtype) ? 2 : 1);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      Row& row = rows_[i];
      if (row.numel == 0 || r == kGrad) continue;  // a gradient may lie anywhere
      dlpack::TensorView v{};
      if (!view(row, static_cast<Role>(r), v)) throw std::invalid_argument(what);
      const auto bytes = static_cast<char*>(address(v)) - static_cast<char*>(buffer.address);
      if (r == kParam) row.offset = bytes / scalar_bytes(r);
      if (bytes != row.offset * scalar_bytes(r) || bytes < 0 || row.offset + row.numel > scalars) {
        throw std::invalid_argument(std::string(kNames[r]) + " " + std::to_string(i) +
                                    " does not lie in its flat buffer");
      }
    }
  }
}

// Whether a segment of flat buffers begins where the last one ends, so that both are one range.
bool TensorTable::extends_last(const Row& row, const Segment& segment,
                               std::int64_t alignment) const {
  if (segments_.empty()) return false;
  const Segment& last = segments_.back();
  const auto ahead = [&](int role, const void* from, const void* to) {
    return (static_cast<const char*>(to) - static_cast<const char*>(from)) / scalar_bytes(role);
  };
  const std::int64_t distance = ahead(kParam, last.param, segment.param);
  if (last.coefficients != segment.coefficients || distance < last.numel) return false;
  const auto* const grad = static_cast<const char*>(segment.grad);
  if (grad != static_cast<const char*>(last.grad) + distance * scalar_bytes(kGrad)) return false;
  if (distance == last.numel) return true;
  // What lies between is padding of ours only where the gradient's buffer is ours as well, and
  // where no other parameter fits: each takes whole multiples of the alignment.
  return flat_at_[kGrad] != nullptr && (distance - last.numel) * scalar_bytes(kParam) < alignment &&
         grad == flat_at_[kGrad] + row.offset * scalar_bytes(kGrad);
}

std::int64_t TensorTable::coefficients_for(double step) {
  if (due_.empty() || due_.back() != step) {
    const auto known = std::find(due_.begin(), due_.end(), step);
    if (known != due_.end()) return known - due_.begin();
    due_.push_back(step);
  }
  return static_cast<std::int64_t>(due_.size()) - 1;
}

std::optional<std::vector<double>> TensorTable::refresh(std::int64_t alignment) {
  std::swap(active_, previously_active_);
  segments_.clear();
  active_.clear();
  due_.clear();

  const void* const counts = counters().address;
  if (is_flat_) {
    for (int r = kParam; r < roles_; ++r) {
      if (flat_[r].is_none()) continue;
      flat_at_[r] = static_cast<char*>(contiguous_range(flat_[r], kNames[r]).address);
    }
  }
  const int read = is_flat_ ? kExpAvg : roles_;  // the roles whose tensors are read anew

  std::int64_t first = 0;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (i + kAhead < rows_.size()) {
      const Row& ahead = rows_[i + kAhead];
      for (int r = kParam; r <= kGrad; ++r) {
        // A flat parameter's storage is that of all, so it is not looked for.
        prefetch(ahead.tensors[r], ahead.hints[r], is_flat_ ? 3 : 5, is_flat_ ? 4 : 6);
      }
      for (int r = kExpAvg; r < read; ++r) prefetch(ahead.tensors[r], ahead.hints[r], 1, 2);
      // A small dict: its head, and apart from it the table of its keys and values.
      prefetch(ahead.state, ahead.state_hint, 0, 2);
    }
    Row& row = rows_[i];
    grads_[i] = gradient(row.tensors[kParam]);
    row.tensors[kGrad] = grads_[i].ptr();
    if (grads_[i].is_none()) continue;
    if (!state_is_current(row)) return std::nullopt;
    row.state_hint = reinterpret_cast<PyDictObject*>(row.state)->ma_keys;
    void* at[kRoles] = {};
    for (int r = kParam; r < read; ++r) {
      const Role role = static_cast<Role>(r);
      dlpack::TensorView v{};
      if (!view(row, role, v) || !matches(v, row, role)) return std::nullopt;
      at[r] = address(v);
      row.hints[r] = v.shape;
    }
    if (is_flat_ && row.numel > 0) {
      const auto place = [&](int r) { return flat_at_[r] + row.offset * scalar_bytes(r); };
      if (at[kParam] != place(kParam)) return std::nullopt;
      for (int r = kExpAvg; r < roles_; ++r) at[r] = place(r);
    }
    std::int64_t coefficients = static_cast<std::int64_t>(i);
    if (!counts_on_device_) {
      // Counted in the counter's own precision, as torch counts.
      coefficients =
          coefficients_for(steps_are_float64_ ? static_cast<const double*>(counts)[i] + 1.0
                                              : static_cast<const float*>(counts)[i] + 1.0f);
    }
    active_.push_back(i);
    // The device counts also the steps of a parameter without elements.
    if (row.numel == 0 && !counts_on_device_) continue;
    const Segment segment{at[kParam],       at[kGrad], at[kExpAvg], at[kExpAvgSq],
                          at[kMaxExpAvgSq], row.numel, first,       coefficients};
    if (is_flat_ && extends_last(row, segment, alignment)) {
      Segment& last = segments_.back();
      last.numel =
          row.numel + (static_cast<char*>(segment.param) - static_cast<char*>(last.param)) /
                          scalar_bytes(kParam);
      first = last.first + padded(last.numel);
    } else {
      segments_.push_back(segment);
      first += padded(row.numel);
    }
  }
  // Next, every parameter's version is counted up: so much memory was read that they are no longer
  // in the nearest cache.
  for (auto i = active_.rbegin(); i != active_.rend(); ++i) {
    prefetch(rows_[*i].tensors[kParam], rows_[*i].hints[kParam], 1, 2);
  }
  return due_;
}

void TensorTable::finish() {
  if (!counts_on_device_) {
    void* const counts = counters().address;
    for (const std::size_t i : active_) {
      if (steps_are_float64_) {
        static_cast<double*>(counts)[i] += 1;
      } else {
        static_cast<float*>(counts)[i] += 1;
      }
    }
  }
  for (std::size_t i = 0; i < grads_.size(); ++i) {
    if (i + kAhead < grads_.size()) __builtin_prefetch(grads_[i + kAhead].ptr(), 1);
    grads_[i] = py::none();
  }
  segments_.clear();
}

int TensorTable::traverse(visitproc visit, void* arg) const {
  for (const py::object& object : kept_) Py_VISIT(object.ptr());
  for (const py::object& grad : grads_) Py_VISIT(grad.ptr());
  Py_VISIT(steps_.ptr());
  for (const py::object& buffer : flat_) Py_VISIT(buffer.ptr());
  return 0;
}

void TensorTable::clear() {
  rows_.clear();
  active_.clear();
  segments_.clear();
  grads_.clear();
  kept_.clear();
  steps_ = py::none();
  for (py::object& buffer : flat_) buffer = py::none();
}

void connect() {
  const py::object tensor = py::module_::import("torch").attr("Tensor");
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  if (api == nullptr) throw py::error_already_set();
  if (api->major != dlpack::kMajorVersion || api->view_from_object == nullptr) {
    throw std::runtime_error("this torch exchanges tensors by an unknown version of DLPack");
  }
  Interned names{};
  names.tensor_type = py::object(tensor).release().ptr();
  names.grad = PyUnicode_InternFromString("grad");
  names.step = PyUnicode_InternFromString("step");
  names.is_conj = PyUnicode_InternFromString("is_conj");
  names.is_neg = PyUnicode_InternFromString("is_neg");
  for (std::size_t i = 2; i < kNames.size(); ++i) {
    names.state[i] = PyUnicode_InternFromString(kNames[i]);
  }
  names.api = api;
  the_interned = names;
}

bool any_gradient(const py::list& params) {
  for (const py::handle& param : params) {
    if (!gradient(param.ptr()).is_none()) return true;
  }
  return false;
}

bool same_objects(const py::object& held, const py::list& expected) {
  if (py::len(held) != expected.size()) return false;
  if (PyList_Check(held.ptr())) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (PyList_GET_ITEM(held.ptr(), i) != PyList_GET_ITEM(expected.ptr(), i)) return false;
    }
    return true;
  }
  if (!PyDict_Check(held.ptr())) throw std::invalid_argument("expected a list or a dict");
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (std::size_t i = 0; PyDict_Next(held.ptr(), &position, &key, &value); ++i) {
    if (value != PyList_GET_ITEM(expected.ptr(), i)) return false;
  }
  return true;
}

}  // namespace radam
