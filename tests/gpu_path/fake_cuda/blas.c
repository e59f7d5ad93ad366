/* cuBLAS: products do nothing. Functions that only return a status are generated (see build.py).
 *
 * Its headers need those of packages that torch does not install, so handles are plain pointers here.
 */
#include <stdlib.h>
#include <string.h>

#include "device.h"

enum { DONE = 0, VERSION = 130100 };

EXPORTED int fake_blas_call(void) {
  count(LAUNCH);
  return DONE;
}

static int make(void **object) {
  *object = calloc(1, 256);
  return DONE;
}

static int destroy(void *object) {
  free(object);
  return DONE;
}

EXPORTED int cublasCreate_v2(void **handle) { return make(handle); }
EXPORTED int cublasDestroy_v2(void *handle) { return destroy(handle); }
EXPORTED int cublasGetMathMode(void *handle, int *mode) { return *mode = DONE; }
EXPORTED int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = DONE; }
EXPORTED size_t cublasLtGetVersion(void) { return VERSION; }
EXPORTED int cublasLtMatmulDescCreate(void **made, int compute, int scale) { return make(made); }
EXPORTED int cublasLtMatmulDescDestroy(void *made) { return destroy(made); }
EXPORTED int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  return make(made);
}
EXPORTED int cublasLtMatrixLayoutDestroy(void *made) { return destroy(made); }
EXPORTED int cublasLtMatmulPreferenceCreate(void **made) { return make(made); }
EXPORTED int cublasLtMatmulPreferenceDestroy(void *made) { return destroy(made); }

/* cublasLtMatmulHeuristicResult_t: an algorithm that needs no workspace. */
struct heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

EXPORTED int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int wanted,
    struct heuristic *results, int *found) {
  memset(results, 0, sizeof *results);
  *found = 1;
  return DONE;
}
