/* A scan on a GPU: raw intensities to tiles, logits of tiles to labels and how many voxels are how sure.

   The arithmetic is that of preprocess.py, tiles.py and labels.py, operation for operation in float32, so it must
   be compiled without fused multiply-add. The file is plain C besides: the tests also run it on a CPU. One thread
   is one value of the result; nothing is added up across threads, so no order of theirs shows in a result. */

#ifdef __cplusplus
extern "C" {
#endif

typedef long long Index;

/* How one axis is interpolated: result n lies between samples below[n] and above[n], at a weight. */
struct Axis {
    const int *below, *above;
    const float *weight;
    Index size;
};

/* Where a box of voxels lies in an array of other order and direction of axes. */
struct Box {
    Index origin, strides[3], shape[3];
};

struct Foreground {
    const float *scan;      /* raw, in whatever order of axes it has in memory */
    Index volume, channels; /* from a voxel to the same one of the next channel */
    struct Box box;
    const float *background;       /* C */
    const unsigned char *constant; /* C: whether the channel has a background at all */
    unsigned char *brain;          /* (i, j, k) of the box */
};

struct Gather {
    const float *scan;
    Index volume, channels;
    struct Box box;
    const unsigned char *brain;
    const float *mean, *scale; /* C; none where intensities are left as they are */
    struct Axis axes[3];
    const int *starts; /* (N, 3): the first voxel of each tile, of those that are gathered now */
    Index tiles, tile[3];
    float *out; /* (N, C, i, j, k) */
};

struct Check {
    const float *values;
    Index count;
    int *bad; /* set to 1 by a value that is not finite */
};

struct Blend {
    const float *logits;     /* (N, R, i, j, k) of N tiles, the first of which is number `first` of all */
    Index first, tiles;
    const int *starts[3];    /* per axis: the first voxel of each tile */
    const float *weights[3]; /* per axis: (tiles, voxels of a tile) */
    Index counts[3], tile[3], grid[3], channels;
    float *out; /* (R, i, j, k) of the grid: holds the sum over the tiles before the first */
};

/* Logits of the grid, and how they are brought back to the voxels of the brain's box. */
struct Restored {
    const float *logits; /* (R, i, j, k) of the grid */
    Index grid[3], channels;
    struct Axis axes[3];
};

struct Decide {
    struct Restored from;
    const float *threshold;     /* R: the logit from which a region's voxels are its own */
    const unsigned char *label; /* R */
    struct Box box;
    unsigned char *labels; /* the scan's own grid, zero outside the box */
};

struct Count {
    struct Restored from;
    const unsigned char *within; /* (R, R): whether the second region is a part of the first */
    const float *levels;         /* (R, L) */
    Index depth;                 /* of a region's levels, L */
    int *out;                    /* (R, L, j, k): voxels along i that reach a level */
};

static __device__ float between(float lower, float upper, float weight) {
    float step = upper - lower;
    step = step * weight;
    return step + lower;
}

static __device__ Index inside(const struct Box *box, Index i, Index j, Index k) {
    return box->origin + i * box->strides[0] + j * box->strides[1] + k * box->strides[2];
}

static __device__ float normal(const struct Gather *p, Index c, Index i, Index j, Index k) {
    float value = p->scan[c * p->volume + inside(&p->box, i, j, k)];
    if (!p->mean)
        return value;
    if (!p->brain[(i * p->box.shape[1] + j) * p->box.shape[2] + k])
        return 0.0f;
    value = value - p->mean[c];
    return value * p->scale[c];
}

/* Whether any channel of a voxel differs from that channel's background. */
__global__ void foreground(struct Foreground p) {
    Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    Index width = p.box.shape[2], height = p.box.shape[1];
    if (at >= p.box.shape[0] * height * width)
        return;
    Index from = inside(&p.box, at / (height * width), at / width % height, at % width);
    unsigned char differs = 0;
    for (Index c = 0; c < p.channels; c++)
        if (!p.constant[c] || p.scan[c * p.volume + from] != p.background[c])
            differs = 1;
    p.brain[at] = differs;
}

/* Tiles of the network's grid: normalised, interpolated axis after axis, 0 beyond the grid. */
__global__ void gather(struct Gather p) {
    Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    Index voxels = p.tile[0] * p.tile[1] * p.tile[2];
    if (at >= p.tiles * p.channels * voxels)
        return;
    Index n = at / voxels / p.channels, c = at / voxels % p.channels, voxel = at % voxels;
    Index i = p.starts[3 * n] + voxel / (p.tile[1] * p.tile[2]);
    Index j = p.starts[3 * n + 1] + voxel / p.tile[2] % p.tile[1];
    Index k = p.starts[3 * n + 2] + voxel % p.tile[2];
    if (i >= p.axes[0].size || j >= p.axes[1].size || k >= p.axes[2].size) {
        p.out[at] = 0.0f;
        return;
    }
    Index i0 = p.axes[0].below[i], i1 = p.axes[0].above[i];
    float plane[2];
    for (int z = 0; z < 2; z++) {
        Index from_k = z ? p.axes[2].above[k] : p.axes[2].below[k];
        float line[2];
        for (int y = 0; y < 2; y++) {
            Index from_j = y ? p.axes[1].above[j] : p.axes[1].below[j];
            float lower = normal(&p, c, i0, from_j, from_k), upper = normal(&p, c, i1, from_j, from_k);
            line[y] = between(lower, upper, p.axes[0].weight[i]);
        }
        plane[z] = between(line[0], line[1], p.axes[1].weight[j]);
    }
    p.out[at] = between(plane[0], plane[1], p.axes[2].weight[k]);
}

/* Whether any value is NaN or infinite. */
__global__ void check(struct Check p) {
    Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= p.count)
        return;
    if (p.values[at] - p.values[at] != 0.0f)
        *p.bad = 1;
}

/* Logits of the grid: those of the tiles around a voxel, weighted, in the order of the tiles, some at a time. */
__global__ void blend(struct Blend p) {
    Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    Index voxels = p.grid[0] * p.grid[1] * p.grid[2];
    if (at >= p.channels * voxels)
        return;
    Index r = at / voxels, voxel = at % voxels;
    Index i = voxel / (p.grid[1] * p.grid[2]), j = voxel / p.grid[2] % p.grid[1], k = voxel % p.grid[2];
    float sum = p.first ? p.out[at] : 0.0f;
    for (Index a = 0; a < p.counts[0]; a++) {
        Index x = i - p.starts[0][a];
        if (x < 0 || x >= p.tile[0])
            continue;
        for (Index b = 0; b < p.counts[1]; b++) {
            Index y = j - p.starts[1][b];
            if (y < 0 || y >= p.tile[1])
                continue;
            for (Index c = 0; c < p.counts[2]; c++) {
                Index z = k - p.starts[2][c];
                if (z < 0 || z >= p.tile[2])
                    continue;
                Index n = (a * p.counts[1] + b) * p.counts[2] + c - p.first;
                if (n < 0 || n >= p.tiles)
                    continue;
                float part = p.logits[(((n * p.channels + r) * p.tile[0] + x) * p.tile[1] + y) * p.tile[2] + z];
                part = part * p.weights[0][a * p.tile[0] + x];
                part = part * p.weights[1][b * p.tile[1] + y];
                part = part * p.weights[2][c * p.tile[2] + z];
                sum = sum + part;
            }
        }
    }
    p.out[at] = sum;
}

static __device__ float restored(const struct Restored *p, Index r, Index i, Index j, Index k) {
    const float *from = p->logits + r * p->grid[0] * p->grid[1] * p->grid[2];
    Index i0 = p->axes[0].below[i], i1 = p->axes[0].above[i];
    float plane[2];
    for (int z = 0; z < 2; z++) {
        Index from_k = z ? p->axes[2].above[k] : p->axes[2].below[k];
        float line[2];
        for (int y = 0; y < 2; y++) {
            Index from_j = y ? p->axes[1].above[j] : p->axes[1].below[j];
            float lower = from[(i0 * p->grid[1] + from_j) * p->grid[2] + from_k];
            float upper = from[(i1 * p->grid[1] + from_j) * p->grid[2] + from_k];
            line[y] = between(lower, upper, p->axes[0].weight[i]);
        }
        plane[z] = between(line[0], line[1], p->axes[1].weight[j]);
    }
    return between(plane[0], plane[1], p->axes[2].weight[k]);
}

/* Labels of the scan's own voxels: logits interpolated axis after axis, then decided, inner regions last. */
__global__ void decide(struct Decide p) {
    Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    Index width = p.box.shape[2], height = p.box.shape[1];
    if (at >= p.box.shape[0] * height * width)
        return;
    Index i = at / (height * width), j = at / width % height, k = at % width;
    unsigned char label = 0;
    for (Index r = 0; r < p.from.channels; r++)
        if (restored(&p.from, r, i, j, k) >= p.threshold[r])
            label = p.label[r];
    p.labels[inside(&p.box, i, j, k)] = label;
}

/* How many voxels of a line reach a level of a region, by its logit or that of a region within it. */
__global__ void count(struct Count p) {
    Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    Index width = p.from.axes[2].size, height = p.from.axes[1].size;
    if (at >= p.from.channels * p.depth * height * width)
        return;
    Index r = at / (height * width) / p.depth, j = at / width % height, k = at % width;
    float level = p.levels[at / (height * width)];
    int reached = 0;
    for (Index i = 0; i < p.from.axes[0].size; i++) {
        unsigned char reaches = 0;
        for (Index n = 0; n < p.from.channels; n++)
            if ((n == r || p.within[r * p.from.channels + n]) && restored(&p.from, n, i, j, k) >= level)
                reaches = 1;
        reached += reaches;
    }
    p.out[at] = reached;
}

#ifdef __cplusplus
}
#endif
