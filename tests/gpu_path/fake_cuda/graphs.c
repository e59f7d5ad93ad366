/* CUDA graphs: a stream that captures runs nothing here either, so a graph is a handle. What must not happen during a
   capture is an error, as on a device: waiting for it. */
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "device.h"

#define OK return cudaSuccess

static cudaStream_t capturing;
static unsigned long long captures;

void *capturing_stream(void) { return capturing; }

EXPORTED cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  if (!stream || capturing) return cudaErrorStreamCaptureUnsupported; /* the default stream cannot */
  capturing = stream;
  captures++;
  OK;
}
EXPORTED cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  if (stream != capturing) return cudaErrorStreamCaptureUnmatched;
  capturing = NULL;
  *graph = calloc(1, 64);
  count(CAPTURE);
  OK;
}
EXPORTED cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = stream && stream == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  OK;
}
EXPORTED cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *num_nodes) {
  cudaStreamIsCapturing(stream, status);
  if (id) *id = captures;
  if (num_nodes) *num_nodes = 0;
  OK;
}
EXPORTED cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { OK; }
EXPORTED cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
  *made = calloc(1, 64);
  OK;
}
EXPORTED cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { count(REPLAY); OK; }
EXPORTED cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) { *count = 1; OK; }
EXPORTED cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(graph); OK; }
EXPORTED cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { free(graph); OK; }
