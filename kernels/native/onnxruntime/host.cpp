#include "host.h"

namespace binarize::ort {
namespace {

void check(Table table, Status* status, const std::string& name) {
  if (status == nullptr) return;
  const std::string message = ErrorMessage::call(table, status);
  ReleaseStatus::call(table, status);
  throw Refusal{"cannot run " + name + ": " + message};
}

bool succeeded(Table table, Status* status) {
  if (status != nullptr) ReleaseStatus::call(table, status);
  return status == nullptr;
}

std::string name_of(Table table, const Info* info, const char* kind) {
  size_t size = 0;
  std::string name;
  if (succeeded(table, NodeName::call(table, info, nullptr, &size)) && size > 1) {
    name.resize(size);
    if (!succeeded(table, NodeName::call(table, info, name.data(), &size))) name.clear();
    while (!name.empty() && name.back() == '\0') name.pop_back();
  }
  return std::string(kind) + " '" + name + "'";
}

Tensor tensor_of(Table table, const Value* value, Type* type, const std::string& name) {
  Shape* raw = nullptr;
  check(table, TensorShape::call(table, value, &raw), name);
  struct Release {
    Table table;
    Shape* shape;
    ~Release() { ReleaseShape::call(table, shape); }
  } const shape{table, raw};
  size_t rank = 0;
  check(table, DimensionCount::call(table, raw, &rank), name);
  Tensor tensor{Sizes(rank), nullptr};
  check(table, Dimensions::call(table, raw, tensor.sizes.data(), rank), name);
  check(table, ElementType::call(table, raw, type), name);
  void* data = nullptr;
  check(table, TensorData::call(table, const_cast<Value*>(value), &data), name);
  tensor.data = data;
  return tensor;
}

}  // namespace

std::string text(const Sizes& sizes) {
  std::string made = "(";
  for (size_t i = 0; i < sizes.size(); ++i) made += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return made + ")";
}

int64_t count(const Sizes& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) product *= size;
  return product;
}

Node::Node(Host host, const Info* info, const char* kind)
    : host_(host), info_(info), name_(name_of(host.table, info, kind)) {}

void Node::refuse(const std::string& why) const {
  throw Refusal{"cannot load binarize." + name_ + ": " + why + "; export the network again"};
}

float Node::number(const char* attribute) const {
  float value = 0;
  const bool there = succeeded(host_.table, AttributeFloat::call(host_.table, info_, attribute, &value));
  require(there, std::string("it has no number '") + attribute + "'");
  return value;
}

int64_t Node::integer(const char* attribute, int64_t least, int64_t most) const {
  int64_t value = 0;
  const bool there = succeeded(host_.table, AttributeInt::call(host_.table, info_, attribute, &value));
  require(there, std::string("it has no whole number '") + attribute + "'");
  require(value >= least && value <= most, std::string(attribute) + " is " + std::to_string(value) + ", not " +
                                               std::to_string(least) + " to " + std::to_string(most));
  return value;
}

int64_t Node::integer_or(const char* attribute, int64_t otherwise) const {
  int64_t value = 0;
  return succeeded(host_.table, AttributeInt::call(host_.table, info_, attribute, &value)) ? value : otherwise;
}

std::vector<float> Node::numbers(const char* attribute) const {
  size_t size = 0;
  std::vector<float> values;
  bool there = succeeded(host_.table, AttributeFloats::call(host_.table, info_, attribute, nullptr, &size));
  if (there && size > 0) {
    values.resize(size);
    there = succeeded(host_.table, AttributeFloats::call(host_.table, info_, attribute, values.data(), &size));
  }
  require(there && size == values.size(), std::string("it has no numbers '") + attribute + "'");
  return values;
}

Sizes Node::integers_or_none(const char* attribute) const {
  size_t size = 0;
  Sizes values;
  if (!succeeded(host_.table, AttributeInts::call(host_.table, info_, attribute, nullptr, &size))) return {};
  values.resize(size);
  if (size > 0 && !succeeded(host_.table, AttributeInts::call(host_.table, info_, attribute, values.data(), &size)))
    return {};
  return values;
}

Sizes Node::integers(const char* attribute) const {
  Sizes values = integers_or_none(attribute);
  require(!values.empty(), std::string("it has no whole numbers '") + attribute + "'");
  return values;
}

Tensor Node::constant(size_t index, const char* what, Type type) const {
  int constant = 0;
  const Value* value = nullptr;
  const bool there = succeeded(host_.table, ConstantInput::call(host_.table, info_, index, &constant, &value));
  require(there && constant != 0 && value != nullptr, std::string("its ") + what + " are not stored in the file");
  Type seen{};
  Tensor tensor = tensor_of(host_.table, value, &seen, name_);
  require(seen == type, std::string("its ") + what + " have the wrong type");
  return tensor;
}

void Call::refuse(const std::string& why) const { throw Refusal{"cannot run binarize." + name_ + ": " + why}; }

Tensor Call::input(size_t index) const {
  const Value* value = nullptr;
  check(host_.table, Input::call(host_.table, context_, index, &value), name_);
  require(value != nullptr, "an input is missing");
  Type type{};
  return tensor_of(host_.table, value, &type, name_);
}

void* Call::output(const Sizes& sizes) const {
  Value* value = nullptr;
  check(host_.table, Output::call(host_.table, context_, 0, sizes.data(), sizes.size(), &value), name_);
  require(value != nullptr, "the runtime gave no output");
  void* data = nullptr;
  check(host_.table, TensorData::call(host_.table, value, &data), name_);
  return data;
}

void Call::parallel(void (*run)(void*, size_t), size_t count, void* context) const {
  if (host_.parallel && count > 1) {
    check(host_.table, ParallelFor::call(host_.table, context_, run, count, 0, context), name_);
    return;
  }
  for (size_t part = 0; part < count; ++part) run(context, part);
}

}  // namespace binarize::ort
