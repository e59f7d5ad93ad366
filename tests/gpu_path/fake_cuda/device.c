/* Memory, copies, counts and settings of the fake devices. */
#define _GNU_SOURCE
#include "device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- settings, from the environment ---- */

static pthread_once_t settings_read = PTHREAD_ONCE_INIT;
static struct properties settings;


static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

/* As the real driver: the devices of CUDA_VISIBLE_DEVICES before the first that does not exist. */
static int visible_devices(int existing) {
  const char *list = getenv("CUDA_VISIBLE_DEVICES");
  if (!list) return existing;
  int visible = 0;
  for (char *end; *list && visible < existing; list = end + 1) {
    long device = strtol(list, &end, 10);
    if (end == list || device < 0 || device >= existing) break;
    visible++;
    if (*end != ',') break;
  }
  return visible;
}

/* Called again in a forked process that has other devices. */
EXPORTED void fake_cuda_read_settings(void) {
  int existing = atoi(setting("FAKE_CUDA_DEVICES", "1"));
  settings.count = visible_devices(existing < MAX_DEVICES ? existing : MAX_DEVICES);
  sscanf(setting("FAKE_CUDA_CAPABILITY", "9.0"), "%d.%d", &settings.major, &settings.minor);
  settings.total = (size_t)atoll(setting("FAKE_CUDA_MEMORY_MIB", "81090")) << 20;
  settings.name = setting("FAKE_CUDA_NAME", "NVIDIA H100 80GB HBM3");
}

const struct properties *properties(void) {
  pthread_once(&settings_read, fake_cuda_read_settings);
  return &settings;
}

static __thread int current;

int current_device(void) { return current; }

int set_current_device(int device) {
  if (device < 0 || device >= properties()->count) return 0;
  current = device;
  return 1;
}

/* ---- counts ---- */

EXPORTED long fake_cuda_counts[EVENTS];
static void (*observer)(int);

EXPORTED void fake_cuda_observe(void (*function)(int)) { observer = function; }

void count(enum event event) {
  __atomic_add_fetch(&fake_cuda_counts[event], 1, __ATOMIC_RELAXED);
  void (*function)(int) = observer;
  if (function && event >= SYNCHRONIZE) function(event);
}

/* ---- memory ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t used[MAX_DEVICES];

struct range {
  char *start;
  size_t size;
  enum memory where;
  int device, is_ours;
};
static struct range *ranges;
static size_t num_ranges, room_for_ranges;

static struct range *range_of(const void *address) {
  for (size_t i = 0; i < num_ranges; i++)
    if ((const char *)address >= ranges[i].start && (const char *)address < ranges[i].start + ranges[i].size)
      return &ranges[i];
  return NULL;
}

static void add_range(struct range range) {
  if (num_ranges == room_for_ranges) {
    room_for_ranges = room_for_ranges ? 2 * room_for_ranges : 256;
    ranges = realloc(ranges, room_for_ranges * sizeof *ranges);
  }
  ranges[num_ranges++] = range;
}

static void *map_pages(size_t size, int protection) {
  void *address = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return address == MAP_FAILED ? NULL : address;
}

static int fits(int device, size_t size) { return used[device] + size + CONTEXT_BYTES <= properties()->total; }

void *allocate_on_device(size_t size) {
  size_t whole = (size + 511) / 512 * 512;
  void *address = NULL;
  pthread_mutex_lock(&lock);
  if (whole && fits(current, whole) && (address = map_pages(whole, PROT_NONE))) {
    used[current] += whole;
    add_range((struct range){address, whole, ON_DEVICE, current, 1});
  }
  pthread_mutex_unlock(&lock);
  return address;
}

void *allocate_on_host(size_t size) {
  void *address = size ? map_pages(size, PROT_READ | PROT_WRITE) : NULL;
  pthread_mutex_lock(&lock);
  if (address) add_range((struct range){address, size, ON_HOST, current, 1});
  pthread_mutex_unlock(&lock);
  return address;
}

void register_on_host(void *address, size_t size) {
  pthread_mutex_lock(&lock);
  add_range((struct range){address, size, ON_HOST, current, 0});
  pthread_mutex_unlock(&lock);
}

static void forget(const char *start, size_t size);

void release(void *address) {
  pthread_mutex_lock(&lock);
  struct range *range = range_of(address);
  if (range && range->start == address) {
    if (range->where == ON_DEVICE) {
      used[range->device] -= range->size;
      forget(range->start, range->size);
    }
    if (range->is_ours) munmap(range->start, range->size);
    *range = ranges[--num_ranges];
  }
  pthread_mutex_unlock(&lock);
}

enum memory find_memory(const void *address, int *device) {
  pthread_mutex_lock(&lock);
  struct range *range = range_of(address);
  enum memory where = range ? range->where : NOWHERE;
  if (device) *device = range ? range->device : 0;
  pthread_mutex_unlock(&lock);
  return where;
}

size_t free_bytes(int device) {
  pthread_mutex_lock(&lock);
  size_t taken = used[device] + CONTEXT_BYTES, total = properties()->total;
  pthread_mutex_unlock(&lock);
  return taken < total ? total - taken : 0;
}

void *reserve(size_t size) { return map_pages(size, PROT_NONE); }

int take_physical(int device, size_t size) {
  pthread_mutex_lock(&lock);
  int taken = fits(device, size);
  if (taken) used[device] += size;
  pthread_mutex_unlock(&lock);
  return taken;
}

void give_physical(int device, size_t size) {
  pthread_mutex_lock(&lock);
  used[device] -= size;
  pthread_mutex_unlock(&lock);
}

void map_range(void *address, size_t size, int device) {
  pthread_mutex_lock(&lock);
  add_range((struct range){address, size, ON_DEVICE, device, 0});
  pthread_mutex_unlock(&lock);
}

void unmap_range(void *address, size_t size) {
  char *start = address;
  pthread_mutex_lock(&lock);
  for (size_t i = num_ranges; i-- > 0;)
    if (ranges[i].start >= start && ranges[i].start < start + size) ranges[i] = ranges[--num_ranges];
  forget(start, size);
  pthread_mutex_unlock(&lock);
}

/* ---- what was copied to a device ---- */

enum { BUCKETS = 4096, MOST_REMEMBERED = 16 << 20 };

struct copy {
  char *address, *bytes;
  size_t size;
  struct copy *next;
};
static struct copy *copies[BUCKETS];

static struct copy **find_copy(const void *address) {
  struct copy **place = &copies[(uintptr_t)address / 512 % BUCKETS];
  while (*place && (*place)->address != address) place = &(*place)->next;
  return place;
}

static void drop(struct copy **place) {
  struct copy *copy = *place;
  if (!copy) return;
  *place = copy->next;
  free(copy->bytes);
  free(copy);
}

static void forget(const char *start, size_t size) {
  for (int i = 0; i < BUCKETS; i++)
    for (struct copy **place = &copies[i]; *place;)
      if ((*place)->address >= start && (*place)->address < start + size) drop(place);
      else place = &(*place)->next;
}

/* NULL as bytes forgets what the address holds. Takes the bytes over. */
static void remember(void *address, char *bytes, size_t size) {
  struct copy **place = find_copy(address);
  drop(place);
  if (!bytes) return;
  struct copy *copy = malloc(sizeof *copy);
  *copy = (struct copy){address, bytes, size, *place};
  *place = copy;
}

static char *duplicate(const void *bytes, size_t size) {
  return size && size <= MOST_REMEMBERED ? memcpy(malloc(size), bytes, size) : NULL;
}

void copy_memory(void *to, const void *from, size_t size) {
  pthread_mutex_lock(&lock);
  struct range *source = range_of(from), *target = range_of(to);
  int from_device = source && source->where == ON_DEVICE, to_device = target && target->where == ON_DEVICE;
  struct copy *copy = from_device ? *find_copy(from) : NULL;
  const void *bytes = !from_device ? from : copy && copy->size == size ? copy->bytes : NULL;
  if (to_device) remember(to, bytes ? duplicate(bytes, size) : NULL, size);
  else if (bytes) memmove(to, bytes, size);
  else memset(to, 0, size);
  pthread_mutex_unlock(&lock);
  if (from_device == to_device) return;
  if (to_device && !source) count(PAGEABLE_TO_DEVICE);
  if (from_device && !target) count(PAGEABLE_TO_HOST);
}

void set_memory(void *to, int value, size_t size) {
  char *bytes = value && size && size <= MOST_REMEMBERED ? memset(malloc(size), value, size) : NULL;
  pthread_mutex_lock(&lock);
  remember(to, bytes, size);
  pthread_mutex_unlock(&lock);
}
