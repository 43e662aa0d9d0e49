#include "schedule.h"

#include <string.h>

#include <chrono>

namespace binarize {

#define DENSE_LEVEL(name, condition)            \
  {#name,                                       \
   [] { return static_cast<bool>(condition); }, \
   dense_conv2d_##name,                         \
   dense_pool_##name,                           \
   dense_sum_##name,                            \
   dense_transpose_##name},
const DenseLevel kDenseLevels[] = {
#include "dense_levels.inc"
};
#undef DENSE_LEVEL

const int kDenseLevelCount = sizeof(kDenseLevels) / sizeof(kDenseLevels[0]);

ConvStep::ConvStep(int level, const Geometry& geometry, const Conv2d& call, Form form, Place x, Place residual,
                   Place out, int64_t cleared)
    : level_(level),
      geometry_(geometry),
      call_(call),
      form_(form),
      x_(x),
      residual_(residual),
      out_(out),
      cleared_(cleared) {}

Status ConvStep::run(const Frame& frame) const {
  Conv2d call = call_;
  call.geometry = &geometry_;
  call.x = frame.at<const uint32_t>(x_);
  call.residual = frame.at<const float>(residual_);
  call.threads = frame.threads;
  char* out = frame.at<char>(out_);
  if (cleared_ > 0) memset(out, 0, static_cast<size_t>(cleared_));
  if (form_ == values) call.values = reinterpret_cast<float*>(out);
  if (form_ == codes) call.codes = reinterpret_cast<uint8_t*>(out);
  if (form_ == digits) call.digits = reinterpret_cast<uint32_t*>(out);
  return kLevels[level_].conv2d(call);
}

PackStep::PackStep(int level, const Pack& call, bool codes, Place x, Place out)
    : level_(level), call_(call), codes_(codes), x_(x), out_(out) {}

Status PackStep::run(const Frame& frame) const {
  Pack call = call_;
  call.x = frame.at<const float>(x_);
  call.out = codes_ ? nullptr : frame.at<uint32_t>(out_);
  call.codes = codes_ ? frame.at<uint8_t>(out_) : nullptr;
  call.threads = frame.threads;
  return kLevels[level_].pack(call);
}

DenseStep::DenseStep(int level, const DenseConv2d& call, Place x, Place residual, Place out)
    : level_(level), call_(call), x_(x), residual_(residual), out_(out) {}

Status DenseStep::run(const Frame& frame) const {
  DenseConv2d call = call_;
  call.x = frame.at<const float>(x_);
  call.residual = frame.at<const float>(residual_);
  call.out = frame.at<float>(out_);
  call.threads = frame.threads;
  return kDenseLevels[level_].conv2d(call);
}

PoolStep::PoolStep(int level, const Pool& call, Place x, Place out) : level_(level), call_(call), x_(x), out_(out) {}

Status PoolStep::run(const Frame& frame) const {
  Pool call = call_;
  call.x = frame.at<const float>(x_);
  call.out = frame.at<float>(out_);
  call.threads = frame.threads;
  return kDenseLevels[level_].pool(call);
}

SumStep::SumStep(int level, const Sum& call, Place a, Place b, Place out)
    : level_(level), call_(call), a_(a), b_(b), out_(out) {}

Status SumStep::run(const Frame& frame) const {
  Sum call = call_;
  call.a = frame.at<const float>(a_);
  call.b = frame.at<const float>(b_);
  call.out = frame.at<float>(out_);
  kDenseLevels[level_].sum(call);
  return Status::ok;
}

TransposeStep::TransposeStep(int level, const Transpose& call, Place x, Place out)
    : level_(level), call_(call), x_(x), out_(out) {}

Status TransposeStep::run(const Frame& frame) const {
  Transpose call = call_;
  call.x = frame.at<const float>(x_);
  call.out = frame.at<float>(out_);
  kDenseLevels[level_].transpose(call);
  return Status::ok;
}

Status Schedule::run(const Frame& frame) const {
  for (const auto& step : steps_) {
    const Status status = step->run(frame);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

Status Schedule::run_timed(const Frame& frame, std::vector<int64_t>& nanoseconds) const {
  using Clock = std::chrono::steady_clock;
  for (const auto& step : steps_) {
    const Clock::time_point start = Clock::now();
    const Status status = step->run(frame);
    nanoseconds.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace binarize
