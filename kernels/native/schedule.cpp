#include "schedule.h"

#include <string.h>

#include <atomic>
#include <chrono>

#include "threads.h"

namespace binarize {
namespace {

constexpr int64_t kFewest = 1 << 16;  // floats that threads are woken for

}  // namespace

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

// A pass over memory in as many parts as it is worth; `run(first, last)` takes some of the `count` numbers or pixels.
template <class Run>
void share_out(int64_t count, int64_t floats_each, int threads, const Run& run) {
  struct Pass {
    int64_t count;
    const Run& run;
  };
  const Pass pass{count, run};
  const bool few = threads < 2 || count * floats_each < kFewest;
  run_parts(
      few ? 1 : threads,
      [](const void* context, int part, int parts) {
        const Pass& p = *static_cast<const Pass*>(context);
        p.run(p.count * part / parts, p.count * (part + 1) / parts);
      },
      &pass);
}

// Rows of the output at a time: what was pooled is packed while a core still holds it.
struct PoolPack {
  Pool pool;
  Pack pack;
  int dense, level;
  int64_t rows;
  std::atomic<Status> status{Status::ok};

  int64_t bands() const { return (pool.out_h + rows - 1) / rows; }  // of an image
};

Status pool_and_pack(const PoolPack& call, int64_t image, int64_t first) {
  Pool pool = call.pool;
  const int64_t pixel = (image * pool.out_h + first) * pool.out_w;
  pool.n = 1;
  pool.out_h = pool.out_h - first < call.rows ? pool.out_h - first : call.rows;
  pool.padding_h -= static_cast<int>(first * pool.stride_h);  // the rows above count as padding that is cut off
  pool.x += image * pool.h * pool.w * pool.channels;
  pool.out += pixel * pool.channels;
  Pack pack = call.pack;
  pack.x = pool.out;
  pack.n = 1;
  pack.pixels = pool.out_h * pool.out_w;
  const int64_t words = pixel * pack.groups * pack.words;  // of one strip
  if (pack.out != nullptr) pack.out += words * pack.planes;
  if (pack.codes != nullptr) pack.codes += 4 * words * (pack.thresholds == nullptr ? 1 : pack.planes);
  const Status status = kDenseLevels[call.dense].pool(pool);
  return status == Status::ok ? kLevels[call.level].pack(pack) : status;
}

Step pool_pack_step(int dense, const Pool& pool, int level, const Pack& pack, bool codes, Place x, Place out,
                    Place packed) {
  constexpr int64_t kNear = 4096;  // floats that the nearest cache holds
  const int64_t row = pool.out_w * pool.channels, rows = row > 0 && row < kNear ? kNear / row : 1;
  return [=](const Frame& frame) {
    PoolPack call{pool, pack, dense, level, rows};
    call.pool.x = frame.at<const float>(x);
    call.pool.out = frame.at<float>(out);
    call.pack.out = codes ? nullptr : frame.at<uint32_t>(packed);
    call.pack.codes = codes ? frame.at<uint8_t>(packed) : nullptr;
    call.pool.threads = call.pack.threads = 1;
    const int64_t bands = call.bands();
    share_out(bands * pool.n, rows * row, frame.threads, [&](int64_t first, int64_t last) {
      for (int64_t band = first; band < last; ++band) {
        const Status status = pool_and_pack(call, band / bands, band % bands * rows);
        if (status != Status::ok) call.status = status;
      }
    });
    return call.status.load();
  };
}

Step sum_step(int level, const Sum& fixed, Place a, Place b, Place out) {
  return [=](const Frame& frame) {
    const float *first_term = frame.at<const float>(a), *second_term = frame.at<const float>(b);
    float* to = frame.at<float>(out);
    share_out(fixed.count, 1, frame.threads, [&](int64_t first, int64_t last) {
      Sum call = fixed;
      call.count = last - first;
      call.a = first_term + first;
      call.b = second_term == nullptr ? nullptr : second_term + first;
      call.out = to + first;
      kDenseLevels[level].sum(call);
    });
    return Status::ok;
  };
}

Step channelwise_step(int level, const Channelwise& fixed, Place x, Place out) {
  return one_to_one(fixed, x, out, [level](const Channelwise& whole, int threads) {
    share_out(whole.pixels, whole.channels, threads, [&](int64_t first, int64_t last) {
      Channelwise call = whole;
      call.pixels = last - first;
      call.x += first * call.channels;
      call.out += first * call.channels;
      kDenseLevels[level].channelwise(call);
    });
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
