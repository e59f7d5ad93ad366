/* The CUDA runtime: bookkeeping is real, kernels do nothing. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

#define OK return cudaSuccess

static __thread cudaError_t last_error;

static cudaError_t failed(cudaError_t error) { return last_error = error; }

EXPORTED cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
EXPORTED cudaError_t cudaPeekAtLastError(void) { return last_error; }

/* Calls that the fake does not have; the names are generated (see build.py). */
EXPORTED int fake_cuda_missing(const char *name) {
  fprintf(stderr, "fake CUDA: %s is not implemented\n", name);
  return failed(cudaErrorNotSupported);
}

/* ---- devices ---- */

EXPORTED cudaError_t cudaGetDeviceCount(int *count) {
  *count = properties()->count;
  return *count ? cudaSuccess : failed(cudaErrorNoDevice);
}
EXPORTED cudaError_t cudaGetDevice(int *device) { *device = current_device(); OK; }
EXPORTED cudaError_t cudaSetDevice(int device) {
  return set_current_device(device) ? cudaSuccess : failed(cudaErrorInvalidDevice);
}
EXPORTED cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; OK; }
EXPORTED cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; OK; }

/* The sizes are those of an H100 (SXM), whatever the capability; Turing's shared memory where it is older. */
EXPORTED cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  const struct properties *of = properties();
  if (device < 0 || device >= of->count) return failed(cudaErrorInvalidDevice);
  *p = (struct cudaDeviceProp){
      .totalGlobalMem = of->total,
      .major = of->major,
      .minor = of->minor,
      .multiProcessorCount = 132,
      .warpSize = 32,
      .maxThreadsPerBlock = 1024,
      .maxThreadsPerMultiProcessor = of->major < 8 ? 1024 : 2048,
      .maxBlocksPerMultiProcessor = 32,
      .maxThreadsDim = {1024, 1024, 64},
      .maxGridSize = {2147483647, 65535, 65535},
      .sharedMemPerBlock = 48 << 10,
      .sharedMemPerBlockOptin = of->major < 8 ? 64 << 10 : 227 << 10,
      .sharedMemPerMultiprocessor = of->major < 8 ? 64 << 10 : 228 << 10,
      .regsPerBlock = 65536,
      .regsPerMultiprocessor = 65536,
      .l2CacheSize = 50 << 20,
      .memoryBusWidth = 5120,
      .textureAlignment = 512,
      .asyncEngineCount = 3,
      .concurrentKernels = 1,
      .unifiedAddressing = 1,
      .canMapHostMemory = 1,
      .pciBusID = device + 1,
  };
  snprintf(p->name, sizeof p->name, "%s", of->name);
  memset(p->uuid.bytes, device + 1, sizeof p->uuid.bytes);
  OK;
}
EXPORTED cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  struct cudaDeviceProp p;
  if (cudaGetDeviceProperties(&p, device)) return last_error;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1 << 10; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = p.regsPerBlock; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerMultiprocessor; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    default: *value = 0; /* features that torch uses only if they are there: pools, multicast, peer atomics */
  }
  OK;
}
EXPORTED cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", device + 1);
  OK;
}
EXPORTED cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; OK; }
EXPORTED cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) { OK; }
EXPORTED cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  OK;
}

/* ---- memory ---- */

EXPORTED cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = free_bytes(current_device());
  *total = properties()->total;
  OK;
}
EXPORTED cudaError_t cudaMalloc(void **address, size_t size) {
  *address = allocate_on_device(size);
  return *address || !size ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
EXPORTED cudaError_t cudaFree(void *address) { release(address); OK; }
EXPORTED cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) {
  *address = allocate_on_host(size);
  return *address || !size ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
EXPORTED cudaError_t cudaFreeHost(void *address) { release(address); OK; }
EXPORTED cudaError_t cudaHostRegister(void *address, size_t size, unsigned flags) { register_on_host(address, size); OK; }
EXPORTED cudaError_t cudaHostUnregister(void *address) { release(address); OK; }
EXPORTED cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
  static const enum cudaMemoryType types[] = {
      [NOWHERE] = cudaMemoryTypeUnregistered, [ON_DEVICE] = cudaMemoryTypeDevice, [ON_HOST] = cudaMemoryTypeHost};
  int device;
  enum memory where = find_memory(address, &device);
  *attributes = (struct cudaPointerAttributes){
      .type = types[where],
      .device = device,
      .devicePointer = where == NOWHERE ? NULL : (void *)address,
      .hostPointer = where == ON_DEVICE ? NULL : (void *)address,
  };
  OK;
}
EXPORTED cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s) {
  copy_memory(to, from, size);
  OK;
}
EXPORTED cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  copy_memory(to, from, size);
  count(SYNCHRONIZE);
  OK;
}
EXPORTED cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, cudaStream_t s) {
  copy_memory(to, from, size);
  OK;
}
EXPORTED cudaError_t cudaMemcpyToSymbol(const void *s, const void *from, size_t n, size_t o, enum cudaMemcpyKind k) { OK; }
EXPORTED cudaError_t cudaMemset(void *to, int value, size_t size) { set_memory(to, value, size); OK; }
EXPORTED cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
  set_memory(to, value, size);
  OK;
}
EXPORTED cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
  static char memory[4096];
  *address = memory;
  OK;
}

/* ---- streams and events: all work is done at once ---- */

static void *handle(void) { return calloc(1, 64); }

EXPORTED cudaError_t cudaStreamCreate(cudaStream_t *stream) { *stream = handle(); OK; }
EXPORTED cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { *stream = handle(); OK; }
EXPORTED cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  *stream = handle();
  OK;
}
EXPORTED cudaError_t cudaStreamDestroy(cudaStream_t stream) { free(stream); OK; }
EXPORTED cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; OK; }
EXPORTED cudaError_t cudaStreamQuery(cudaStream_t stream) { OK; }
EXPORTED cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { OK; }
EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  count(SYNCHRONIZE);
  return stream && stream == capturing_stream() ? failed(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
EXPORTED cudaError_t cudaDeviceSynchronize(void) {
  count(SYNCHRONIZE);
  return capturing_stream() ? failed(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
EXPORTED cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) { function(data); OK; }
EXPORTED cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = handle(); OK; }
EXPORTED cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = handle(); OK; }
EXPORTED cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); OK; }
EXPORTED cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { OK; }
EXPORTED cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { OK; }
EXPORTED cudaError_t cudaEventQuery(cudaEvent_t event) { OK; }
EXPORTED cudaError_t cudaEventSynchronize(cudaEvent_t event) { count(WAIT_FOR_EVENT); OK; }
EXPORTED cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = 1;
  OK;
}
EXPORTED cudaError_t cudaProfilerStart(void) { OK; }
EXPORTED cudaError_t cudaProfilerStop(void) { OK; }

/* ---- kernels ---- */

EXPORTED cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t shared, cudaStream_t s) {
  count(LAUNCH);
  OK;
}
EXPORTED cudaError_t __cudaLaunchKernel(const void *k, dim3 g, dim3 b, void **a, size_t shared, cudaStream_t s) {
  count(LAUNCH);
  OK;
}
EXPORTED cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **arguments) {
  count(LAUNCH);
  OK;
}
EXPORTED cudaError_t __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; OK; }
EXPORTED cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
  int capability = 10 * properties()->major + properties()->minor;
  *attributes = (struct cudaFuncAttributes){
      .maxThreadsPerBlock = 1024,
      .numRegs = 32,
      .ptxVersion = capability,
      .binaryVersion = capability,
      .maxDynamicSharedSizeBytes = 227 << 10,
  };
  OK;
}
EXPORTED cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) { OK; }
EXPORTED cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *function, int size, size_t shared, unsigned flags) {
  *blocks = 2;
  OK;
}

EXPORTED cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
  *function = driver_function(name);
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  OK;
}
