#include "schedule.h"

#include <string.h>

#include <chrono>

namespace binarize {

Step conv_step(int level, const Geometry& geometry, const Conv2d& fixed, Form form, Place x, Place residual, Place out,
               int64_t cleared) {
  return [=](const Frame& frame) {
    Conv2d call = fixed;
    call.geometry = &geometry;
    call.x = frame.at<const uint32_t>(x);
    call.residual = frame.at<const float>(residual);
    call.threads = frame.threads;
    char* to = frame.at<char>(out);
    if (cleared > 0) memset(to, 0, static_cast<size_t>(cleared));
    if (form == Form::values) call.values = reinterpret_cast<float*>(to);
    if (form == Form::codes) call.codes = reinterpret_cast<uint8_t*>(to);
    if (form == Form::digits) call.digits = reinterpret_cast<uint32_t*>(to);
    return kLevels[level].conv2d(call);
  };
}

Step pack_step(int level, const Pack& fixed, bool codes, Place x, Place out) {
  return [=](const Frame& frame) {
    Pack call = fixed;
    call.x = frame.at<const float>(x);
    call.out = codes ? nullptr : frame.at<uint32_t>(out);
    call.codes = codes ? frame.at<uint8_t>(out) : nullptr;
    call.threads = frame.threads;
    return kLevels[level].pack(call);
  };
}

// A step that reads one tensor and writes another.
template <class Call, class Run>
Step one_to_one(const Call& fixed, Place x, Place out, const Run& run) {
  return [=](const Frame& frame) {
    Call call = fixed;
    call.x = frame.at<const float>(x);
    call.out = frame.at<float>(out);
    return run(call, frame.threads);
  };
}

Step dense_step(int level, const DenseConv2d& fixed, Place x, Place out) {
  return one_to_one(fixed, x, out, [level](DenseConv2d& call, int threads) {
    call.threads = threads;
    return kDenseLevels[level].conv2d(call);
  });
}

Step pool_step(int level, const Pool& fixed, Place x, Place out) {
  return one_to_one(fixed, x, out, [level](Pool& call, int threads) {
    call.threads = threads;
    return kDenseLevels[level].pool(call);
  });
}

Step sum_step(int level, const Sum& fixed, Place a, Place b, Place out) {
  return [=](const Frame& frame) {
    Sum call = fixed;
    call.a = frame.at<const float>(a);
    call.b = frame.at<const float>(b);
    call.out = frame.at<float>(out);
    kDenseLevels[level].sum(call);
    return Status::ok;
  };
}

Step channelwise_step(int level, const Channelwise& fixed, Place x, Place out) {
  return one_to_one(fixed, x, out, [level](const Channelwise& call, int) {
    kDenseLevels[level].channelwise(call);
    return Status::ok;
  });
}

Step placing_step(const Placing& fixed, Place x, Place out, int64_t offset) {
  return [=](const Frame& frame) {
    const float* from = frame.at<const float>(x);
    float* to = frame.at<float>(out) + offset;
    for (int64_t row = 0; row < fixed.rows; ++row)
      memcpy(to + row * fixed.stride, from + row * fixed.width, static_cast<size_t>(fixed.width) * 4);
    return Status::ok;
  };
}

Step transpose_step(int level, const Transpose& fixed, Place x, Place out) {
  return one_to_one(fixed, x, out, [level](const Transpose& call, int) {
    kDenseLevels[level].transpose(call);
    return Status::ok;
  });
}

Status Schedule::run(const Frame& frame, std::vector<int64_t>* nanoseconds) const {
  using Clock = std::chrono::steady_clock;
  for (const Step& step : steps_) {
    const Clock::time_point start = nanoseconds == nullptr ? Clock::time_point() : Clock::now();
    const Status status = step(frame);
    if (nanoseconds != nullptr)
      nanoseconds->push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace binarize
