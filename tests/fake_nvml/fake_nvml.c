/* A libnvidia-ml.so.1 without a GPU: answers from a text state file (environment variable FAKE_NVML_STATE).
 *
 * The file is looked at on every call and parsed again when its mtime, inode or size changed; state.py writes it.
 * Lines (numbers are decimal; GPU "*" means all):
 *   gpus N | generation N | set KEY VALUE
 *   gpu G KEY VALUE               a number from the KEYS table, or the strings name, uuid, pci, serial, vbios
 *   field G ID CODE TYPE VALUE [SCOPE]  answer of one field id, in place of the built-in one, in one scope or in all
 *   error FUNCTION G CODE | delay FUNCTION G MICROSECONDS | hang FUNCTION G      (G "-": calls without a GPU)
 *   process G PID BYTES [GI CI]   BYTES "-": the driver does not say
 *   mig G INDEX GI CI UUID MEMORY USED PROFILE SM OCCUPANCY TENSOR DRAM          (ratios in per cent)
 *   sample G TYPE MICROSECONDS VALUE    replaces the endless 1/6 s buffer for this GPU and type
 *   xid SEQUENCE G CODE
 */
#define _GNU_SOURCE
#include <libgen.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "nvml_types.h"

#define MAX_GPUS 16
#define MAX_MIG 8
#define MAX_PROCESSES 64
#define MAX_XIDS 256
#define MAX_SAMPLES 256
#define MAX_OVERRIDES 128
#define MAX_FIELD_ID 512
#define NO_GPU MAX_GPUS /* behaviour row of calls that name no GPU */
#define BUFFER_SAMPLES 100
#define SAMPLE_STEP 166667 /* the driver samples utilisation six times a second */
#define ANY_LINK 0xFFFFFFFFu

#define KEYS(X) \
    X(util) X(mem_util) X(enc_util) X(dec_util) X(stall) \
    X(mem_total) X(mem_reserved) X(mem_used) X(bar1_total) X(bar1_used) \
    X(power_mw) X(power_avg_mw) X(power_min_mw) X(power_max_mw) X(power_default_mw) X(power_limit_mw) X(energy_mj) \
    X(temp) X(mem_temp) X(margin) X(shutdown) X(slowdown) X(mem_max) X(gpu_max) \
    X(fans) X(fan) X(clock_graphics) X(clock_sm) X(clock_mem) X(clock_video) \
    X(max_graphics) X(max_sm) X(max_mem) X(max_video) X(pstate) X(reasons) X(reasons_offered) \
    X(ns_power) X(ns_sw_thermal) X(ns_sync) X(ns_board) X(ns_low) X(ns_reliability) X(ns_hw_thermal) X(ns_brake) \
    X(pcie_tx) X(pcie_rx) X(pcie_gen) X(pcie_gen_max) X(pcie_width) X(pcie_width_max) X(pcie_replay) X(pcie_corr) \
    X(nvlinks) X(nvlinks_up) X(nvlink_hole) X(nvlink_tx_kib) X(nvlink_rx_kib) X(nvlink_replay) X(nvlink_recovery) X(nvlink_crc) \
    X(ecc_corr) X(ecc_uncorr) X(ecc_corr_agg) X(ecc_uncorr_agg) \
    X(remap_corr) X(remap_uncorr) X(remap_pending) X(remap_failure) X(retired_sbe) X(retired_dbe) X(recovery) \
    X(sm) X(occupancy) X(tensor) X(dram) X(gpm) X(mig) X(cc_major) X(cc_minor) X(events)

enum {
#define X(name) K_##name,
    KEYS(X)
#undef X
    KEY_COUNT
};
static const char *const key_names[] = {
#define X(name) #name,
    KEYS(X)
#undef X
};

#define FUNCTIONS(X) \
    X(nvmlInitWithFlags) X(nvmlShutdown) X(nvmlSystemGetDriverVersion) X(nvmlSystemGetNVMLVersion) \
    X(nvmlSystemGetCudaDriverVersion) X(nvmlSystemGetCudaDriverVersion_v2) X(nvmlDeviceGetCount_v2) \
    X(nvmlDeviceGetHandleByIndex_v2) X(nvmlDeviceGetHandleByUUID) X(nvmlDeviceGetHandleByPciBusId_v2) \
    X(nvmlDeviceGetIndex) X(nvmlDeviceGetName) X(nvmlDeviceGetUUID) X(nvmlDeviceGetSerial) \
    X(nvmlDeviceGetMinorNumber) X(nvmlDeviceGetVbiosVersion) X(nvmlDeviceGetPciInfo_v3) \
    X(nvmlDeviceGetCudaComputeCapability) X(nvmlDeviceGetUtilizationRates) X(nvmlDeviceGetEncoderUtilization) \
    X(nvmlDeviceGetDecoderUtilization) X(nvmlDeviceGetMemoryInfo) X(nvmlDeviceGetMemoryInfo_v2) \
    X(nvmlDeviceGetBAR1MemoryInfo) X(nvmlDeviceGetTemperature) X(nvmlDeviceGetTemperatureV) \
    X(nvmlDeviceGetMarginTemperature) X(nvmlDeviceGetTemperatureThreshold) X(nvmlDeviceGetFanSpeed) \
    X(nvmlDeviceGetFanSpeed_v2) X(nvmlDeviceGetNumFans) X(nvmlDeviceGetPowerUsage) \
    X(nvmlDeviceGetTotalEnergyConsumption) X(nvmlDeviceGetEnforcedPowerLimit) X(nvmlDeviceGetPowerManagementLimit) \
    X(nvmlDeviceGetPowerManagementDefaultLimit) X(nvmlDeviceGetPowerManagementLimitConstraints) \
    X(nvmlDeviceGetClockInfo) X(nvmlDeviceGetMaxClockInfo) X(nvmlDeviceGetPerformanceState) \
    X(nvmlDeviceGetCurrentClocksEventReasons) X(nvmlDeviceGetCurrentClocksThrottleReasons) \
    X(nvmlDeviceGetSupportedClocksEventReasons) X(nvmlDeviceGetViolationStatus) X(nvmlDeviceGetSamples) X(nvmlDeviceGetFieldValues) X(nvmlDeviceGetEccMode) \
    X(nvmlDeviceGetTotalEccErrors) X(nvmlDeviceGetMemoryErrorCounter) X(nvmlDeviceGetRemappedRows) \
    X(nvmlDeviceGetPcieThroughput) X(nvmlDeviceGetCurrPcieLinkGeneration) X(nvmlDeviceGetMaxPcieLinkGeneration) \
    X(nvmlDeviceGetCurrPcieLinkWidth) X(nvmlDeviceGetMaxPcieLinkWidth) X(nvmlDeviceGetPcieReplayCounter) \
    X(nvmlDeviceGetNvLinkState) X(nvmlDeviceGetPersistenceMode) X(nvmlDeviceGetComputeMode) \
    X(nvmlDeviceGetDisplayMode) X(nvmlDeviceGetDisplayActive) X(nvmlDeviceGetMigMode) \
    X(nvmlDeviceGetMaxMigDeviceCount) X(nvmlDeviceGetMigDeviceHandleByIndex) X(nvmlDeviceGetGpuInstanceId) \
    X(nvmlDeviceGetComputeInstanceId) X(nvmlDeviceIsMigDeviceHandle) \
    X(nvmlDeviceGetDeviceHandleFromMigDeviceHandle) X(nvmlDeviceGetAttributes_v2) \
    X(nvmlDeviceGetComputeRunningProcesses_v2) X(nvmlDeviceGetComputeRunningProcesses_v3) \
    X(nvmlDeviceGetGraphicsRunningProcesses_v2) X(nvmlDeviceGetGraphicsRunningProcesses_v3) \
    X(nvmlDeviceGetMPSComputeRunningProcesses_v3) X(nvmlDeviceGetProcessUtilization) \
    X(nvmlGpmQueryDeviceSupport) X(nvmlGpmSampleAlloc) X(nvmlGpmSampleFree) X(nvmlGpmSampleGet) \
    X(nvmlGpmMigSampleGet) X(nvmlGpmMetricsGet) X(nvmlEventSetCreate) X(nvmlEventSetFree) \
    X(nvmlDeviceGetSupportedEventTypes) X(nvmlDeviceRegisterEvents) X(nvmlEventSetWait_v2)

enum {
#define X(name) F_##name,
    FUNCTIONS(X)
#undef X
    FUNCTION_COUNT
};
static const char *const function_names[] = {
#define X(name) #name,
    FUNCTIONS(X)
#undef X
};

/* A real H100 under load; the writer's defaults say the same, so that a bare "gpus 8" works, too. */
static const long long default_values[KEY_COUNT] = {
    [K_util] = 100, [K_mem_util] = 11, [K_stall] = -1,
    [K_mem_total] = 85520809984LL, [K_mem_reserved] = 502267904LL, [K_mem_used] = 75000000000LL,
    [K_bar1_total] = 137438953472LL, [K_bar1_used] = 25165824LL,
    [K_power_mw] = 631950, [K_power_avg_mw] = 630120,
    [K_power_min_mw] = 200000, [K_power_max_mw] = 700000, [K_power_default_mw] = 700000, [K_power_limit_mw] = 700000,
    [K_temp] = 59, [K_mem_temp] = 54, [K_margin] = 28,
    [K_shutdown] = 92, [K_slowdown] = 89, [K_mem_max] = 95, [K_gpu_max] = 87,
    [K_clock_graphics] = 1980, [K_clock_sm] = 1980, [K_clock_mem] = 2619, [K_clock_video] = 1545,
    [K_max_graphics] = 1980, [K_max_sm] = 1980, [K_max_mem] = 2619, [K_max_video] = 1545,
    [K_reasons_offered] = 0x7FF,
    [K_pcie_tx] = 123456789, [K_pcie_rx] = 987654321,
    [K_pcie_gen] = 5, [K_pcie_gen_max] = 5, [K_pcie_width] = 16, [K_pcie_width_max] = 16,
    [K_nvlinks] = 18, [K_nvlinks_up] = 18, [K_nvlink_hole] = -1, [K_nvlink_tx_kib] = 1000000, [K_nvlink_rx_kib] = 2000000,
    [K_sm] = 83, [K_occupancy] = 41, [K_tensor] = 37, [K_dram] = 52, [K_gpm] = 1,
    [K_retired_sbe] = -1, [K_retired_dbe] = -1, /* before Ampere only */
    [K_cc_major] = 9, [K_events] = 0x1 | 0x2 | 0x8 | 0x10,
};

typedef struct { int code; unsigned delay; int hang; } Behaviour;
typedef struct { unsigned gi, ci; u64 total, used; long long gpm[4]; char uuid[64], profile[48]; int present; } Mig;
typedef struct { unsigned id; int code, type, scoped; unsigned scope; Value value; } Override;
typedef struct { unsigned type; u64 timestamp; unsigned value; } Scripted;
typedef struct { long long sequence; int gpu; u64 code; } Xid;
typedef struct {
    long long value[KEY_COUNT];
    char name[96], uuid[96], pci[32], serial[32], vbios[32];
    Process processes[MAX_PROCESSES];
    int process_count;
    Mig mig[MAX_MIG];
    Override overrides[MAX_OVERRIDES];
    int override_count;
    Scripted samples[MAX_SAMPLES];
    int sample_count;
} Gpu;
typedef struct {
    int gpus;
    long long generation;
    char driver_version[64], nvml_version[64];
    int cuda_version;
    Gpu gpu[MAX_GPUS];
    Xid xids[MAX_XIDS];
    int xid_count;
    Behaviour behaviour[FUNCTION_COUNT][MAX_GPUS + 1];
} State;

/* What a handle points to: a GPU, or one MIG device of it. */
typedef struct { unsigned magic; int gpu, mig; } Handle;
#define MAGIC 0x6e766d6cu
typedef struct { unsigned magic; int gpu, gpu_instance; u64 taken; } GpmSample;
typedef struct { u64 mask[MAX_GPUS]; long long last; } EventSet;

static State *state, *parsed;
static Handle handles[MAX_GPUS][MAX_MIG + 1];
static double energy[MAX_GPUS]; /* millijoules integrated since the last override */
static long long energy_base[MAX_GPUS];
static double energy_at;
static int initialized;
static long long opened_generation;
static unsigned long long calls[FUNCTION_COUNT], field_reads[MAX_FIELD_ID];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct timespec seen_mtime;
static ino_t seen_inode;
static off_t seen_size = -1;
static char seen_path[512];

static double monotonic(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static u64 realtime_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (u64)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int function_index(const char *name) {
    for (int i = 0; i < FUNCTION_COUNT; i++)
        if (!strcmp(function_names[i], name)) return i;
    return -1;
}

static int key_index(const char *name) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (!strcmp(key_names[i], name)) return i;
    return -1;
}

static void defaults(State *s) {
    memset(s, 0, sizeof *s);
    snprintf(s->driver_version, sizeof s->driver_version, "580.65.06");
    snprintf(s->nvml_version, sizeof s->nvml_version, "13.580.65.06");
    s->cuda_version = 13000;
    for (int g = 0; g < MAX_GPUS; g++) {
        Gpu *gpu = &s->gpu[g];
        memcpy(gpu->value, default_values, sizeof default_values);
        gpu->value[K_energy_mj] = -1; /* not overridden */
        snprintf(gpu->name, sizeof gpu->name, "NVIDIA H100 80GB HBM3");
        snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-%08x-0000-4000-8000-%012x", g, g);
        snprintf(gpu->pci, sizeof gpu->pci, "00000000:%02X:00.0", g + 1);
        snprintf(gpu->serial, sizeof gpu->serial, "165002200%04d", g);
        snprintf(gpu->vbios, sizeof gpu->vbios, "96.00.61.00.01");
    }
}

static void rest_of_line(char *to, size_t size, const char *from) {
    while (*from == ' ') from++;
    snprintf(to, size, "%s", from);
    to[strcspn(to, "\n")] = 0;
}

static void parse_gpu_value(Gpu *gpu, const char *key, const char *rest) {
    int k = key_index(key);
    if (k >= 0) gpu->value[k] = atoll(rest);
    else if (!strcmp(key, "name")) rest_of_line(gpu->name, sizeof gpu->name, rest);
    else if (!strcmp(key, "uuid")) rest_of_line(gpu->uuid, sizeof gpu->uuid, rest);
    else if (!strcmp(key, "pci")) rest_of_line(gpu->pci, sizeof gpu->pci, rest);
    else if (!strcmp(key, "serial")) rest_of_line(gpu->serial, sizeof gpu->serial, rest);
    else if (!strcmp(key, "vbios")) rest_of_line(gpu->vbios, sizeof gpu->vbios, rest);
    else fprintf(stderr, "fake_nvml: unknown key %s\n", key);
}

static void parse_line(State *s, char *line) {
    char word[32], second[96], who[16];
    int used = 0, from, to;
    if (sscanf(line, "%31s%n", word, &used) != 1 || word[0] == '#') return;
    char *rest = line + used;
    if (!strcmp(word, "gpus")) { s->gpus = atoi(rest); return; }
    if (!strcmp(word, "generation")) { s->generation = atoll(rest); return; }
    if (!strcmp(word, "set")) {
        if (sscanf(rest, "%95s%n", second, &used) != 1) return;
        if (!strcmp(second, "driver_version")) rest_of_line(s->driver_version, sizeof s->driver_version, rest + used);
        else if (!strcmp(second, "nvml_version")) rest_of_line(s->nvml_version, sizeof s->nvml_version, rest + used);
        else if (!strcmp(second, "cuda_version")) s->cuda_version = atoi(rest + used);
        return;
    }
    if (!strcmp(word, "xid")) {
        Xid *x = &s->xids[s->xid_count % MAX_XIDS];
        if (sscanf(rest, "%lld %d %llu", &x->sequence, &x->gpu, &x->code) == 3 && s->xid_count < MAX_XIDS) s->xid_count++;
        return;
    }
    if (!strcmp(word, "error") || !strcmp(word, "delay") || !strcmp(word, "hang")) {
        long long amount = 0;
        if (sscanf(rest, "%95s %15s %lld", second, who, &amount) < 2) return;
        int f = function_index(second);
        if (f < 0) { fprintf(stderr, "fake_nvml: unknown function %s\n", second); return; }
        from = !strcmp(who, "*") ? 0 : !strcmp(who, "-") ? NO_GPU : atoi(who);
        to = !strcmp(who, "*") ? MAX_GPUS : from;
        for (int g = from; g <= to && g <= MAX_GPUS; g++) {
            Behaviour *b = &s->behaviour[f][g];
            if (word[0] == 'e') b->code = (int)amount;
            else if (word[0] == 'd') b->delay = (unsigned)amount;
            else b->hang = 1;
        }
        return;
    }
    if (sscanf(rest, "%15s%n", who, &used) != 1) return;
    rest += used;
    from = !strcmp(who, "*") ? 0 : atoi(who);
    to = !strcmp(who, "*") ? MAX_GPUS - 1 : from;
    if (from < 0 || from >= MAX_GPUS) return;
    for (int g = from; g <= to; g++) {
        Gpu *gpu = &s->gpu[g];
        if (!strcmp(word, "gpu")) {
            if (sscanf(rest, "%95s%n", second, &used) == 1) parse_gpu_value(gpu, second, rest + used);
        } else if (!strcmp(word, "process") && gpu->process_count < MAX_PROCESSES) {
            Process *p = &gpu->processes[gpu->process_count];
            p->gpu_instance = p->compute_instance = 0xFFFFFFFFu;
            if (sscanf(rest, "%u %95s %u %u", &p->pid, second, &p->gpu_instance, &p->compute_instance) < 2) continue;
            p->used = second[0] == '-' ? ~0ULL : strtoull(second, NULL, 10);
            gpu->process_count++;
        } else if (!strcmp(word, "mig")) {
            int i = -1;
            Mig m = {.present = 1};
            if (sscanf(rest, "%d %u %u %63s %llu %llu %47s %lld %lld %lld %lld", &i, &m.gi, &m.ci, m.uuid, &m.total,
                       &m.used, m.profile, &m.gpm[0], &m.gpm[1], &m.gpm[2], &m.gpm[3]) == 11 && i >= 0 && i < MAX_MIG)
                gpu->mig[i] = m;
        } else if (!strcmp(word, "field") && gpu->override_count < MAX_OVERRIDES) {
            Override *o = &gpu->overrides[gpu->override_count];
            int parts = sscanf(rest, "%u %d %d %95s %u", &o->id, &o->code, &o->type, second, &o->scope);
            if (parts < 4) continue;
            o->scoped = parts == 5;
            switch (o->type) {
            case TYPE_DOUBLE: o->value.d = atof(second); break;
            case TYPE_UINT: memset(&o->value, 0xAB, sizeof o->value); o->value.ui = strtoul(second, NULL, 10); break;
            case TYPE_INT: memset(&o->value, 0xAB, sizeof o->value); o->value.si = atoi(second); break;
            case TYPE_USHORT: memset(&o->value, 0xAB, sizeof o->value); o->value.us = atoi(second); break;
            case TYPE_I64: o->value.sll = atoll(second); break;
            default: o->value.ull = strtoull(second, NULL, 10);
            }
            gpu->override_count++;
        } else if (!strcmp(word, "sample") && gpu->sample_count < MAX_SAMPLES) {
            Scripted *e = &gpu->samples[gpu->sample_count];
            if (sscanf(rest, "%u %llu %u", &e->type, &e->timestamp, &e->value) == 3) gpu->sample_count++;
        }
    }
}

/* Carries the energy counters on, with the power that was in force until now. */
static void integrate(void) {
    double now = monotonic();
    if (energy_at && state)
        for (int g = 0; g < MAX_GPUS; g++) energy[g] += state->gpu[g].value[K_power_mw] * (now - energy_at);
    energy_at = now;
}

/* Parses the state file again when it changed. The caller holds the lock. */
static void refresh(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat st;
    if (!state) {
        state = malloc(sizeof *state);
        parsed = malloc(sizeof *parsed);
        defaults(state);
        for (int g = 0; g < MAX_GPUS; g++) {
            energy_base[g] = 1000000000LL * (g + 1);
            for (int m = 0; m <= MAX_MIG; m++) handles[g][m] = (Handle){MAGIC, g, m - 1};
        }
        energy_at = monotonic();
    }
    if (!path || stat(path, &st)) return;
    if (st.st_ino == seen_inode && st.st_size == seen_size && st.st_mtim.tv_sec == seen_mtime.tv_sec &&
        st.st_mtim.tv_nsec == seen_mtime.tv_nsec && !strcmp(path, seen_path))
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    fstat(fileno(file), &st);
    integrate();
    defaults(parsed);
    char line[1024];
    while (fgets(line, sizeof line, file)) parse_line(parsed, line);
    fclose(file);
    for (int g = 0; g < MAX_GPUS; g++) {
        long long override = parsed->gpu[g].value[K_energy_mj];
        if (override >= 0 && override != state->gpu[g].value[K_energy_mj]) energy_base[g] = override, energy[g] = 0;
        else if (seen_size >= 0 && parsed->generation != state->generation) energy_base[g] = 0, energy[g] = 0; /* driver load: from zero */
    }
    State *old = state;
    state = parsed;
    parsed = old;
    seen_mtime = st.st_mtim;
    seen_inode = st.st_ino;
    seen_size = st.st_size;
    snprintf(seen_path, sizeof seen_path, "%s", path);
}

static void unlock(int *held) {
    if (*held) pthread_mutex_unlock(&lock);
}

/* Sleeps until the state file may have changed: waiting for events must cost as little here as in the driver. */
static void wait_for_change(double seconds) {
    char path[512], events[4096];
    struct pollfd fd = {.fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), .events = POLLIN};
    snprintf(path, sizeof path, "%s", getenv("FAKE_NVML_STATE") ? getenv("FAKE_NVML_STATE") : "/nowhere");
    if (fd.fd >= 0 && inotify_add_watch(fd.fd, dirname(path), IN_MOVED_TO | IN_CLOSE_WRITE) >= 0) {
        pthread_mutex_lock(&lock); /* what changed before the watch was set is seen here */
        struct timespec before = seen_mtime;
        refresh();
        int changed = before.tv_nsec != seen_mtime.tv_nsec || before.tv_sec != seen_mtime.tv_sec;
        pthread_mutex_unlock(&lock);
        if (!changed && poll(&fd, 1, (int)(seconds * 1000) + 1) > 0 && read(fd.fd, events, sizeof events) < 0) usleep(1000);
    } else
        usleep(20000);
    if (fd.fd >= 0) close(fd.fd);
}

/* Counts the call and acts out what the state file says about it. Returns with the lock held. */
static nvmlReturn_t enter(int function, int gpu, int needs_init) {
    pthread_mutex_lock(&lock);
    refresh();
    __atomic_add_fetch(&calls[function], 1, __ATOMIC_RELAXED);
    Behaviour b = state->behaviour[function][gpu];
    if (b.delay || b.hang) {
        pthread_mutex_unlock(&lock);
        if (b.delay) usleep(b.delay);
        while (b.hang) {
            usleep(50000);
            pthread_mutex_lock(&lock);
            refresh();
            b = state->behaviour[function][gpu];
            pthread_mutex_unlock(&lock);
        }
        pthread_mutex_lock(&lock);
        refresh();
    }
    if (needs_init && (!initialized || opened_generation != state->generation)) return UNINITIALIZED;
    return b.code;
}

#define ENTER_ANY(name, gpu_index, needs_init) \
    nvmlReturn_t code = enter(F_##name, gpu_index, needs_init); \
    int held __attribute__((cleanup(unlock))) = 1; \
    if (code) return code;
#define ENTER_SYSTEM(name) ENTER_ANY(name, NO_GPU, 1)

static Handle *handle_of(nvmlDevice_t device) {
    char *at = device, *first = (char *)handles;
    if (at < first || at >= first + sizeof handles || (size_t)(at - first) % sizeof(Handle)) return NULL;
    return device;
}

/* Opens a function of a GPU: `h`, `g` (index), `v` (its numbers) and `mig` (or NULL) are then at hand. */
#define ENTER(name) \
    Handle *h = handle_of(device); \
    if (!h) return INVALID_ARGUMENT; \
    int g = h->gpu; \
    ENTER_ANY(name, g, 1) \
    long long *v = state->gpu[g].value; \
    Mig *mig = h->mig >= 0 ? &state->gpu[g].mig[h->mig] : NULL; \
    (void)v, (void)mig;

#define COPY_STRING(text) \
    do { \
        if (!buffer || length <= strlen(text)) return INSUFFICIENT_SIZE; \
        strcpy(buffer, text); \
        return OK; \
    } while (0)

/* --- For tests ------------------------------------------------------------------------------------------------- */

unsigned long long fake_nvml_calls(const char *name) {
    int f = function_index(name);
    return f < 0 ? 0 : calls[f];
}

unsigned long long fake_nvml_field_reads(unsigned id) { return id < MAX_FIELD_ID ? field_reads[id] : 0; }

int fake_nvml_refcount(void) { return initialized; }

/* --- Life cycle and system ------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    ENTER_ANY(nvmlInitWithFlags, NO_GPU, 0)
    if (opened_generation != state->generation) initialized = 0;
    opened_generation = state->generation;
    initialized++;
    return OK;
}
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    ENTER_ANY(nvmlShutdown, NO_GPU, 0)
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return OK;
}

const char *nvmlErrorString(nvmlReturn_t code) {
    static __thread char text[40];
    snprintf(text, sizeof text, "fake NVML error %d", code);
    return text;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *buffer, unsigned length) {
    ENTER_SYSTEM(nvmlSystemGetDriverVersion)
    COPY_STRING(state->driver_version);
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *buffer, unsigned length) {
    ENTER_ANY(nvmlSystemGetNVMLVersion, NO_GPU, 0)
    COPY_STRING(state->nvml_version);
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    ENTER_SYSTEM(nvmlSystemGetCudaDriverVersion)
    *version = state->cuda_version;
    return OK;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    ENTER_SYSTEM(nvmlSystemGetCudaDriverVersion_v2)
    *version = state->cuda_version;
    return OK;
}

/* --- Handles and identity -------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER_SYSTEM(nvmlDeviceGetCount_v2)
    *count = state->gpus;
    return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    ENTER_ANY(nvmlDeviceGetHandleByIndex_v2, index < MAX_GPUS ? (int)index : NO_GPU, 1)
    if ((int)index >= state->gpus) return INVALID_ARGUMENT;
    *device = &handles[index][0];
    return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleByUUID)
    for (int g = 0; g < state->gpus; g++) {
        if (!strcmp(state->gpu[g].uuid, uuid)) { *device = &handles[g][0]; return OK; }
        for (int m = 0; m < MAX_MIG; m++)
            if (state->gpu[g].mig[m].present && !strcmp(state->gpu[g].mig[m].uuid, uuid)) {
                *device = &handles[g][m + 1];
                return OK;
            }
    }
    return NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleByPciBusId_v2)
    for (int g = 0; g < state->gpus; g++)
        if (!strcasecmp(state->gpu[g].pci, bus_id)) { *device = &handles[g][0]; return OK; }
    return NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    ENTER(nvmlDeviceGetIndex)
    *index = mig ? h->mig : g;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor) {
    ENTER(nvmlDeviceGetMinorNumber)
    *minor = g;
    return OK;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *buffer, unsigned length) {
    ENTER(nvmlDeviceGetName)
    char text[160];
    if (mig) snprintf(text, sizeof text, "%s MIG %s", state->gpu[g].name, mig->profile);
    else snprintf(text, sizeof text, "%s", state->gpu[g].name);
    COPY_STRING(text);
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *buffer, unsigned length) {
    ENTER(nvmlDeviceGetUUID)
    COPY_STRING(mig ? mig->uuid : state->gpu[g].uuid);
}
nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *buffer, unsigned length) {
    ENTER(nvmlDeviceGetSerial)
    COPY_STRING(state->gpu[g].serial);
}
nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *buffer, unsigned length) {
    ENTER(nvmlDeviceGetVbiosVersion)
    COPY_STRING(state->gpu[g].vbios);
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, PciInfo *info) {
    ENTER(nvmlDeviceGetPciInfo_v3)
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "%s", state->gpu[g].pci);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%.15s", state->gpu[g].pci + 4);
    info->bus = g + 1;
    info->pci_device = 0x233010DE;
    return OK;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    ENTER(nvmlDeviceGetCudaComputeCapability)
    *major = v[K_cc_major];
    *minor = v[K_cc_minor];
    return OK;
}

/* --- Values ---------------------------------------------------------------------------------------------------- */

#define NUMBER(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned *out) { \
        ENTER(function) \
        *out = (unsigned)v[K_##key]; \
        return OK; \
    }
#define CONSTANT(function, number) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned *out) { \
        ENTER(function) \
        *out = number; \
        return OK; \
    }
NUMBER(nvmlDeviceGetPowerUsage, power_mw)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, power_limit_mw)
NUMBER(nvmlDeviceGetPowerManagementLimit, power_limit_mw)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, power_default_mw)
NUMBER(nvmlDeviceGetPerformanceState, pstate)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, pcie_gen)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, pcie_gen_max)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, pcie_width)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, pcie_width_max)
NUMBER(nvmlDeviceGetPcieReplayCounter, pcie_replay)
CONSTANT(nvmlDeviceGetPersistenceMode, 1)
CONSTANT(nvmlDeviceGetComputeMode, 0)
CONSTANT(nvmlDeviceGetDisplayMode, 0)
CONSTANT(nvmlDeviceGetDisplayActive, 0)

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, Utilization *out) {
    ENTER(nvmlDeviceGetUtilizationRates)
    if (mig || v[K_mig]) return NOT_SUPPORTED;
    *out = (Utilization){v[K_util], v[K_mem_util]};
    return OK;
}
nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned *out, unsigned *period) {
    ENTER(nvmlDeviceGetEncoderUtilization)
    if (v[K_mig]) return NOT_SUPPORTED;
    *out = v[K_enc_util];
    *period = SAMPLE_STEP;
    return OK;
}
nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned *out, unsigned *period) {
    ENTER(nvmlDeviceGetDecoderUtilization)
    if (v[K_mig]) return NOT_SUPPORTED;
    *out = v[K_dec_util];
    *period = SAMPLE_STEP;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, Memory *out) {
    ENTER(nvmlDeviceGetMemoryInfo)
    if (mig) *out = (Memory){mig->total, mig->total - mig->used, mig->used};
    else /* version 1 counts what is reserved as used */
        *out = (Memory){v[K_mem_total], v[K_mem_total] - v[K_mem_used] - v[K_mem_reserved],
                        v[K_mem_used] + v[K_mem_reserved]};
    return OK;
}
nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, Bar1Memory *out) {
    ENTER(nvmlDeviceGetBAR1MemoryInfo)
    *out = (Bar1Memory){v[K_bar1_total], v[K_bar1_total] - v[K_bar1_used], v[K_bar1_used]};
    return OK;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *out) {
    ENTER(nvmlDeviceGetTemperature)
    *out = v[K_temp];
    return OK;
}
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned kind, unsigned *out) {
    ENTER(nvmlDeviceGetTemperatureThreshold)
    static const int keys[] = {K_shutdown, K_slowdown, K_mem_max, K_gpu_max};
    if (kind > 3) return NOT_SUPPORTED;
    *out = v[keys[kind]];
    return OK;
}
nvmlReturn_t nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned *out) {
    ENTER(nvmlDeviceGetNumFans)
    *out = v[K_fans];
    return OK;
}
nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned *out) {
    ENTER(nvmlDeviceGetFanSpeed)
    if (!v[K_fans]) return NOT_SUPPORTED;
    *out = v[K_fan];
    return OK;
}
nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, unsigned fan, unsigned *out) {
    ENTER(nvmlDeviceGetFanSpeed_v2)
    if (fan >= v[K_fans]) return INVALID_ARGUMENT;
    *out = v[K_fan];
    return OK;
}
static u64 energy_of(int g) {
    integrate();
    return energy_base[g] + (u64)energy[g];
}
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, u64 *out) {
    ENTER(nvmlDeviceGetTotalEnergyConsumption)
    *out = energy_of(g);
    return OK;
}
nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned *low, unsigned *high) {
    ENTER(nvmlDeviceGetPowerManagementLimitConstraints)
    *low = v[K_power_min_mw];
    *high = v[K_power_max_mw];
    return OK;
}
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned kind, unsigned *out) {
    ENTER(nvmlDeviceGetClockInfo)
    if (kind > 3) return INVALID_ARGUMENT;
    *out = v[K_clock_graphics + kind];
    return OK;
}
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned kind, unsigned *out) {
    ENTER(nvmlDeviceGetMaxClockInfo)
    if (kind > 3) return INVALID_ARGUMENT;
    *out = v[K_max_graphics + kind];
    return OK;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, u64 *out) {
    ENTER(nvmlDeviceGetCurrentClocksThrottleReasons)
    *out = v[K_reasons];
    return OK;
}
nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, unsigned policy, ViolationTime *out) {
    ENTER(nvmlDeviceGetViolationStatus)
    *out = (ViolationTime){realtime_us(), 0};
    return OK;
}

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, unsigned type, u64 last, unsigned *value_type, unsigned *count,
                                  Sample *samples) {
    ENTER(nvmlDeviceGetSamples)
    Gpu *gpu = &state->gpu[g];
    Sample ready[MAX_SAMPLES];
    unsigned n = 0, scripted = 0;
    if (type > 2) return NOT_SUPPORTED;
    if (v[K_mig] && type) return NOT_SUPPORTED;
    for (int i = 0; i < gpu->sample_count; i++)
        if (gpu->samples[i].type == type) {
            scripted = 1;
            if (gpu->samples[i].timestamp > last) {
                ready[n].timestamp = gpu->samples[i].timestamp;
                ready[n++].value = (Value){.ui = gpu->samples[i].value};
            }
        }
    if (!scripted) {
        u64 newest = realtime_us() / SAMPLE_STEP, first = newest - BUFFER_SAMPLES + 1;
        if (last >= first * SAMPLE_STEP) first = last / SAMPLE_STEP + 1;
        for (u64 step = first; step <= newest; step++) {
            ready[n].timestamp = step * SAMPLE_STEP;
            ready[n].value.ull = 0;
            ready[n++].value.ui = type == 0 ? v[K_power_mw] : type == 1 ? v[K_util] : v[K_mem_util];
        }
    }
    *value_type = TYPE_UINT;
    if (!n) return NOT_FOUND;
    if (!samples) { *count = n; return OK; }
    if (!*count) return INVALID_ARGUMENT;
    if (n < *count) *count = n;
    memcpy(samples, ready, *count * sizeof *samples);
    return OK;
}

typedef struct { unsigned id; int type, key; } Field;
static const Field fields[] = {
    {3, TYPE_U64, K_ecc_corr}, {4, TYPE_U64, K_ecc_uncorr}, {5, TYPE_U64, K_ecc_corr_agg}, {6, TYPE_U64, K_ecc_uncorr_agg},
    {29, TYPE_UINT, K_retired_sbe}, {30, TYPE_UINT, K_retired_dbe},
    {74, TYPE_U64, K_ns_power}, {75, TYPE_U64, K_ns_sw_thermal}, {76, TYPE_U64, K_ns_sync}, {77, TYPE_U64, K_ns_board},
    {78, TYPE_U64, K_ns_low}, {79, TYPE_U64, K_ns_reliability}, {82, TYPE_UINT, K_mem_temp},
    {91, TYPE_UINT, K_nvlinks}, {94, TYPE_UINT, K_pcie_replay},
    {142, TYPE_UINT, K_remap_corr}, {143, TYPE_UINT, K_remap_uncorr}, {144, TYPE_UINT, K_remap_pending},
    {145, TYPE_UINT, K_remap_failure}, {173, TYPE_UINT, K_pcie_corr},
    {185, TYPE_UINT, K_power_avg_mw}, {186, TYPE_UINT, K_power_mw}, {187, TYPE_UINT, K_power_min_mw},
    {188, TYPE_UINT, K_power_max_mw}, {189, TYPE_UINT, K_power_default_mw}, {190, TYPE_UINT, K_power_limit_mw},
    {192, TYPE_UINT, K_power_limit_mw}, {197, TYPE_UINT, K_pcie_tx}, {198, TYPE_UINT, K_pcie_rx},
    {230, TYPE_UINT, K_recovery}, {297, TYPE_UINT, K_stall},
    {269, TYPE_U64, K_ns_sw_thermal}, {270, TYPE_U64, K_ns_hw_thermal}, {271, TYPE_U64, K_ns_brake},
};
static const Field link_fields[] = { /* one link, or the sum of all with ANY_LINK */
    {138, TYPE_U64, K_nvlink_tx_kib}, {139, TYPE_U64, K_nvlink_rx_kib},
    {161, TYPE_U64, K_nvlink_replay}, {162, TYPE_U64, K_nvlink_recovery}, {163, TYPE_U64, K_nvlink_crc},
};

static void put(FieldValue *f, int type, long long number) {
    f->code = OK;
    f->type = type;
    memset(&f->value, 0xAB, sizeof f->value); /* the rest of the union is undefined, as in the driver */
    switch (type) {
    case TYPE_DOUBLE: f->value.d = number; break;
    case TYPE_UINT: f->value.ui = number; break;
    case TYPE_INT: f->value.si = number; break;
    case TYPE_USHORT: f->value.us = number; break;
    default: f->value.ull = number;
    }
}

static void answer(int g, FieldValue *f) {
    Gpu *gpu = &state->gpu[g];
    long long *v = gpu->value;
    if (f->field < MAX_FIELD_ID) field_reads[f->field]++;
    f->timestamp = realtime_us();
    f->latency = 3;
    for (int i = gpu->override_count - 1; i >= 0; i--)
        if (gpu->overrides[i].id == f->field && (!gpu->overrides[i].scoped || gpu->overrides[i].scope == f->scope)) {
            if (gpu->overrides[i].code < 0) return; /* left alone, as ECC fields are while ECC is off */
            f->code = gpu->overrides[i].code;
            f->type = gpu->overrides[i].type;
            f->value = gpu->overrides[i].value;
            return;
        }
#ifdef OLD_DRIVER
    if (f->field >= 170) { f->code = INVALID_ARGUMENT; return; } /* ids that this driver never heard of */
#endif
    f->code = NOT_SUPPORTED;
    if (f->field == 83 || f->field == 191) { put(f, TYPE_U64, energy_of(g)); return; }
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].id == f->field) {
            if (v[fields[i].key] >= 0) put(f, fields[i].type, v[fields[i].key]);
            return;
        }
    for (size_t i = 0; i < sizeof link_fields / sizeof *link_fields && v[K_nvlinks]; i++)
        if (link_fields[i].id == f->field) {
            long long sum = v[link_fields[i].key];
            if (f->scope == ANY_LINK) {
                if (f->field <= 141) put(f, link_fields[i].type, sum);
            } else if (f->scope < v[K_nvlinks_up]) /* the remainder of the division goes to link 0 */
                put(f, link_fields[i].type, sum / v[K_nvlinks_up] + (f->scope ? 0 : sum % v[K_nvlinks_up]));
            return;
        }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, FieldValue *values) {
    ENTER(nvmlDeviceGetFieldValues)
    for (int i = 0; i < count; i++) answer(g, &values[i]);
    return OK;
}

/* --- Health ---------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    ENTER(nvmlDeviceGetEccMode)
    *current = *pending = 1;
    return OK;
}
static u64 ecc(long long *v, unsigned severity, unsigned counter) {
    return v[K_ecc_corr + severity + 2 * counter];
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned severity, unsigned counter, u64 *out) {
    ENTER(nvmlDeviceGetTotalEccErrors)
    if (severity > 1 || counter > 1) return INVALID_ARGUMENT;
    *out = ecc(v, severity, counter);
    return OK;
}
nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned severity, unsigned counter, unsigned where,
                                             u64 *out) {
    ENTER(nvmlDeviceGetMemoryErrorCounter)
    if (severity > 1 || counter > 1) return INVALID_ARGUMENT;
    *out = where == 2 ? ecc(v, severity, counter) : 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *corr, unsigned *uncorr, unsigned *pending,
                                       unsigned *failure) {
    ENTER(nvmlDeviceGetRemappedRows)
    if (v[K_mig]) return NOT_SUPPORTED;
    *corr = v[K_remap_corr];
    *uncorr = v[K_remap_uncorr];
    *pending = v[K_remap_pending];
    *failure = v[K_remap_failure];
    return OK;
}
nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, unsigned direction, unsigned *out) {
    ENTER(nvmlDeviceGetPcieThroughput)
    *out = 12345;
    return OK;
}
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, unsigned *active) {
    ENTER(nvmlDeviceGetNvLinkState)
    if (!v[K_nvlinks]) return NOT_SUPPORTED;
    if (link >= v[K_nvlinks]) return INVALID_ARGUMENT;
    if (link == v[K_nvlink_hole]) return NOT_SUPPORTED;
    *active = link < v[K_nvlinks_up];
    return OK;
}

/* --- MIG and processes ----------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    ENTER(nvmlDeviceGetMigMode)
    *current = *pending = v[K_mig];
    return OK;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) {
    ENTER(nvmlDeviceGetMaxMigDeviceCount)
    *count = MAX_MIG - 1;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *out) {
    ENTER(nvmlDeviceGetMigDeviceHandleByIndex)
    if (!v[K_mig] || index >= MAX_MIG || !state->gpu[g].mig[index].present) return NOT_FOUND;
    *out = &handles[g][index + 1];
    return OK;
}
nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id) {
    ENTER(nvmlDeviceGetGpuInstanceId)
    if (!mig) return NOT_SUPPORTED;
    *id = mig->gi;
    return OK;
}
nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned *id) {
    ENTER(nvmlDeviceGetComputeInstanceId)
    if (!mig) return NOT_SUPPORTED;
    *id = mig->ci;
    return OK;
}
nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is) {
    ENTER(nvmlDeviceIsMigDeviceHandle)
    *is = mig != NULL;
    return OK;
}
nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *out) {
    ENTER(nvmlDeviceGetDeviceHandleFromMigDeviceHandle)
    *out = &handles[g][0];
    return OK;
}
nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, Attributes *out) {
    ENTER(nvmlDeviceGetAttributes_v2)
    if (!mig) return NOT_SUPPORTED;
    *out = (Attributes){.multiprocessors = 16, .gpu_slices = 1, .compute_slices = 1, .memory_mib = mig->total >> 20};
    return OK;
}

static nvmlReturn_t list_processes(Handle *h, unsigned *count, Process *out) {
    Gpu *gpu = &state->gpu[h->gpu];
    Process found[MAX_PROCESSES];
    unsigned n = 0;
    for (int i = 0; i < gpu->process_count; i++)
        if (h->mig < 0 || (gpu->processes[i].gpu_instance == gpu->mig[h->mig].gi &&
                           gpu->processes[i].compute_instance == gpu->mig[h->mig].ci))
            found[n++] = gpu->processes[i];
    if (!n) { *count = 0; return OK; }
    if (!out || *count < n) { *count = n; return INSUFFICIENT_SIZE; }
    memcpy(out, found, n * sizeof *found);
    *count = n;
    return OK;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned *count, Process *out) {
    ENTER(nvmlDeviceGetComputeRunningProcesses_v2)
    return list_processes(h, count, out);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned *count, Process *out) {
    ENTER(nvmlDeviceGetGraphicsRunningProcesses_v2)
    *count = 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, ProcessUtilization *out, unsigned *count, u64 last) {
    ENTER(nvmlDeviceGetProcessUtilization)
    Gpu *gpu = &state->gpu[g];
    if (v[K_mig]) return NOT_SUPPORTED;
    if (!gpu->process_count) { *count = 0; return NOT_FOUND; }
    if (!out || *count < (unsigned)gpu->process_count) { *count = gpu->process_count; return INSUFFICIENT_SIZE; }
    for (int i = 0; i < gpu->process_count; i++)
        out[i] = (ProcessUtilization){gpu->processes[i].pid, realtime_us(), v[K_util], v[K_mem_util], 0, 0};
    *count = gpu->process_count;
    return OK;
}

/* --- Events ---------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, u64 *types) {
    ENTER(nvmlDeviceGetSupportedEventTypes)
    *types = v[K_events];
    return OK;
}
nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    ENTER_SYSTEM(nvmlEventSetCreate)
    EventSet *s = calloc(1, sizeof *s);
    for (int i = 0; i < state->xid_count; i++) /* a new set does not see what was before it */
        if (state->xids[i].sequence > s->last) s->last = state->xids[i].sequence;
    *set = s;
    return OK;
}
nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    ENTER_SYSTEM(nvmlEventSetFree)
    free(set);
    return OK;
}
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, u64 types, nvmlEventSet_t set) {
    ENTER(nvmlDeviceRegisterEvents)
    if (types & ~(u64)v[K_events]) return NOT_SUPPORTED;
    ((EventSet *)set)->mask[g] |= types;
    return OK;
}
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, EventData *data, unsigned timeout_ms) {
    EventSet *s = set;
    double deadline = monotonic() + timeout_ms / 1e3;
    for (;;) {
        {
            ENTER_SYSTEM(nvmlEventSetWait_v2)
            Xid *next = NULL;
            for (int i = 0; i < state->xid_count; i++)
                if (state->xids[i].sequence > s->last && (!next || state->xids[i].sequence < next->sequence))
                    next = &state->xids[i];
            if (next) {
                s->last = next->sequence;
                if (s->mask[next->gpu] & 0x8) {
                    *data = (EventData){&handles[next->gpu][0], 0x8, next->code, 0xFFFFFFFFu, 0xFFFFFFFFu};
                    return OK;
                }
                continue;
            }
        }
        double left = deadline - monotonic();
        if (left <= 0) return TIMEOUT;
        wait_for_change(left);
    }
}

/* --- What an older driver lacks -------------------------------------------------------------------------------- */

#ifndef OLD_DRIVER
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, MemoryV2 *out) {
    ENTER(nvmlDeviceGetMemoryInfo_v2)
    if (out->version != STRUCT_VERSION(MemoryV2, 2)) return ARGUMENT_VERSION_MISMATCH;
    if (mig) {
        out->total = mig->total, out->reserved = 0, out->used = mig->used, out->free = mig->total - mig->used;
        return OK;
    }
    out->total = v[K_mem_total];
    out->reserved = v[K_mem_reserved];
    out->used = v[K_mem_used];
    out->free = v[K_mem_total] - v[K_mem_used] - v[K_mem_reserved];
    return OK;
}
nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, TemperatureV1 *out) {
    ENTER(nvmlDeviceGetTemperatureV)
    if (out->version != STRUCT_VERSION(TemperatureV1, 1)) return ARGUMENT_VERSION_MISMATCH;
    out->celsius = v[K_temp];
    return OK;
}
nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, MarginTemperature *out) {
    ENTER(nvmlDeviceGetMarginTemperature)
    if (out->version != STRUCT_VERSION(MarginTemperature, 1)) return ARGUMENT_VERSION_MISMATCH;
    out->celsius = v[K_margin];
    return OK;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, u64 *out) {
    ENTER(nvmlDeviceGetCurrentClocksEventReasons)
    *out = v[K_reasons];
    return OK;
}
nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device, u64 *out) {
    ENTER(nvmlDeviceGetSupportedClocksEventReasons)
    *out = v[K_reasons_offered];
    return OK;
}
#ifdef WIDE_PROCESSES /* drivers 535.43 to 535.86: 8 bytes more per entry under the same name */
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, WideProcess *out) {
    ENTER(nvmlDeviceGetComputeRunningProcesses_v3)
    Process found[MAX_PROCESSES];
    unsigned room = *count, n = MAX_PROCESSES;
    list_processes(h, &n, found);
    *count = n;
    if (n && (!out || room < n)) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < n; i++)
        out[i] = (WideProcess){found[i].pid, found[i].used, found[i].gpu_instance, found[i].compute_instance, 0};
    return OK;
}
#else
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, Process *out) {
    ENTER(nvmlDeviceGetComputeRunningProcesses_v3)
    return list_processes(h, count, out);
}
nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, void *out) { return NOT_SUPPORTED; }
#endif
nvmlReturn_t nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device, void *out) { return NOT_SUPPORTED; }
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count, Process *out) {
    ENTER(nvmlDeviceGetGraphicsRunningProcesses_v3)
    *count = 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count, Process *out) {
    ENTER(nvmlDeviceGetMPSComputeRunningProcesses_v3)
    *count = 0;
    return OK;
}
nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, GpmSupport *out) {
    ENTER(nvmlGpmQueryDeviceSupport)
    if (out->version != 1) return ARGUMENT_VERSION_MISMATCH;
    out->supported = v[K_gpm];
    return OK;
}
nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample) {
    ENTER_SYSTEM(nvmlGpmSampleAlloc)
    GpmSample *s = calloc(1, sizeof *s);
    s->magic = MAGIC;
    s->gpu = -1;
    *sample = s;
    return OK;
}
nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    ENTER_ANY(nvmlGpmSampleFree, NO_GPU, 0)
    GpmSample *s = sample;
    if (s->magic != MAGIC) return INVALID_ARGUMENT;
    s->magic = 0;
    free(s);
    return OK;
}
nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    ENTER(nvmlGpmSampleGet)
    if (!v[K_gpm] || v[K_mig]) return NOT_SUPPORTED;
    *(GpmSample *)sample = (GpmSample){MAGIC, g, -1, realtime_us()};
    return OK;
}
nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned gpu_instance, nvmlGpmSample_t sample) {
    ENTER(nvmlGpmMigSampleGet)
    if (!v[K_gpm] || !v[K_mig]) return NOT_SUPPORTED;
    for (int m = 0; m < MAX_MIG; m++)
        if (state->gpu[g].mig[m].present && state->gpu[g].mig[m].gi == gpu_instance) {
            *(GpmSample *)sample = (GpmSample){MAGIC, g, (int)gpu_instance, realtime_us()};
            return OK;
        }
    return INVALID_ARGUMENT;
}
nvmlReturn_t nvmlGpmMetricsGet(GpmMetrics *get) {
    GpmSample *a = get->first, *b = get->second;
    ENTER_ANY(nvmlGpmMetricsGet, b && b->gpu >= 0 ? b->gpu : NO_GPU, 1)
    if (get->version != 1) return ARGUMENT_VERSION_MISMATCH;
    if (!a || !b || a->magic != MAGIC || b->magic != MAGIC || a->gpu < 0 || a->gpu != b->gpu) return INVALID_ARGUMENT;
    if (b->taken <= a->taken) return INVALID_ARGUMENT; /* order, and never one sample twice */
    Gpu *gpu = &state->gpu[b->gpu];
    long long own[4] = {gpu->value[K_sm], gpu->value[K_occupancy], gpu->value[K_tensor], gpu->value[K_dram]};
    for (int m = 0; m < MAX_MIG; m++)
        if (b->gpu_instance >= 0 && gpu->mig[m].present && (int)gpu->mig[m].gi == b->gpu_instance)
            memcpy(own, gpu->mig[m].gpm, sizeof own);
    for (unsigned i = 0; i < get->count; i++) {
        GpmMetric *m = &get->metrics[i];
        int at = m->id == 2 ? 0 : m->id == 3 ? 1 : m->id == 5 ? 2 : m->id == 10 ? 3 : -1;
        m->code = at < 0 || own[at] < 0 ? NOT_SUPPORTED : OK;
        m->value = at < 0 ? 0 : own[at] > 100 ? __builtin_nan("") : own[at]; /* NaN: nothing was counted */
    }
    return OK;
}
#endif
