// As much of ONNX Runtime's C interface as these operations use. Its table of functions only ever grows at the end, so
// the number of a slot is enough, no header of another project is needed, and the library links to nothing of it.
// Numbers and field order hold since version 1.16; slots of a later version say so.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace binarize::ort {

struct Status;
struct Options;
struct Domain;
struct Info;
struct Context;
struct Value;
struct Shape;

using Table = const void* const*;

struct Base {
  Table (*table)(uint32_t version);  // null where the runtime is older than that
  const char* (*version)();
};

constexpr uint32_t kLeastVersion = 16, kParallelVersion = 17;

enum class Code { fail = 1, invalid_argument = 2 };
enum class Type { number = 1, byte = 2 };  // of tensor elements: float, uint8
enum class Presence { required = 0 };

// A function of the table: its slot, its result, its arguments.
template <size_t kSlot, class Result, class... Arguments>
struct Function {
  static Result call(Table table, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table[kSlot]))(arguments...);
  }
};

using CreateStatus = Function<0, Status*, Code, const char*>;
using ErrorMessage = Function<2, const char*, const Status*>;
using CreateDomain = Function<26, Status*, const char*, Domain**>;
using AddOperation = Function<27, Status*, Domain*, const struct Operation*>;
using AddDomain = Function<28, Status*, Options*, Domain*>;
using TensorData = Function<51, Status*, Value*, void**>;
using ElementType = Function<60, Status*, const Shape*, Type*>;
using DimensionCount = Function<61, Status*, const Shape*, size_t*>;
using Dimensions = Function<62, Status*, const Shape*, int64_t*, size_t>;
using TensorShape = Function<65, Status*, const Value*, Shape**>;
using AttributeFloat = Function<85, Status*, const Info*, const char*, float*>;
using AttributeInt = Function<86, Status*, const Info*, const char*, int64_t*>;
using Input = Function<90, Status*, const Context*, size_t, const Value**>;
using Output = Function<91, Status*, Context*, size_t, const int64_t*, size_t, Value**>;
using ReleaseStatus = Function<93, void, Status*>;
using ReleaseShape = Function<99, void, Shape*>;
using AddConfigEntry = Function<130, Status*, Options*, const char*, const char*>;
using AttributeFloats = Function<162, Status*, const Info*, const char*, float*, size_t*>;
using AttributeInts = Function<163, Status*, const Info*, const char*, int64_t*, size_t*>;
using HasConfigEntry = Function<237, Status*, const Options*, const char*, int*>;
using NodeName = Function<244, Status*, const Info*, char*, size_t*>;
using ConstantInput = Function<249, Status*, const Info*, size_t, int*, const Value**>;
using ParallelFor = Function<274, Status*, const Context*, void (*)(void*, size_t), size_t, size_t, void*>;  // 1.17

// OrtCustomOp up to the last field of version 16; a runtime reads no further than `version` says.
struct Operation {
  uint32_t version;
  void* (*create_without_status)(const Operation*, Table, const Info*);
  const char* (*name)(const Operation*);
  const char* (*provider)(const Operation*);
  Type (*input_type)(const Operation*, size_t);
  size_t (*input_count)(const Operation*);
  Type (*output_type)(const Operation*, size_t);
  size_t (*output_count)(const Operation*);
  void (*compute_without_status)(void*, Context*);
  void (*destroy)(void*);
  Presence (*input_presence)(const Operation*, size_t);
  Presence (*output_presence)(const Operation*, size_t);
  int (*input_memory)(const Operation*, size_t);
  int (*least_variadic_inputs)(const Operation*);
  int (*alike_variadic_inputs)(const Operation*);
  int (*least_variadic_outputs)(const Operation*);
  int (*alike_variadic_outputs)(const Operation*);
  Status* (*create)(const Operation*, Table, const Info*, void**);
  Status* (*compute)(void*, Context*);
};

}  // namespace binarize::ort
