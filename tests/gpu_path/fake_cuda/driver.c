/* The CUDA driver: what torch's allocator needs to map memory, and what Triton needs to load and launch kernels. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device.h"

#define OK return CUDA_SUCCESS

/* Calls that the fake does not have; the names are generated (see build.py). */
EXPORTED int fake_driver_missing(const char *name) {
  fprintf(stderr, "fake CUDA: %s is not implemented\n", name);
  return CUDA_ERROR_NOT_SUPPORTED;
}

/* Later versions of a function have names of their own: cuMemGetAddressRange_v2. */
void *driver_function(const char *name) {
  char version[128];
  for (int number = 4; number > 1; number--) {
    snprintf(version, sizeof version, "%s_v%d", name, number);
    void *found = dlsym(RTLD_DEFAULT, version);
    if (found) return found;
  }
  return dlsym(RTLD_DEFAULT, name);
}
EXPORTED CUresult cuGetProcAddress_v2(
    const char *name, void **function, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *result) {
  *function = driver_function(name);
  if (result) *result = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* ---- devices and contexts: one context a device, whose handle is its number plus one ---- */

EXPORTED CUresult cuInit(unsigned flags) { return properties()->count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
EXPORTED CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; OK; }
EXPORTED CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "error of the fake driver";
  OK;
}
EXPORTED CUresult cuGetErrorName(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
  OK;
}
EXPORTED CUresult cuDeviceGetCount(int *count) { *count = properties()->count; OK; }
EXPORTED CUresult cuDeviceGet(CUdevice *device, int number) { *device = number; OK; }
EXPORTED CUresult cuDeviceGetName(char *text, int size, CUdevice device) {
  snprintf(text, size, "%s", properties()->name);
  OK;
}
EXPORTED CUresult cuDeviceTotalMem_v2(size_t *size, CUdevice device) { *size = properties()->total; OK; }
/* The numbers of attributes are the same in both interfaces. */
EXPORTED CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  extern int cudaDeviceGetAttribute(int *, int, int);
  if (attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED ||
      attribute == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) {
    *value = 1;
    OK;
  }
  return cudaDeviceGetAttribute(value, attribute, device) ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
EXPORTED CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *is_active) {
  if (flags) *flags = 0;
  *is_active = 1;
  OK;
}
EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)(uintptr_t)(device + 1);
  OK;
}
EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { OK; }
EXPORTED CUresult cuCtxGetCurrent(CUcontext *context) { return cuDevicePrimaryCtxRetain(context, current_device()); }
EXPORTED CUresult cuCtxGetDevice(CUdevice *device) { *device = current_device(); OK; }
EXPORTED CUresult cuCtxSetCurrent(CUcontext context) {
  if (context) set_current_device((int)(uintptr_t)context - 1);
  OK;
}
EXPORTED CUresult cuCtxPushCurrent_v2(CUcontext context) { return cuCtxSetCurrent(context); }
EXPORTED CUresult cuCtxPopCurrent_v2(CUcontext *context) { return cuCtxGetCurrent(context); }
EXPORTED CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 1 << 20; OK; }
EXPORTED CUresult cuCtxSetLimit(CUlimit limit, size_t value) { OK; }

/* ---- memory in two steps: addresses are reserved, physical memory is created and mapped to them ---- */

struct physical {
  int device, is_released, num_mapped;
  size_t size;
};
struct mapped {
  char *address;
  struct physical *physical;
  struct mapped *next;
};
static struct mapped *mapped;

EXPORTED CUresult cuMemGetAllocationGranularity(
    size_t *size, const CUmemAllocationProp *property, CUmemAllocationGranularity_flags option) {
  *size = GRANULARITY;
  OK;
}
EXPORTED CUresult cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t a, CUdeviceptr near, unsigned long long f) {
  *address = (CUdeviceptr)reserve(size);
  return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
EXPORTED CUresult cuMemAddressFree(CUdeviceptr address, size_t size) { munmap((void *)address, size); OK; }
EXPORTED CUresult cuMemCreate(
    CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *property, unsigned long long flags) {
  if (size % GRANULARITY) return CUDA_ERROR_INVALID_VALUE;
  if (!take_physical(property->location.id, size)) return CUDA_ERROR_OUT_OF_MEMORY;
  struct physical *made = calloc(1, sizeof *made);
  made->device = property->location.id;
  made->size = size;
  *handle = (CUmemGenericAllocationHandle)made;
  OK;
}
static void free_if_unused(struct physical *physical) {
  if (!physical->is_released || physical->num_mapped) return;
  give_physical(physical->device, physical->size);
  free(physical);
}
EXPORTED CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  struct physical *physical = (struct physical *)handle;
  physical->is_released = 1;
  free_if_unused(physical);
  OK;
}
EXPORTED CUresult cuMemMap(
    CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags) {
  struct physical *physical = (struct physical *)handle;
  if (offset || size != physical->size) return CUDA_ERROR_INVALID_VALUE;
  struct mapped *made = malloc(sizeof *made);
  *made = (struct mapped){(char *)address, physical, mapped};
  mapped = made;
  physical->num_mapped++;
  map_range((void *)address, size, physical->device);
  OK;
}
EXPORTED CUresult cuMemUnmap(CUdeviceptr address, size_t size) {
  char *start = (char *)address;
  for (struct mapped **place = &mapped; *place;) {
    struct mapped *each = *place;
    if (each->address < start || each->address >= start + size) {
      place = &each->next;
      continue;
    }
    *place = each->next;
    each->physical->num_mapped--;
    free_if_unused(each->physical);
    free(each);
  }
  unmap_range(start, size);
  OK;
}
EXPORTED CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc *access, size_t count) { OK; }
EXPORTED CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
  copy_memory((void *)to, from, size);
  OK;
}
EXPORTED CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t num, CUstream stream) { OK; }
EXPORTED CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
  int device;
  enum memory where = find_memory((void *)address, &device);
  if (where == NOWHERE) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = address; OK;
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)value = (CUcontext)(uintptr_t)(device + 1); OK;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *(unsigned *)value = where == ON_DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      OK;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}

/* ---- modules and kernels ---- */

static char module;

EXPORTED CUresult cuModuleLoad(CUmodule *made, const char *file) { *made = (CUmodule)&module; OK; }
EXPORTED CUresult cuModuleLoadData(CUmodule *made, const void *image) { *made = (CUmodule)&module; OK; }
EXPORTED CUresult cuModuleLoadDataEx(CUmodule *made, const void *image, unsigned n, CUjit_option *options, void **v) {
  *made = (CUmodule)&module;
  OK;
}
EXPORTED CUresult cuModuleUnload(CUmodule unused) { OK; }
EXPORTED CUresult cuModuleGetFunction(CUfunction *function, CUmodule from, const char *name) {
  *function = (CUfunction)&module;
  OK;
}
EXPORTED CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; OK;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; OK;
    default: *value = 0; OK;
  }
}
EXPORTED CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { OK; }
EXPORTED CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { OK; }
EXPORTED CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  *clusters = 132;
  OK;
}
EXPORTED CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int size, size_t shared) {
  *blocks = 2;
  OK;
}
EXPORTED CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
  count(LAUNCH);
  OK;
}
EXPORTED CUresult cuLaunchKernel(
    CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
    CUstream stream, void **arguments, void **extra) {
  count(LAUNCH);
  OK;
}
