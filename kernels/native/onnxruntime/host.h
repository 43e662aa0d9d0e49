// What the runtime gives a kernel: attributes and stored tensors when it is made, tensors and threads when it runs.
// Everything here refuses by throwing; operations.cpp turns that into the runtime's status.
#pragma once

#include <string>
#include <vector>

#include "abi.h"

namespace binarize::ort {

using Sizes = std::vector<int64_t>;

struct Refusal {
  std::string message;
};

// What a kernel must know of the runtime that made it.
struct Host {
  Table table;
  bool parallel;  // it lends its threads
};

struct Tensor {
  Sizes sizes;
  const void* data;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

std::string text(const Sizes& sizes);
int64_t count(const Sizes& sizes);

// A node while its kernel is made.
class Node final {
 public:
  Node(Host host, const Info* info, const char* kind);

  const Host& host() const { return host_; }
  const std::string& name() const { return name_; }
  [[noreturn]] void refuse(const std::string& why) const;
  void require(bool met, const std::string& why) const {
    if (!met) refuse(why);
  }

  float number(const char* attribute) const;
  int64_t integer(const char* attribute, int64_t least, int64_t most) const;
  int64_t integer_or(const char* attribute, int64_t otherwise) const;
  std::vector<float> numbers(const char* attribute) const;
  Sizes integers(const char* attribute) const;  // must be there
  Sizes integers_or_none(const char* attribute) const;
  Tensor constant(size_t index, const char* what, Type type) const;

 private:
  Host host_;
  const Info* info_;
  std::string name_;
};

// One run of a kernel.
class Call final {
 public:
  Call(Host host, Context* context, const std::string& name) : host_(host), context_(context), name_(name) {}

  [[noreturn]] void refuse(const std::string& why) const;
  void require(bool met, const std::string& why) const {
    if (!met) refuse(why);
  }

  Tensor input(size_t index) const;
  void* output(const Sizes& sizes) const;
  void parallel(void (*run)(void*, size_t), size_t count, void* context) const;

 private:
  Host host_;
  Context* context_;
  const std::string& name_;
};

// Lends a call's threads to whatever the calling thread runs during the lender's life.
class Lender final {
 public:
  explicit Lender(const Call& call);
  ~Lender();
  Lender(const Lender&) = delete;
  Lender& operator=(const Lender&) = delete;
};

// How many parts are worth making: the runtime does not tell how many threads it has, the machine bounds them.
int most_threads();

// Memory of the calling thread beside that of `scratch`, reused by its next call.
enum class Held { residual, values, kinds };
void* held(Held kind, size_t bytes);

}  // namespace binarize::ort
