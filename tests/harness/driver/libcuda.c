// A stand-in for NVIDIA's driver: records what is launched and runs nothing.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
} Config;  // the beginning of CUlaunchConfig

typedef struct {
  char kernel[32];
  Config config;
  uint64_t arguments[6];
} Launch;

Launch launches[64];
int num_launches = 0;

int cuLaunchKernelEx(const Config* config, void* function, void** arguments, void** extra) {
  Launch* launch = &launches[num_launches++ % 64];
  strncpy(launch->kernel, function, sizeof launch->kernel - 1);
  launch->config = *config;
  const int count = strcmp(function, "step_kernel") == 0 ? 6 : 4;  // without Triton's own
  for (int i = 0; i < count; ++i) memcpy(&launch->arguments[i], arguments[i], 8);
  return extra != NULL;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  (void)module;
  *function = strdup(name);
  return 0;
}

int cuPointerGetAttribute(void* result, int attribute, uint64_t pointer) {
  (void)attribute;
  memcpy(result, &pointer, sizeof pointer);
  return 0;
}

int cuFuncGetAttribute(int* result, int attribute, void* function) {
  (void)function;
  *result = attribute == 0 ? 1024 : 0;  // threads per block; spills, registers and memory
  return 0;
}

static int context;

int cuCtxGetCurrent(void** current) {
  *current = &context;
  return 0;
}

int cuDeviceGetAttribute(int* result, int attribute, int device) {
  (void)attribute, (void)device;
  *result = 1 << 16;
  return 0;
}

// Nothing else has an effect.
#define RETURNS_ZERO(name) \
  int name(void) { return 0; }
RETURNS_ZERO(cuCtxGetDevice)
RETURNS_ZERO(cuCtxGetLimit)
RETURNS_ZERO(cuCtxSetCurrent)
RETURNS_ZERO(cuCtxSetLimit)
RETURNS_ZERO(cuDeviceGet)
RETURNS_ZERO(cuDeviceGetCount)
RETURNS_ZERO(cuDevicePrimaryCtxRetain)
RETURNS_ZERO(cuDriverGetVersion)
RETURNS_ZERO(cuFuncSetAttribute)
RETURNS_ZERO(cuFuncSetCacheConfig)
RETURNS_ZERO(cuGetErrorString)
RETURNS_ZERO(cuInit)
RETURNS_ZERO(cuModuleLoadData)
RETURNS_ZERO(cuModuleUnload)
RETURNS_ZERO(cuOccupancyMaxActiveClusters)
RETURNS_ZERO(cuPointerGetAttributes)
RETURNS_ZERO(cuStreamIsCapturing)
RETURNS_ZERO(cuTensorMapEncodeTiled)
