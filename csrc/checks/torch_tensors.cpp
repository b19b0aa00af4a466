// torch's tensors as the checks see them.
#include <torch/csrc/stable/tensor.h>

#include <utility>

#include "checks/packed_checks.h"
#include "checks/tensor_info.h"

namespace visionzip {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

const char* dtype_name(ScalarType dtype) {
  static constexpr std::pair<ScalarType, const char*> kNames[] = {
      {ScalarType::Float, "float32"},
      {ScalarType::Half, "float16"},
      {ScalarType::BFloat16, "bfloat16"},
      {ScalarType::Double, "float64"},
      {ScalarType::Long, "int64"},
      {ScalarType::Int, "int32"},
      {ScalarType::Short, "int16"},
      {ScalarType::Char, "int8"},
      {ScalarType::Byte, "uint8"},
      {ScalarType::UInt16, "uint16"},
      {ScalarType::UInt32, "uint32"},
      {ScalarType::UInt64, "uint64"},
      {ScalarType::Bool, "bool"},
      {ScalarType::ComplexHalf, "complex32"},
      {ScalarType::ComplexFloat, "complex64"},
      {ScalarType::ComplexDouble, "complex128"},
      {ScalarType::Float8_e5m2, "float8_e5m2"},
      {ScalarType::Float8_e4m3fn, "float8_e4m3fn"},
      {ScalarType::Float8_e5m2fnuz, "float8_e5m2fnuz"},
      {ScalarType::Float8_e4m3fnuz, "float8_e4m3fnuz"},
      {ScalarType::Float8_e8m0fnu, "float8_e8m0fnu"},
  };
  for (const auto& [known, name] : kNames) {
    if (known == dtype) return name;
  }
  return torch::headeronly::toString(dtype);
}

// Tensor::scalar_type refuses dtypes that are newer than the ABI that we target; the numbers of dtypes never change.
ScalarType scalar_type_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return static_cast<ScalarType>(dtype);
}

int32_t device_type_of(const Tensor& tensor) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

PackedInfo describe(PackedArguments& a) {
  return {a.keys,  a.cu_seqlens, std::move(a.k), std::move(a.m), a.queries, a.scores,
          a.scale, a.lse,        a.max_seqlen,   a.group,        a.rule};
}

void take_checked(PackedArguments& a, PackedInfo&& checked) {
  a.k = std::move(checked.k);
  a.m = std::move(checked.m);
  a.scale = checked.scale;
}

}  // namespace

// What reaches a CPU or a CUDA kernel lies on the CPU or a CUDA device, strided, or is None: torch calls the operators
// of any other device or layout among the arguments instead.
TensorInfo::TensorInfo(const Tensor& tensor) {
  if (!tensor.defined()) return;
  const auto shape = tensor.sizes();
  const bool on_cpu = device_type_of(tensor) == static_cast<int32_t>(DeviceType::CPU);
  layout = "strided";
  dtype = dtype_name(scalar_type_of(tensor));
  device = on_cpu ? "cpu" : "cuda";
  device_index = on_cpu ? -1 : tensor.get_device_index();
  sizes = {shape.data(), shape.size()};
}

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kBFloat16;
  }
}

void check_select_packed(PackedArguments& arguments) {
  PackedInfo info = describe(arguments);
  check_select_packed(info);
  take_checked(arguments, std::move(info));
}

void check_zip_packed(const Tensor& hidden, PackedArguments& arguments) {
  PackedInfo info = describe(arguments);
  check_zip_packed(TensorInfo(hidden), info);
  take_checked(arguments, std::move(info));
}

}  // namespace visionzip
