// What route_topk and route_negatives on CUDA do with a row of logits: 32 lanes, each with every 32nd prompt.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/launch.h"
#include "route_topk/math.h"

namespace cpl::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

template <typename A>
__device__ A warp_max(A value) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    const A other = __shfl_xor_sync(kAll, value, lane);
    value = other > value ? other : value;
  }
  return value;
}

// A row of which the largest entry is known. A row without a softmax reads as zeros, and its exponentials are NaN.
template <typename T, typename A>
class Row {
 public:
  __device__ Row(const T* logits, int64_t count) : logits_(logits), count_(count) {
    A highest = static_cast<A>(-INFINITY);
    bool nan = false;
    for (int64_t n = threadIdx.x; n < count; n += kWarp) {
      const A value = load(logits + n);
      nan = nan || value != value;
      highest = value > highest ? value : highest;
    }
    centre_ = warp_max(highest);
    valid_ = !__any_sync(kAll, nan) && centre_ - centre_ == 0;
  }
  __device__ int64_t count() const { return count_; }
  __device__ A operator()(int64_t n) const { return valid_ ? static_cast<A>(load(logits_ + n)) : A(0); }
  __device__ A exponential(int64_t n) const {
    return valid_ ? exponential_of(static_cast<A>(load(logits_ + n)) - centre_) : static_cast<A>(NAN);
  }
  __device__ A sum() const {
    A total = 0;
    for (int64_t n = threadIdx.x; n < count_; n += kWarp) total += exponential(n);
    return warp_sum(total);
  }
  __device__ A sum_at(const int64_t* indices, int64_t chosen) const {
    A total = 0;
    for (int64_t i = threadIdx.x; i < chosen; i += kWarp) total += exponential(indices[i]);
    return warp_sum(total);
  }
  // Take exponentials relative to the largest at `indices`, where only those will be summed.
  __device__ void centre_at(const int64_t* indices, int64_t chosen) {
    A highest = static_cast<A>(-INFINITY);
    for (int64_t i = threadIdx.x; i < chosen; i += kWarp) {
      const A value = (*this)(indices[i]);
      highest = value > highest ? value : highest;
    }
    centre_ = warp_max(highest);
    valid_ = valid_ && centre_ - centre_ == 0;
  }

 private:
  static __device__ float exponential_of(float x) { return expf(x); }
  static __device__ double exponential_of(double x) { return exp(x); }

  const T* logits_;
  int64_t count_;
  A centre_;
  bool valid_;
};

// The k largest, in order, ties to the lowest index; every lane may read `indices` afterwards.
template <typename T, typename A>
__device__ void choose(const Row<T, A>& row, int64_t chosen, int64_t* indices) {
  int64_t last = -1;
  for (int64_t i = 0; i < chosen; ++i) {
    // Of those that come after the last one: this lane's first, then the warp's.
    int64_t best = -1;
    A value = 0;
    for (int64_t n = threadIdx.x; n < row.count(); n += kWarp) {
      const A own = row(n);
      if (last >= 0 && !gpu::goes_before(row(last), last, own, n)) continue;
      if (best < 0 || gpu::goes_before(own, n, value, best)) {
        best = n;
        value = own;
      }
    }
    for (int lane = kWarp / 2; lane > 0; lane /= 2) {
      const int64_t other = __shfl_xor_sync(kAll, best, lane);
      const A other_value = __shfl_xor_sync(kAll, value, lane);
      if (other >= 0 && (best < 0 || gpu::goes_before(other_value, other, value, best))) {
        best = other;
        value = other_value;
      }
    }
    if (threadIdx.x == 0) indices[i] = best;
    last = best;
  }
  __syncwarp();
}

}  // namespace
}  // namespace cpl::cuda
