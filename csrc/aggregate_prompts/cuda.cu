// aggregate_prompts on CUDA: what is launched, over how many blocks.
#include <stdexcept>
#include <string>
#include <type_traits>

#include "aggregate_prompts/cuda_backward.h"
#include "aggregate_prompts/cuda_forward.h"
#include "aggregate_prompts/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument("aggregate_prompts: more than 2^31 - 1 blocks; split the batch");
  return static_cast<unsigned>(blocks);
}

template <typename Kernel>
size_t allow_shared(Kernel* kernel, size_t bytes, size_t fixed) {
  if (bytes + fixed <= 48 * 1024) return bytes;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "aggregate_prompts");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "aggregate_prompts");
  if (bytes + fixed > static_cast<size_t>(most)) {
    throw std::invalid_argument("aggregate_prompts: a resize of this size needs " + std::to_string(bytes + fixed) +
                                " bytes of shared memory and this GPU has " + std::to_string(most));
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "aggregate_prompts");
  return bytes;
}

Shape shape_of(const AggregateSize& s) {
  constexpr int64_t kMaxSide = 16384;  // 2 * size * source must fit an int
  if (s.batch * s.chosen > 0x7fffffff) throw std::invalid_argument("aggregate_prompts: more than 2^31 - 1 weights");
  const auto chosen = static_cast<unsigned>(s.chosen);
  if (!resized(s)) {
    const int64_t length = s.channels * s.height * s.width;
    return {s.batch, s.prompts, length, length, chosen, 1, kTileBits<false>, 0, 0, 0, 0};
  }
  for (const int64_t side : {s.height, s.width, s.source_height, s.source_width}) {
    if (side > kMaxSide) throw std::invalid_argument("aggregate_prompts: a side of a resize is beyond 16384");
  }
  return {s.batch,
          s.prompts,
          s.height * s.width,
          s.source_height * s.source_width,
          chosen,
          static_cast<unsigned>(s.channels),
          kTileBits<true>,
          static_cast<int>(s.height),
          static_cast<int>(s.width),
          static_cast<int>(s.source_height),
          static_cast<int>(s.source_width)};
}

}  // namespace

int64_t aggregate_prompts_planes(const AggregateSize& size) { return shape_of(size).planes(); }

void aggregate_prompts_forward(const AggregateForward& args, void* stream) {
  const Shape s = shape_of(args.size);
  const int64_t blocks = s.results() * cdiv(s.batch, kImages);
  if (blocks == 0) return;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (resized(args.size)) {
      const size_t shared = allow_shared(forward<T, A, true>, ForwardTable<A>::bytes(s), 0);
      CPL_LAUNCH((forward<T, A, true>), grid_size(blocks), dim3(kThreads), shared, stream, args, s);
    } else {
      CPL_LAUNCH((forward<T, A, false>), grid_size(blocks), dim3(kThreads), 0, stream, args, s);
    }
  });
}

void aggregate_prompts_backward(const AggregateBackward& args, void* partial, void* stream) {
  const Shape s = shape_of(args.size);
  const int64_t planes = s.planes(), pairs = s.batch * s.chosen;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const unsigned grid = grid_size(planes * s.prompts);
    A* const sums = static_cast<A*>(partial);
    if (resized(args.size)) {
      constexpr size_t kFixed = sizeof(A) * kThreads * kWarps + sizeof(int) * (kThreads + kWarps);
      const size_t shared = allow_shared(backward<T, A, true>, BackwardTable<A>::bytes(s), kFixed);
      CPL_LAUNCH((backward<T, A, true>), grid, dim3(kThreads), shared, stream, args, s, sums, planes);
    } else {
      CPL_LAUNCH((backward<T, A, false>), grid, dim3(kThreads), 0, stream, args, s, sums, planes);
    }
    if (args.dweights != nullptr && pairs > 0) {
      CPL_LAUNCH((sum_planes<A>), grid_size(pairs), dim3(kWarp), 0, stream, static_cast<const A*>(sums), planes,
                 args.dweights, args.weights_dtype);
    }
  });
}

}  // namespace cpl::cuda
