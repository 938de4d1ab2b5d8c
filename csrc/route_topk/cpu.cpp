// route_topk on CPU. Compiled once per instruction set. A row at a time; rows are few and short, so that threads
// are started for thousands only.
#include <atomic>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "route_topk/op.h"
#include "route_topk/row.h"

namespace cpl {
namespace CPL_ISA {

bool route_topk_forward(const RouteForward& args, int threads) {
  const auto [batch, prompts, chosen] = args.size;
  std::atomic<bool> valid{true};
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const size_t scratch = sizeof(A) * static_cast<size_t>(2 * prompts + chosen);
    each_row(batch, prompts, threads, scratch, [&, prompts = prompts, chosen = chosen](int64_t b, char* own) {
      A* const row = reinterpret_cast<A*>(own);
      A* const weights = row + 2 * prompts;
      if (!read_row(static_cast<const T*>(args.logits) + b * prompts, prompts, row)) {
        valid = false;
        return;
      }
      choose(row, prompts, chosen, weights, args.indices + b * chosen);
      weigh(row, prompts, args.indices + b * chosen, chosen, args.renormalize, row + prompts, weights);
      for (int64_t i = 0; i < chosen; ++i) store(static_cast<T*>(args.weights) + b * chosen + i, weights[i]);
    });
  });
  return valid;
}

void route_topk_backward(const RouteBackward& args, int threads) {
  const auto [batch, prompts, chosen] = args.size;
  for (int64_t p = 0; p < batch * chosen; ++p) {
    if (args.indices[p] < 0 || args.indices[p] >= prompts) {
      throw std::invalid_argument("indices must be from 0 to N-1 = " + std::to_string(prompts - 1) + ", got " +
                                  std::to_string(args.indices[p]));
    }
  }
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const size_t scratch = sizeof(A) * static_cast<size_t>(3 * prompts + 2 * chosen);
    each_row(batch, prompts, threads, scratch, [&, prompts = prompts, chosen = chosen](int64_t b, char* own) {
      A* const row = reinterpret_cast<A*>(own);
      A* const p = row + prompts;
      A* const gradient = p + prompts;
      A* const weights = gradient + prompts;
      A* const dweights = weights + chosen;
      const int64_t* const indices = args.indices + b * chosen;
      read_row(static_cast<const T*>(args.logits) + b * prompts, prompts, row);
      weigh(row, prompts, indices, chosen, args.renormalize, p, weights);
      A mean = 0;
      for (int64_t i = 0; i < chosen; ++i) {
        dweights[i] = load(static_cast<const T*>(args.dweights) + b * chosen + i);
        mean += dweights[i] * weights[i];
      }
      for (int64_t n = 0; n < prompts; ++n) gradient[n] = 0;
      if (args.renormalize) {
        for (int64_t i = 0; i < chosen; ++i) gradient[indices[i]] = weights[i] * (dweights[i] - mean);
      } else {
        A sum = 0;
        for (int64_t n = 0; n < prompts; ++n) sum += p[n];
        for (int64_t i = 0; i < chosen; ++i) gradient[indices[i]] = dweights[i];
        for (int64_t n = 0; n < prompts; ++n) gradient[n] = p[n] / sum * (gradient[n] - mean);
      }
      for (int64_t n = 0; n < prompts; ++n) store(static_cast<T*>(args.dlogits) + b * prompts + n, gradient[n]);
    });
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
