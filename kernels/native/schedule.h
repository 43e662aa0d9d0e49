// The kernel calls of a stretch of a network in order, run as one call: no allocation, no interpreter in between.
//
// Tensors lie in one arena whose layout was planned beforehand, in the inputs and outputs of the call, or at fixed
// addresses (weights and tables). A schedule is not changed after it was built and holds no memory of its own, so that
// threads may run it at the same time, each with an arena.
#pragma once

#include <functional>
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

// One kernel call: what does not change is held, tensors and threads come from the frame.
using Step = std::function<Status(const Frame&)>;

// What a packed convolution answers in.
enum class Form { values = 0, codes = 1, digits = 2 };

// A packed convolution; `cleared` bytes of the output are zeroed first.
Step conv_step(int level, const Geometry& geometry, const Conv2d& call, Form form, Place x, Place residual, Place out,
               int64_t cleared);
Step pack_step(int level, const Pack& call, bool codes, Place x, Place out);
Step dense_step(int level, const DenseConv2d& call, Place x, Place out);
Step pool_step(int level, const Pool& call, Place x, Place out);
// Pools `x` to `out` and packs that, some rows at a time. The levels are those of either call.
Step pool_pack_step(int dense, const Pool& pool, int level, const Pack& pack, bool codes, Place x, Place out,
                    Place packed);
Step sum_step(int level, const Sum& call, Place a, Place b, Place out);
Step channelwise_step(int level, const Channelwise& call, Place x, Place out);
Step placing_step(const Placing& call, Place x, Place out, int64_t offset);
Step transpose_step(int level, const Transpose& call, Place x, Place out);

class Schedule {
 public:
  Schedule() = default;
  Schedule(const Schedule&) = delete;
  Schedule& operator=(const Schedule&) = delete;

  void add(Step step) { steps_.push_back(std::move(step)); }
  size_t size() const { return steps_.size(); }

  // Run every step; stops at the first that fails. The nanoseconds of each go to `nanoseconds` where it is not null.
  Status run(const Frame& frame, std::vector<int64_t>* nanoseconds = nullptr) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace binarize
