// The part of DLPack's C exchange interface (version 1.3, type attribute __dlpack_c_exchange_api__)
// that reads the address of a tensor and makes a tensor over given memory. torch has it since 2.10,
// so that neither needs libtorch.
#pragma once

#include <cstdint>

namespace radam::dlpack {

constexpr const char* kCapsuleName = "dlpack_exchange_api";
constexpr std::uint32_t kMajorVersion = 1;

enum DeviceType : std::int32_t { kCPU = 1, kCUDA = 2 };
enum TypeCode : std::uint8_t { kInt = 0, kFloat = 2, kBFloat = 4, kComplex = 5 };

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct TensorView {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

// A new tensor. torch calls `delete_self` when it no longer uses the memory.
struct ManagedTensor {
  std::uint32_t major, minor;
  void* context;
  void (*delete_self)(ManagedTensor* self);
  std::uint64_t flags;
  TensorView view;
};

struct ExchangeApi {
  std::uint32_t major, minor;
  const void* previous;
  void* allocate;
  void* owned_from_object;
  int (*object_from_owned)(ManagedTensor* tensor, void** out);  // nonzero: Python error set
  int (*view_from_object)(void* object, TensorView* out);  // borrowed; nonzero: Python error set
  void* current_work_stream;
};

}  // namespace radam::dlpack
