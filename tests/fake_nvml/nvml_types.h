/* The NVML structs and constants that the fake needs, declared by us; sizes are those of the 64-bit Linux ABI. */
#ifndef FAKE_NVML_TYPES_H
#define FAKE_NVML_TYPES_H

#include <assert.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
typedef void *nvmlEventSet_t;
typedef void *nvmlGpmSample_t;
typedef unsigned long long u64;

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    ARGUMENT_VERSION_MISMATCH = 25,
};

/* What a versioned struct states about itself: its size and its number. */
#define STRUCT_VERSION(type, number) ((unsigned)sizeof(type) | ((unsigned)(number) << 24))

typedef union {
    double d;
    unsigned ui;
    unsigned long ul;
    u64 ull;
    long long sll;
    int si;
    unsigned short us;
} Value;

enum { TYPE_DOUBLE, TYPE_UINT, TYPE_ULONG, TYPE_U64, TYPE_I64, TYPE_INT, TYPE_USHORT };

typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { u64 total, free, used; } Bar1Memory;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; u64 protected; } WideProcess;
typedef struct { unsigned pid; u64 timestamp; unsigned sm, mem, enc, dec; } ProcessUtilization;
typedef struct { u64 timestamp; Value value; } Sample;
typedef struct { u64 reference, violation; } ViolationTime;
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type;
    nvmlReturn_t code;
    Value value;
} FieldValue;
typedef struct { unsigned version, sensor; int celsius; } TemperatureV1;
typedef struct { unsigned version; int celsius; } MarginTemperature;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char bus_id[32];
} PciInfo;
typedef struct { nvmlDevice_t device; u64 type, data; unsigned gpu_instance, compute_instance; } EventData;
typedef struct { char *short_name, *long_name, *unit; } GpmInfo;
typedef struct { unsigned id; nvmlReturn_t code; double value; GpmInfo info; } GpmMetric;
typedef struct {
    unsigned version, count;
    nvmlGpmSample_t first, second;
    GpmMetric metrics[477];
} GpmMetrics;
typedef struct { unsigned version, supported; } GpmSupport;
typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    u64 memory_mib;
} Attributes;

static_assert(sizeof(MemoryV2) == 40, "nvmlMemory_v2 is 40 bytes");
static_assert(sizeof(Process) == 24, "nvmlProcessInfo_v2 is 24 bytes");
static_assert(sizeof(FieldValue) == 40, "nvmlFieldValue_t is 40 bytes");
static_assert(sizeof(Sample) == 16, "nvmlSample_t is 16 bytes");
static_assert(sizeof(PciInfo) == 68, "nvmlPciInfo_t is 68 bytes");
static_assert(sizeof(EventData) == 32, "nvmlEventData_t is 32 bytes");
static_assert(sizeof(GpmMetric) == 40, "nvmlGpmMetric_t is 40 bytes");
static_assert(sizeof(GpmMetrics) == 19104, "nvmlGpmMetricsGet_t is 19104 bytes");
static_assert(sizeof(TemperatureV1) == 12, "nvmlTemperature_v1 is 12 bytes");
static_assert(sizeof(MarginTemperature) == 8, "nvmlMarginTemperature_v1 is 8 bytes");

#endif
