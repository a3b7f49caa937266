/* The kernels of scan.cu as plain functions on a CPU, one thread after the other. */
#define __global__ static
#define __device__
static struct { long long x; } blockIdx, blockDim = {1}, threadIdx;
#include "scan.cu"
#define ON_CPU(name, kind) \
    void run_##name(struct kind p, long long threads) { \
        for (blockIdx.x = 0; blockIdx.x < threads; blockIdx.x++) name(p); \
    }
ON_CPU(foreground, Foreground)
ON_CPU(gather, Gather)
ON_CPU(check, Check)
ON_CPU(blend, Blend)
ON_CPU(decide, Decide)
ON_CPU(count, Count)
