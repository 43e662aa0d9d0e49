/* Runs an exported network by ONNX Runtime's C interface, with the operations of binarize's library or without.
 *
 *     run NET.onnx LIBRARY [INPUT]
 *
 * LIBRARY is what `python -c 'import binarize; print(binarize.onnxruntime_library())'` prints, or - for none. INPUT is a
 * file of float32 numbers, as numpy's tofile writes them; without it the network sees noise. Open axes have size 1.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "onnxruntime_c_api.h"

enum { kRuns = 21, kShown = 5, kMostAxes = 8 };

static const OrtApi* ort;

/* Ends the program where a call failed, with what ONNX Runtime, or the library, says about it. */
static void check(OrtStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  exit(1);
}

static void* take(size_t bytes) {
  void* memory = malloc(bytes > 0 ? bytes : 1);
  if (memory == NULL) {
    fprintf(stderr, "there is no memory for %zu bytes\n", bytes);
    exit(1);
  }
  return memory;
}

static OrtSession* open_session(OrtEnv* env, const char* net, const char* library) {
  OrtSessionOptions* options = NULL;
  OrtSession* session = NULL;
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, 1));
  if (strcmp(library, "-") != 0) check(ort->RegisterCustomOpsLibrary_V2(options, library));
  check(ort->CreateSession(env, net, options, &session));
  ort->ReleaseSessionOptions(options); /* the session keeps what it needs */
  return session;
}

struct Shape {
  int64_t sizes[kMostAxes];
  size_t axes, count;
};

static struct Shape input_shape(const OrtSession* session) {
  OrtTypeInfo* type = NULL;
  const OrtTensorTypeAndShapeInfo* tensor = NULL;
  struct Shape shape = {{0}, 0, 1};
  check(ort->SessionGetInputTypeInfo(session, 0, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &tensor));
  check(ort->GetDimensionsCount(tensor, &shape.axes));
  if (shape.axes > kMostAxes) {
    fprintf(stderr, "the input has %zu axes\n", shape.axes);
    exit(1);
  }
  check(ort->GetDimensions(tensor, shape.sizes, shape.axes));
  for (size_t i = 0; i < shape.axes; ++i) {
    if (shape.sizes[i] < 1) shape.sizes[i] = 1;
    shape.count *= (size_t)shape.sizes[i];
  }
  ort->ReleaseTypeInfo(type);
  return shape;
}

static void fill(float* numbers, size_t count, const char* path) {
  if (path == NULL) {
    uint32_t state = 1;
    for (size_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      numbers[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
    return;
  }
  FILE* file = fopen(path, "rb");
  const size_t found = file == NULL ? 0 : fread(numbers, sizeof(float), count, file);
  if (file != NULL) fclose(file);
  if (found != count) {
    fprintf(stderr, "%s has %zu numbers of %zu\n", path, found, count);
    exit(1);
  }
}

static int larger_first(const void* a, const void* b) {
  const float left = **(const float* const*)a, right = **(const float* const*)b;
  return (left < right) - (left > right);
}

static void show_largest(const float* outputs, size_t count) {
  const float** order = take(count * sizeof(*order));
  for (size_t i = 0; i < count; ++i) order[i] = outputs + i;
  qsort(order, count, sizeof(*order), larger_first);
  for (size_t i = 0; i < count && i < kShown; ++i) printf("%zu %.6g\n", (size_t)(order[i] - outputs), (double)*order[i]);
  free(order);
}

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static int ascending(const void* a, const void* b) {
  const double left = *(const double*)a, right = *(const double*)b;
  return (left > right) - (left < right);
}

int main(int words, char** word) {
  if (words != 3 && words != 4) {
    fprintf(stderr, "usage: run NET.onnx LIBRARY [INPUT]\n");
    return 2;
  }
  const OrtApiBase* base = OrtGetApiBase();
  ort = base->GetApi(ORT_API_VERSION);
  if (ort == NULL) {
    fprintf(stderr, "ONNX Runtime %s is older than the headers, version %d\n", base->GetVersionString(), ORT_API_VERSION);
    return 1;
  }

  OrtEnv* env = NULL;
  OrtAllocator* allocator = NULL;
  char *input_name = NULL, *output_name = NULL;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "run", &env));
  OrtSession* session = open_session(env, word[1], word[2]);
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->SessionGetInputName(session, 0, allocator, &input_name));
  check(ort->SessionGetOutputName(session, 0, allocator, &output_name));

  const struct Shape shape = input_shape(session);
  float* numbers = take(shape.count * sizeof(float));
  fill(numbers, shape.count, words == 4 ? word[3] : NULL);
  OrtMemoryInfo* memory = NULL;
  OrtValue *input = NULL, *output = NULL;
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(ort->CreateTensorWithDataAsOrtValue(memory, numbers, shape.count * sizeof(float), shape.sizes, shape.axes,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));

  double taken[kRuns];
  for (int turn = 0; turn < kRuns; ++turn) {
    const double begun = milliseconds();
    ort->ReleaseValue(output); /* nothing on the first turn */
    output = NULL;
    check(ort->Run(session, NULL, (const char* const*)&input_name, (const OrtValue* const*)&input, 1,
                   (const char* const*)&output_name, 1, &output));
    taken[turn] = milliseconds() - begun;
  }

  OrtTensorTypeAndShapeInfo* found = NULL;
  size_t count = 0;
  float* outputs = NULL;
  check(ort->GetTensorTypeAndShape(output, &found));
  check(ort->GetTensorShapeElementCount(found, &count));
  check(ort->GetTensorMutableData(output, (void**)&outputs));
  show_largest(outputs, count);
  qsort(taken, kRuns, sizeof(*taken), ascending);
  printf("%.3f ms\n", taken[kRuns / 2]);

  ort->ReleaseTensorTypeAndShapeInfo(found);
  ort->ReleaseValue(output);
  ort->ReleaseValue(input);
  ort->ReleaseMemoryInfo(memory);
  check(ort->AllocatorFree(allocator, input_name));
  check(ort->AllocatorFree(allocator, output_name));
  ort->ReleaseSession(session);
  ort->ReleaseEnv(env);
  free(numbers);
  return 0;
}
