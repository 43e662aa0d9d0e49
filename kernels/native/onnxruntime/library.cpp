// The custom-op library of ONNX Runtime: every operation of the domain `binarize` that kernels run, by its name.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>
#include <new>

#include "kernel.h"

namespace binarize::ort {
namespace {

constexpr LayerKind image(bool terms, bool residual, Ending ending = Ending::values) {
  return {true, terms, residual, ending};
}
constexpr LayerKind rows(bool terms, bool residual) { return {false, terms, residual, Ending::values}; }

struct Row {
  const char* name;
  size_t inputs;
  const char* types;  // one letter for each input and one for the output: f float, u uint8
  std::unique_ptr<Kernel> (*make)(const Node&);
};

#define LAYER(kind) [](const Node& node) { return make_layer(node, kind); }
constexpr Row kRows[] = {
    {"PackUniform", 1, "fu", make_pack_uniform},
    {"MaxPool2d", 1, "ff", make_max_pool},
    {"PackThresholds", 2, "ffu", make_pack_thresholds},
    {"PackTerms", 2, "ffu", make_pack_terms},
    {"PackedConv2d", 4, "uufff", LAYER(image(false, false))},
    {"PackedConv2dAdd", 5, "uuffff", LAYER(image(false, true))},
    {"PackedConv2dThreshold", 5, "uufffu", LAYER(image(false, false, Ending::thresholds))},
    {"PackedConv2dUniform", 4, "uuffu", LAYER(image(false, false, Ending::uniform))},
    {"PackedConv2dTerms", 4, "uufff", LAYER(image(true, false))},
    {"PackedConv2dTermsAdd", 5, "uuffff", LAYER(image(true, true))},
    {"PackedLinear", 4, "uufff", LAYER(rows(false, false))},
    {"PackedLinearAdd", 5, "uuffff", LAYER(rows(false, true))},
    {"PackedLinearTerms", 4, "uufff", LAYER(rows(true, false))},
    {"PackedLinearTermsAdd", 5, "uuffff", LAYER(rows(true, true))},
};
#undef LAYER
constexpr size_t kRowCount = sizeof(kRows) / sizeof(kRows[0]);

// One operation as one runtime sees it; lives as long as the process.
struct Registered final : Operation {
  const Row* row;
  bool parallel;
};

struct Made {
  Host host;
  std::string name;
  std::unique_ptr<Kernel> kernel;
};

const Registered& self(const Operation* operation) { return *static_cast<const Registered*>(operation); }

// Run `body`; whatever it throws becomes the runtime's status.
template <class Body>
Status* guarded(Table table, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const Refusal& refusal) {
    return CreateStatus::call(table, Code::invalid_argument, refusal.message.c_str());
  } catch (const std::bad_alloc&) {
    return CreateStatus::call(table, Code::fail, "binarize: there is no memory");
  } catch (const std::exception& error) {
    return CreateStatus::call(table, Code::fail, error.what());
  }
}

Status* create(const Operation* operation, Table table, const Info* info, void** kernel) {
  return guarded(table, [&] {
    const Registered& row = self(operation);
    const Host host{table, row.parallel};
    const Node node(host, info, row.row->name);
    require_version(node);
    *kernel = new Made{host, node.name(), row.row->make(node)};
  });
}

Status* compute(void* kernel, Context* context) {
  const Made& made = *static_cast<const Made*>(kernel);
  return guarded(made.host.table, [&] {
    const Call call(made.host, context, made.name);
    const Lender lender(call);
    made.kernel->compute(call);
  });
}

Type type_of(const Operation* operation, size_t index) {
  return self(operation).row->types[index] == 'f' ? Type::number : Type::byte;
}

Registered registered(const Row& row, bool parallel) {
  Registered made{};
  made.version = kLeastVersion;
  made.name = [](const Operation* operation) { return self(operation).row->name; };
  made.provider = [](const Operation*) -> const char* { return nullptr; };
  made.input_type = type_of;
  made.input_count = [](const Operation* operation) { return self(operation).row->inputs; };
  made.output_type = [](const Operation* operation, size_t) { return type_of(operation, self(operation).row->inputs); };
  made.output_count = [](const Operation*) -> size_t { return 1; };
  made.destroy = [](void* kernel) { delete static_cast<Made*>(kernel); };
  made.input_presence = made.output_presence = [](const Operation*, size_t) { return Presence::required; };
  made.input_memory = [](const Operation*, size_t) { return 0; };
  made.least_variadic_inputs = made.least_variadic_outputs = [](const Operation*) { return 1; };
  made.alike_variadic_inputs = made.alike_variadic_outputs = [](const Operation*) { return 1; };
  made.create = create;
  made.compute = compute;
  made.row = &row;
  made.parallel = parallel;
  return made;
}

// A runtime in this process and the domain made for it. Never freed: sessions may outlive whatever would free it.
struct Runtime {
  const Base* base;
  Domain* domain;
  Registered operations[kRowCount];
  Runtime* next;
};

Status* find_runtime(const Base* base, Table table, unsigned version, Runtime** found) {
  static std::mutex guard;
  static Runtime* first = nullptr;
  const std::lock_guard<std::mutex> lock(guard);
  for (*found = first; *found != nullptr; *found = (*found)->next)
    if ((*found)->base == base) return nullptr;
  auto made = std::make_unique<Runtime>();
  made->base = base;
  if (Status* status = CreateDomain::call(table, "binarize", &made->domain)) return status;
  for (size_t i = 0; i < kRowCount; ++i) {
    made->operations[i] = registered(kRows[i], version >= kParallelVersion);
    if (Status* status = AddOperation::call(table, made->domain, &made->operations[i])) return status;
  }
  made->next = first;
  *found = first = made.release();
  return nullptr;
}

unsigned minor_of(const char* version) {
  unsigned major = 0, minor = 0;
  return version != nullptr && sscanf(version, "%u.%u", &major, &minor) == 2 ? (major > 1 ? 1000 : minor) : 0;
}

Status* add(Options* options, const Base* base) {
  const unsigned version = minor_of(base->version());
  if (version < kLeastVersion) {
    const std::string message = std::string("cannot register the operations of binarize: this is ONNX Runtime ") +
                                base->version() + ", and they need 1.16 or later; install a newer one";
    return CreateStatus::call(base->table(1), Code::fail, message.c_str());
  }
  const Table table = base->table(kLeastVersion);
  constexpr const char* kEntry = "binarize.operations";
  int there = 0;
  if (Status* status = HasConfigEntry::call(table, options, kEntry, &there)) return status;
  if (there != 0) return nullptr;  // these options have them already
  Status* status = nullptr;
  Runtime* runtime = nullptr;
  Status* failed = guarded(table, [&] { status = find_runtime(base, table, version, &runtime); });
  if (failed != nullptr) return failed;
  if (status != nullptr) return status;
  if (Status* refused = AddDomain::call(table, options, runtime->domain)) return refused;
  return AddConfigEntry::call(table, options, kEntry, "1");
}

}  // namespace
}  // namespace binarize::ort

extern "C" __attribute__((visibility("default"))) binarize::ort::Status* RegisterCustomOps(
    binarize::ort::Options* options, const binarize::ort::Base* base) {
  return binarize::ort::add(options, base);
}
