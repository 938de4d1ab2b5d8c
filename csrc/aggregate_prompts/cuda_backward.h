// Backward of aggregate_prompts on CUDA: a block takes a tile of one prompt, lists the pairs (image, place) that chose
// it in shared memory, in order, and walks the list; it writes the prompt's gradient once and leaves one partial sum
// for each pair, which a second kernel adds up in order. No atomics.
#pragma once

#include <cmath>
#include <cstdint>

#include "aggregate_prompts/cuda_shape.h"
#include "aggregate_prompts/cuda_tables.h"
#include "aggregate_prompts/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

// partial: [B * k, planes]; every entry is written. Left to itself, ptxas aims for five blocks on a multiprocessor
// and spills for it; four have room.
template <typename T, typename A, bool kResize>
__global__ void __launch_bounds__(kThreads, 4) backward(AggregateBackward args, Shape s, A* partial, int64_t planes) {
  CPL_DYNAMIC_SHARED(unsigned char, memory);
  constexpr int kPer = kPerThread<kResize>;
  __shared__ int counts[kWarps];
  __shared__ int list[kThreads];  // pairs of this prompt, ascending, counted from the first of the round
  __shared__ A dots[kThreads][kWarps];
  const unsigned prompts = static_cast<unsigned>(s.prompts), tiles = s.tiles(s.source);
  const unsigned plane = blockIdx.x / prompts, prompt = blockIdx.x % prompts;
  const int64_t channel = plane / tiles, first = static_cast<int64_t>(plane % tiles) << s.tile_bits,
                pairs = s.batch * s.chosen;
  const int64_t own = (prompt * static_cast<int64_t>(s.channels) + channel) * s.source;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  A value[kPer], total[kPer];
  for (int e = 0; e < kPer; ++e) {
    const int64_t o = first + e * kThreads + threadIdx.x;
    const bool read = o < s.source && args.dweights != nullptr;
    value[e] = read ? static_cast<A>(load(static_cast<const T*>(args.prompts) + own + o)) : A(0);
    total[e] = 0;
  }
  const auto run = [&](const auto& read) {
    for (int64_t start = 0; start < pairs; start += kThreads) {
      const int64_t candidate = start + threadIdx.x;
      const int64_t index = candidate < pairs ? args.indices[candidate] : 0;
      const bool mine = candidate < pairs && index == static_cast<int64_t>(prompt);
      const unsigned votes = __ballot_sync(0xffffffffu, mine);
      if (lane == 0) counts[warp] = __popc(votes);
      __syncthreads();
      int before = 0, found = 0;
      for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? counts[w] : 0;
        found += counts[w];
      }
      if (mine) list[before + __popc(votes & ((1u << lane) - 1))] = static_cast<int>(threadIdx.x);
      __syncthreads();
      for (int i = 0; i < found; ++i) {
        const int64_t pair = start + list[i];
        const int64_t image = static_cast<unsigned>(pair) / s.chosen;
        const T* const dy = static_cast<const T*>(args.dy) + (image * s.channels + channel) * s.area;
        const A weight = weight_at<A>(args.weights, args.weights_dtype, pair);
        A dot = 0;
#pragma unroll
        for (int e = 0; e < kPer; ++e) {
          const int64_t o = first + e * kThreads + threadIdx.x;
          if (o >= s.source) continue;
          const A d = read(dy, o);
          total[e] += weight * d;
          dot += d * value[e];
        }
        dot = warp_sum(dot);
        if (lane == 0) dots[i][warp] = dot;
      }
      __syncthreads();
      if (args.dweights == nullptr) continue;
      if (static_cast<int>(threadIdx.x) < found) {
        A sum = 0;
        for (int w = 0; w < kWarps; ++w) sum += dots[threadIdx.x][w];
        partial[(start + list[threadIdx.x]) * planes + plane] = sum;
      }
      if (prompt == 0 && (index < 0 || index >= s.prompts)) {  // a pair of nobody's: someone must say so
        partial[candidate * planes + plane] = static_cast<A>(NAN);
      }
    }
  };
  if constexpr (kResize) {
    const BackwardTable<A> table(memory, s);
    run([&](const T* dy, int64_t o) {
      const int pixel = static_cast<int>(o);
      return table.read(dy, pixel / s.source_width, pixel % s.source_width, s);
    });
  } else {
    run([&](const T* dy, int64_t o) { return static_cast<A>(load(dy + o)); });
  }
  if (args.dprompts == nullptr) return;
  for (int e = 0; e < kPer; ++e) {
    const int64_t o = first + e * kThreads + threadIdx.x;
    if (o < s.source) store(static_cast<T*>(args.dprompts) + own + o, total[e]);
  }
}

// A warp a pair; in fp64, so that thousands of planes lose nothing.
template <typename A>
__global__ void __launch_bounds__(kWarp) sum_planes(const A* partial, int64_t planes, void* dweights, DType dtype) {
  const int64_t pair = blockIdx.x;
  double sum = 0;
  for (int64_t p = threadIdx.x; p < planes; p += kWarp) sum += static_cast<double>(partial[pair * planes + p]);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) store_weight(dweights, dtype, pair, sum);
}

}  // namespace
}  // namespace cpl::cuda
