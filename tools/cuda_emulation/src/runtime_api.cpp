// The CUDA runtime's C interface, as far as programs that were executed here call it, for one emulated device.  Streams
// are ignored: what is asked for has happened when the call returns.
#include "cuda_emulation/runtime_api.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "device.h"
#include "launch.h"
#include "settings.h"

namespace cuda_emulation {

namespace {

thread_local cudaError_t last_error = cudaSuccess;

std::string& last_diagnosis() {
  static auto* text = new std::string;
  return *text;
}

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

const char* name_of(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "an error that the emulation has no name for";
  }
}

// What cudaFuncSetAttribute has set.
struct FunctionAttributes {
  size_t dynamic_shared = kSharedWithoutAsking;
  bool large_clusters = false;
};

std::mutex functions_mutex;
FunctionAttributes& attributes_of(const void* function) {
  static auto* functions = new std::map<const void*, FunctionAttributes>;
  const std::lock_guard<std::mutex> lock(functions_mutex);
  return (*functions)[function];
}

struct LaunchAttributes {
  dim3 cluster{1, 1, 1};
  bool cooperative = false;
};

LaunchAttributes attributes_of(const cudaLaunchConfig_t& config) {
  LaunchAttributes found;
  for (unsigned i = 0; i < config.numAttrs; i++) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      const auto& size = attribute.val.clusterDim;
      found.cluster = dim3(size.x, size.y, size.z);
    }
    if (attribute.id == cudaLaunchAttributeCooperative) found.cooperative = attribute.val.cooperative != 0;
  }
  return found;
}

// What a GPU would refuse.
cudaError_t check(const Launch& launch, const FunctionAttributes& function) {
  const Device device(launch.settings);
  const unsigned cluster = launch.blocks_per_cluster(), threads = launch.threads_per_block();
  if (launch.blocks() == 0 || threads == 0 || threads > 1024 || launch.block.z > 64) {
    return cudaErrorInvalidConfiguration;
  }
  if (launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (launch.dynamic_shared > function.dynamic_shared) return cudaErrorInvalidValue;
  if (cluster == 0) return cudaErrorInvalidClusterSize;
  if (cluster > 1) {
    if (!device.has_clusters()) return cudaErrorNotSupported;
    if (cluster > 16 || (cluster > 8 && !function.large_clusters)) return cudaErrorInvalidClusterSize;
    if (launch.grid.x % launch.cluster.x != 0 || launch.grid.y % launch.cluster.y != 0 ||
        launch.grid.z % launch.cluster.z != 0) {
      return cudaErrorInvalidClusterSize;
    }
  }
  if (launch.cooperative) {
    const uint64_t resident =
        uint64_t{static_cast<unsigned>(device.multiprocessors())} *
        static_cast<unsigned>(device.blocks_per_multiprocessor(static_cast<int>(threads), launch.dynamic_shared));
    if (launch.blocks() > resident) return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* function, std::function<void()> kernel) {
  const LaunchAttributes attributes = attributes_of(config);
  Launch launch;
  launch.grid = config.gridDim;
  launch.block = config.blockDim;
  launch.cluster = attributes.cluster;
  launch.dynamic_shared = config.dynamicSmemBytes;
  launch.cooperative = attributes.cooperative;
  launch.kernel = std::move(kernel);
  launch.settings = read_settings();
  if (const cudaError_t error = check(launch, attributes_of(function)); error != cudaSuccess) return note(error);
  if (execute(launch)) return cudaSuccess;
  last_diagnosis() = "emulated kernel: " + launch.diagnosis();
  return note(cudaErrorLaunchFailure);
}

}  // namespace cuda_emulation

using cuda_emulation::Device;
using cuda_emulation::note;
using cuda_emulation::read_settings;

extern "C" {

// --- errors ---

cudaError_t cudaGetLastError() { return std::exchange(cuda_emulation::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure) return cuda_emulation::last_diagnosis().c_str();
  return cuda_emulation::name_of(error);
}

// --- the device ---

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return note(Device(read_settings()).attribute(attribute, *value) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  const Device device(read_settings());
  *properties = cudaDeviceProp{};
  std::snprintf(properties->name, sizeof properties->name, "emulated sm_%d", device.arch());
  properties->major = device.arch() / 10;
  properties->minor = device.arch() % 10;
  properties->multiProcessorCount = device.multiprocessors();
  return cudaSuccess;
}

// --- functions ---

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  auto& attributes = cuda_emulation::attributes_of(function);
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || static_cast<size_t>(value) > Device(read_settings()).limits().shared_of_block) {
        return note(cudaErrorInvalidValue);
      }
      attributes.dynamic_shared = std::max(static_cast<size_t>(value), cuda_emulation::kSharedWithoutAsking);
      return cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      attributes.large_clusters = value != 0;
      return cudaSuccess;
    default:
      return note(cudaErrorInvalidValue);
  }
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared) {
  *blocks = Device(read_settings()).blocks_per_multiprocessor(threads, shared);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  const Device device(read_settings());
  const dim3 cluster = cuda_emulation::attributes_of(*config).cluster, block = config->blockDim;
  const int threads = static_cast<int>(block.x * block.y * block.z);
  *clusters = device.multiprocessors() * device.blocks_per_multiprocessor(threads, config->dynamicSmemBytes) /
              static_cast<int>(cluster.x * cluster.y * cluster.z);
  return cudaSuccess;
}

// --- memory and streams ---

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  // 256 bytes are what CUDA aligns to.  Nothing is in it: all bits are set, which floats read as NaN.
  if (posix_memalign(memory, 256, bytes) != 0) return note(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void* memory, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
  for (size_t row = 0; row < height; row++) std::memset(static_cast<char*>(memory) + row * pitch, value, width);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

}  // extern "C"
