/* A port of position ids and embeddings in C.

   port INPUT MODEL OUTPUT

   Each argument is the beginning of two files: INPUT.txt lists the tensors of INPUT.bin, a line each,
       name dtype shape offset bytes
   with the shape's lengths joined by commas, "-" for a single number. The answers go to OUTPUT.txt and OUTPUT.bin.
   Build: gcc -std=c11 -O2 -ffp-contract=off port.c -lm -o port */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reading a pack */

typedef struct { char name[200]; long shape[4]; int rank; void *data; } Tensor;
typedef struct { Tensor *items; int count; } File;

static FILE *opened(const char *stem, const char *ending, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s%s", stem, ending);
    FILE *file = fopen(path, mode);
    if (!file) { fprintf(stderr, "port: %s cannot be opened\n", path); exit(2); }
    return file;
}

static File read_file(const char *stem) {
    FILE *list = opened(stem, ".txt", "r"), *numbers = opened(stem, ".bin", "rb");
    File file = {NULL, 0};
    char line[1024], dtype[20], shape[200];
    while (fgets(line, sizeof line, list)) {
        Tensor t = {.rank = 0};
        long offset, bytes;
        if (line[0] == '#' || sscanf(line, "%199s %19s %199s %ld %ld", t.name, dtype, shape, &offset, &bytes) != 5) continue;
        if (shape[0] != '-')
            for (char *part = strtok(shape, ","); part && t.rank < 4; part = strtok(NULL, ",")) t.shape[t.rank++] = atol(part);
        t.data = malloc(bytes ? bytes : 1);
        if (fseek(numbers, offset, SEEK_SET) || fread(t.data, 1, bytes, numbers) != (size_t)bytes) exit(2);
        file.items = realloc(file.items, (file.count + 1) * sizeof *file.items);
        file.items[file.count++] = t;
    }
    fclose(list), fclose(numbers);
    return file;
}

static Tensor *find(File file, const char *name) {
    for (int i = 0; i < file.count; i++)
        if (!strcmp(file.items[i].name, name)) return &file.items[i];
    fprintf(stderr, "port: there is no tensor %s\n", name);
    exit(2);
}

/* Position ids */

/* torch.arange in float32, as x86-64 computes it: two vectors of 8 at a time, each counted on from its rounded first number. */
static long arange(double start, double end, double step, float *out) {
    long count = (long)ceil((end - start) / step), in_vectors = count / 16 * 16;
    for (long i = 0; i < count; i++) {
        long lane = i < in_vectors ? i % 8 : 0;
        out[i] = (float)((double)(float)(start + step * (i - lane)) + lane * step);
    }
    return count;
}

/* For each of n patches of an axis, its row of a table of `side` rows. */
static void bucket_coords(long n, long side, long *out) {
    float *edges = malloc((side + 1) * sizeof *edges), *coords = malloc((n + 1) * sizeof *coords);
    long count = arange(1.0 / side, 1.0, 1.0 / side, edges);
    arange(0.0, 1 - 1e-6, (double)(1.0f / (float)n), coords);
    for (long i = 0; i < n; i++) {
        out[i] = 0;
        while (out[i] < count && edges[out[i]] <= coords[i]) out[i]++;
    }
    free(edges), free(coords);
}

/* (h*w,): row by row. */
static void slice_ids(long h, long w, long side, int64_t *out) {
    long *rows = malloc(h * sizeof *rows), *columns = malloc(w * sizeof *columns);
    bucket_coords(h, side, rows), bucket_coords(w, side, columns);
    for (long i = 0; i < h * w; i++) out[i] = rows[i / w] * side + columns[i % w];
    free(rows), free(columns);
}

/* Embeddings */

int main(int argc, char **argv) {
    if (argc != 4) { fprintf(stderr, "use: port INPUT MODEL OUTPUT\n"); return 2; }
    File input = read_file(argv[1]), model = read_file(argv[2]);
    Tensor *sizes = find(input, "tgt_sizes"), *kernels = find(model, "vpm.embeddings.patch_embedding.weight");
    const int64_t *hw = sizes->data;
    const float *weight = kernels->data, *bias = find(model, "vpm.embeddings.patch_embedding.bias")->data;
    Tensor *positions = find(model, "vpm.embeddings.position_embedding.weight");
    const float *table = positions->data;
    long batch = sizes->shape[0], width = kernels->shape[0], channels = kernels->shape[1], side = kernels->shape[2];
    long grid = lround(sqrt((double)positions->shape[0])), most = 0;
    for (long b = 0; b < batch; b++) most = hw[2 * b] * hw[2 * b + 1] > most ? hw[2 * b] * hw[2 * b + 1] : most;
    int64_t *ids = calloc(batch * most, sizeof *ids); /* padding has id 0 */
    float *embeddings = malloc(batch * most * width * sizeof *embeddings);
    for (long b = 0; b < batch; b++) {
        char name[40];
        snprintf(name, sizeof name, "strips.%ld", b);
        long patches = hw[2 * b] * hw[2 * b + 1], row = patches * side;
        const float *strip = find(input, name)->data; /* (C, P, L*P) */
        slice_ids(hw[2 * b], hw[2 * b + 1], grid, ids + b * most);
        for (long l = 0; l < most; l++)
            for (long d = 0; d < width; d++) {
                double sum = bias[d]; /* where there is no patch its pixels are 0 */
                for (long k = 0; l < patches && k < channels * side * side; k++)
                    sum += (double)strip[k / side * row + l * side + k % side] * weight[d * channels * side * side + k];
                embeddings[(b * most + l) * width + d] = (float)(sum + table[ids[b * most + l] * width + d]);
            }
    }
    FILE *list = opened(argv[3], ".txt", "w"), *numbers = opened(argv[3], ".bin", "wb");
    long id_bytes = batch * most * 8, float_bytes = batch * most * width * 4;
    fprintf(list, "position_ids int64 %ld,%ld 0 %ld\n", batch, most, id_bytes);
    fprintf(list, "embeddings float32 %ld,%ld,%ld %ld %ld\n", batch, most, width, id_bytes, float_bytes);
    fwrite(ids, 1, id_bytes, numbers), fwrite(embeddings, 1, float_bytes, numbers);
    return fclose(list) || fclose(numbers) ? 2 : 0;
}
