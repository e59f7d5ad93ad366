/* The devices of the fake: what the runtime (runtime.c), the driver (driver.c) and cuBLAS (blas.c) have in common. */
#ifndef FAKE_CUDA_DEVICE_H
#define FAKE_CUDA_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

enum { MAX_DEVICES = 16, CONTEXT_BYTES = 500 << 20, GRANULARITY = 2 << 20 };

/* What is counted. An observer is called from SYNCHRONIZE on. */
enum event { LAUNCH, CAPTURE, REPLAY, SYNCHRONIZE, WAIT_FOR_EVENT, PAGEABLE_TO_DEVICE, PAGEABLE_TO_HOST, EVENTS };

enum memory { NOWHERE, ON_DEVICE, ON_HOST };

struct properties {
  int count, major, minor;
  size_t total;
  const char *name;
};

const struct properties *properties(void);
int current_device(void);
int set_current_device(int device);

void count(enum event event);

/* The stream from which a CUDA graph is being captured, for which nothing may wait; NULL for none. */
void *capturing_stream(void);

/* A device's memory is address space that nothing can touch. NULL where the limit of the device is exceeded. */
void *allocate_on_device(size_t size);
void *allocate_on_host(size_t size);
void register_on_host(void *address, size_t size);
void release(void *address);
enum memory find_memory(const void *address, int *device);
size_t free_bytes(int device);

/* For memory that is reserved, created and mapped by separate calls. */
void *reserve(size_t size);
int take_physical(int device, size_t size);
void give_physical(int device, size_t size);
void map_range(void *address, size_t size, int device);
void unmap_range(void *address, size_t size);

/* A device remembers what was copied to it, by address; all else reads as zero. */
void copy_memory(void *to, const void *from, size_t size);
void set_memory(void *to, int value, size_t size);

void *driver_function(const char *name);

#endif
