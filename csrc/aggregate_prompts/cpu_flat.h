// aggregate_prompts on CPU without a resize: the prompts are rows of P = C * S_h * S_w numbers.
//
// A work item is a run of P: its piece of every used prompt stays in cache while all images that want it are served.
#pragma once

#include <algorithm>
#include <cstdint>

#include "aggregate_prompts/cpu_dots.h"
#include "aggregate_prompts/cpu_rows.h"
#include "aggregate_prompts/op.h"
#include "aggregate_prompts/plan.h"
#include "common/parallel.h"
#include "common/stream.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kMaxTile = 4096;        // elements: longer runs measured no faster
constexpr int64_t kMinTile = 256;         // below, the runs are too short for the hardware's prefetcher
constexpr int64_t kCacheBytes = 1 << 20;  // what the pieces of a run may take of the second-level cache
constexpr size_t kStreamBytes = 4 << 20;  // the least result that is written past the caches

int64_t elements(const AggregateSize& s) { return s.channels * s.source_height * s.source_width; }

template <typename T>
bool streamed(int64_t rows, int64_t length) {
  return is_streamed(bytes<T>(rows, length), kStreamBytes);
}

// Runs of P, and chunks of runs; functions of the sizes alone, never of the thread count.
struct Tiling {
  int64_t length, tile, count, chunks;

  Tiling(int64_t length_in, int64_t pieces, int64_t item) : length(length_in), tile(kMaxTile) {
    while (tile > kMinTile && tile * pieces * item > kCacheBytes) tile /= 2;
    count = (length + tile - 1) / tile;
    chunks = std::min(count, kMaxChunks);
  }
  int64_t chunk_begin(int64_t chunk) const { return count * chunk / chunks; }
};

template <typename T, typename A>
void forward_flat(const AggregateForward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const Tiling tiling(elements(size), static_cast<int64_t>(plan.used.size()), sizeof(T));
  const bool stream = streamed<T>(size.batch, tiling.length);
  const T* const prompts = static_cast<const T*>(args.prompts);
  T* const y = static_cast<T*>(args.y);
  const size_t scratch = static_cast<size_t>(tiling.tile) * (sizeof(A) + sizeof(T));
  parallel_for(tiling.chunks, threads, scratch, [&](int64_t chunk, char* own) {
    for (int64_t i = tiling.chunk_begin(chunk); i < tiling.chunk_begin(chunk + 1); ++i) {
      const int64_t first = i * tiling.tile, n = std::min(tiling.tile, tiling.length - first);
      for (const int64_t b : plan.order) {
        const int64_t place = b * size.chosen;
        write(y + b * tiling.length + first, n, stream, reinterpret_cast<A*>(own), [&](A* out) {
          mix(
              size.chosen, [&](int64_t c) { return prompts + args.indices[place + c] * tiling.length + first; },
              [&](int64_t c) { return plan.weights[static_cast<size_t>(place + c)]; }, out, n);
        });
      }
    }
    stream_fence();
  });
}

template <typename T, typename A>
void backward_flat(const AggregateBackward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const Tiling tiling(elements(size), size.batch, sizeof(T));
  const bool stream = streamed<T>(size.prompts, tiling.length);
  const T* const prompts = static_cast<const T*>(args.prompts);
  const T* const dy = static_cast<const T*>(args.dy);
  T* const dprompts = static_cast<T*>(args.dprompts);
  const Dots dots(tiling.chunks, args);
  const size_t scratch = static_cast<size_t>(tiling.tile) * (sizeof(A) + sizeof(T));
  parallel_for(tiling.chunks, threads, scratch, [&](int64_t chunk, char* own) {
    const int64_t begin = tiling.chunk_begin(chunk), end = tiling.chunk_begin(chunk + 1);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * tiling.tile, n = std::min(tiling.tile, tiling.length - first);
      each_prompt(
          plan, size.prompts,
          [&](int64_t prompt, int64_t slot) {
            const int64_t last = plan.first_pair[static_cast<size_t>(slot) + 1];
            const auto fill = [&](A* acc) {
              for (int64_t at = plan.first_pair[static_cast<size_t>(slot)]; at < last; at += 2) {
                const int64_t rows = std::min<int64_t>(2, last - at);
                const T* d[2];
                A weights[2];
                double* sums[2];
                for (int64_t r = 0; r < rows; ++r) {
                  const Pair& pair = plan.pairs[static_cast<size_t>(at + r)];
                  d[r] = dy + pair.image * tiling.length + first;
                  weights[r] = static_cast<A>(plan.weights[static_cast<size_t>(pair.place)]);
                  sums[r] = dots.at(chunk, pair.place);
                }
                gather(rows, at == plan.first_pair[static_cast<size_t>(slot)], d, weights,
                       prompts + prompt * tiling.length + first, acc, sums, n);
              }
            };
            if (dprompts == nullptr) return fill(nullptr);
            write(dprompts + prompt * tiling.length + first, n, stream, reinterpret_cast<A*>(own), fill);
          },
          [&](int64_t prompt) {
            if (dprompts != nullptr) write_zeros(dprompts + prompt * tiling.length + first, n);
          });
    }
    stream_fence();
  });
  dots.finish(args);
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
