// route_negatives on CUDA: a warp a draw, one launch. The list that is shuffled stands in shared memory.
#include <string>
#include <type_traits>

#include "common/launch.h"
#include "common/philox.h"
#include "route_negatives/op.h"
#include "route_topk/warp.h"

namespace cpl::cuda {
namespace {

constexpr int64_t kMaxShared = 48 * 1024;

template <typename T, typename A>
__global__ void __launch_bounds__(kWarp) forward(NegativesForward args) {
  CPL_DYNAMIC_SHARED(int64_t, positive);  // [k]: what the router chose
  const auto& s = args.size;
  int* const pool = reinterpret_cast<int*>(positive + s.chosen);  // [N]: what it left, ascending
  const unsigned batch = static_cast<unsigned>(s.batch);
  const int64_t image = blockIdx.x % batch, draw = blockIdx.x / batch;
  const int lane = static_cast<int>(threadIdx.x);
  int64_t* const indices = args.indices + (draw * s.batch + image) * s.chosen;
  T* const weights = static_cast<T*>(args.weights) + (draw * s.batch + image) * s.chosen;
  Row<T, A> logits(static_cast<const T*>(args.logits) + image * s.prompts, s.prompts);
  choose(logits, s.chosen, positive);

  int count = 0;
  for (int64_t first = 0; first < s.prompts; first += kWarp) {
    const int64_t n = first + lane;
    bool left = n < s.prompts;
    for (int64_t i = 0; i < s.chosen; ++i) left = left && positive[i] != n;
    const unsigned votes = __ballot_sync(kAll, left);
    if (left) pool[count + __popc(votes & ((1u << lane) - 1))] = static_cast<int>(n);
    count += __popc(votes);
  }
  __syncwarp();
  if (lane == 0) {
    for (int64_t i = 0; i < s.chosen; ++i) {
      const uint64_t bits = gpu::philox(static_cast<uint32_t>(image), static_cast<uint32_t>(draw),
                                        static_cast<uint32_t>(i), 0, static_cast<uint64_t>(*args.seed));
      const int64_t at = i + gpu::philox_below(count - i, bits);
      const int taken = pool[at];
      pool[at] = pool[i];
      pool[i] = taken;
      indices[i] = taken;
    }
  }
  __syncwarp();
  const int64_t* const weighed = args.positive_weights ? positive : indices;
  if (args.renormalize) logits.centre_at(weighed, s.chosen);
  const A total = args.renormalize ? logits.sum_at(weighed, s.chosen) : logits.sum();
  for (int64_t i = lane; i < s.chosen; i += kWarp) store(weights + i, logits.exponential(weighed[i]) / total);
}

}  // namespace

void route_negatives(const NegativesForward& args, void* stream) {
  const auto& s = args.size;
  const int64_t shared =
      s.chosen * static_cast<int64_t>(sizeof(int64_t)) + s.prompts * static_cast<int64_t>(sizeof(int));
  if (shared > kMaxShared) {
    throw std::invalid_argument("route_negatives: the CUDA kernel keeps 4 N + 8 k bytes in shared memory, at most " +
                                std::to_string(kMaxShared) + ", got N = " + std::to_string(s.prompts));
  }
  if (s.batch == 0) return;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    CPL_LAUNCH((forward<T, typename Arithmetic<T>::type>), static_cast<unsigned>(s.batch * s.negatives), dim3(kWarp),
               static_cast<size_t>(shared), stream, args);
  });
}

}  // namespace cpl::cuda
