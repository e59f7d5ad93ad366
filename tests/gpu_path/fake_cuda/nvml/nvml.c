/* NVIDIA's management library for the fake devices: it counts them, and measures nothing. */
#include <stdlib.h>
#include <stdio.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3 };

static int setting(const char *name, int otherwise) {
  const char *value = getenv(name);
  return value && *value ? atoi(value) : otherwise;
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInit(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error ? "Not Supported" : "Success"; }
int nvmlDeviceGetCount_v2(unsigned *count) {
  *count = setting("FAKE_CUDA_DEVICES", 1);
  return SUCCESS;
}
int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = (void *)(size_t)(index + 1);
  return SUCCESS;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) { return nvmlDeviceGetHandleByIndex_v2(0, device); }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  const char *capability = getenv("FAKE_CUDA_CAPABILITY");
  *major = 9, *minor = 0;
  if (capability) sscanf(capability, "%d.%d", major, minor);
  return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *device, void *rates) { return NOT_SUPPORTED; }
/* What it is asked to fill in is zero at first, which says that there is no fabric. */
int nvmlDeviceGetGpuFabricInfoV(void *device, void *information) { return SUCCESS; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned link, void *type) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, void *information) { return NOT_SUPPORTED; }
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *processes) {
  *count = 0;
  return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  *version = 13000;
  return SUCCESS;
}
