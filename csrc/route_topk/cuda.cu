// route_topk on CUDA: a warp a row, one launch.
#include <type_traits>

#include "common/launch.h"
#include "route_topk/op.h"
#include "route_topk/warp.h"

namespace cpl::cuda {
namespace {

template <typename T, typename A>
__global__ void __launch_bounds__(kWarp) forward(RouteForward args) {
  const int64_t row = blockIdx.x, chosen = args.size.chosen;
  int64_t* const indices = args.indices + row * chosen;
  const Row<T, A> logits(static_cast<const T*>(args.logits) + row * args.size.prompts, args.size.prompts);
  choose(logits, chosen, indices);
  const A total = args.renormalize ? logits.sum_at(indices, chosen) : logits.sum();
  for (int64_t i = threadIdx.x; i < chosen; i += kWarp) {
    store(static_cast<T*>(args.weights) + row * chosen + i, logits.exponential(indices[i]) / total);
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kWarp) backward(RouteBackward args) {
  const int64_t row = blockIdx.x, chosen = args.size.chosen, prompts = args.size.prompts;
  const int64_t* const indices = args.indices + row * chosen;
  const T* const dweights = static_cast<const T*>(args.dweights) + row * chosen;
  T* const dlogits = static_cast<T*>(args.dlogits) + row * prompts;
  Row<T, A> logits(static_cast<const T*>(args.logits) + row * prompts, prompts);
  if (args.renormalize) logits.centre_at(indices, chosen);
  const A total = args.renormalize ? logits.sum_at(indices, chosen) : logits.sum();
  A mean = 0;
  for (int64_t i = threadIdx.x; i < chosen; i += kWarp) {
    mean += static_cast<A>(load(dweights + i)) * (logits.exponential(indices[i]) / total);
  }
  mean = warp_sum(mean);
  for (int64_t n = threadIdx.x; n < prompts; n += kWarp) {
    bool picked = false;
    A upstream = 0;
    for (int64_t i = 0; i < chosen; ++i) {
      if (indices[i] != n) continue;
      picked = true;
      upstream = load(dweights + i);
    }
    const A gradient = logits.exponential(n) / total * (upstream - mean);
    store(dlogits + n, picked || !args.renormalize ? gradient : A(0));
  }
}

}  // namespace

void route_topk_forward(const RouteForward& args, void* stream) {
  if (args.size.batch == 0) return;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    CPL_LAUNCH((forward<T, typename Arithmetic<T>::type>), static_cast<unsigned>(args.size.batch), dim3(kWarp), 0,
               stream, args);
  });
}

void route_topk_backward(const RouteBackward& args, void* stream) {
  if (args.size.batch == 0) return;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    CPL_LAUNCH((backward<T, typename Arithmetic<T>::type>), static_cast<unsigned>(args.size.batch), dim3(kWarp), 0,
               stream, args);
  });
}

}  // namespace cpl::cuda
