// The kernel calls of a stretch of a network in order, run as one call: no allocation, no interpreter in between.
//
// Tensors lie in one arena whose layout was planned beforehand, in the inputs and outputs of the call, or at fixed
// addresses (weights and tables). A schedule is not changed after it was built and holds no memory of its own, so that
// threads may run it at the same time, each with an arena.
#pragma once

#include <memory>
#include <vector>

#include "dense.h"
#include "dispatch.h"

namespace binarize {

// Where a tensor lies.
struct Place {
  enum Kind { none = 0, fixed = 1, arena = 2, input = 3, output = 4 };
  int kind = none;
  int64_t value = 0;  // an address, a byte of the arena, or the number of an input or output
};

// What one run of a schedule is given.
struct Frame {
  char* arena;
  const std::vector<uintptr_t>& inputs;
  const std::vector<uintptr_t>& outputs;
  int threads;

  template <class T>
  T* at(Place place) const {
    switch (place.kind) {
      case Place::fixed:
        return reinterpret_cast<T*>(place.value);
      case Place::arena:
        return reinterpret_cast<T*>(arena + place.value);
      case Place::input:
        return reinterpret_cast<T*>(inputs[static_cast<size_t>(place.value)]);
      case Place::output:
        return reinterpret_cast<T*>(outputs[static_cast<size_t>(place.value)]);
      default:
        return nullptr;
    }
  }
};

class Step {
 public:
  virtual ~Step() = default;
  virtual Status run(const Frame& frame) const = 0;
};

// A packed convolution. `call` holds what does not change; `cleared` bytes of the output are zeroed first.
class ConvStep final : public Step {
 public:
  enum Form { values = 0, codes = 1, digits = 2 };
  ConvStep(int level, const Geometry& geometry, const Conv2d& call, Form form, Place x, Place residual, Place out,
           int64_t cleared);
  Status run(const Frame& frame) const override;

 private:
  int level_;
  Geometry geometry_;
  Conv2d call_;
  Form form_;
  Place x_, residual_, out_;
  int64_t cleared_;
};

class PackStep final : public Step {
 public:
  PackStep(int level, const Pack& call, bool codes, Place x, Place out);
  Status run(const Frame& frame) const override;

 private:
  int level_;
  Pack call_;
  bool codes_;
  Place x_, out_;
};

class DenseStep final : public Step {
 public:
  DenseStep(int level, const DenseConv2d& call, Place x, Place residual, Place out);
  Status run(const Frame& frame) const override;

 private:
  int level_;
  DenseConv2d call_;
  Place x_, residual_, out_;
};

class PoolStep final : public Step {
 public:
  PoolStep(int level, const Pool& call, Place x, Place out);
  Status run(const Frame& frame) const override;

 private:
  int level_;
  Pool call_;
  Place x_, out_;
};

class SumStep final : public Step {
 public:
  SumStep(int level, const Sum& call, Place a, Place b, Place out);
  Status run(const Frame& frame) const override;

 private:
  int level_;
  Sum call_;
  Place a_, b_, out_;
};

class TransposeStep final : public Step {
 public:
  TransposeStep(int level, const Transpose& call, Place x, Place out);
  Status run(const Frame& frame) const override;

 private:
  int level_;
  Transpose call_;
  Place x_, out_;
};

class Schedule {
 public:
  Schedule() = default;
  Schedule(const Schedule&) = delete;
  Schedule& operator=(const Schedule&) = delete;

  void add(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }
  size_t size() const { return steps_.size(); }

  // Run every step; stops at the first that fails.
  Status run(const Frame& frame) const;

  // The same, with the nanoseconds that each step took.
  Status run_timed(const Frame& frame, std::vector<int64_t>& nanoseconds) const;

 private:
  std::vector<std::unique_ptr<Step>> steps_;
};

}  // namespace binarize
