// route_negatives on CPU. Compiled once per instruction set.
#include <atomic>
#include <type_traits>

#include "common/philox.h"
#include "route_negatives/op.h"
#include "route_topk/row.h"

namespace cpl {
namespace CPL_ISA {

bool route_negatives(const NegativesForward& args, int threads) {
  const auto [batch, prompts, chosen, negatives] = args.size;
  const uint64_t seed = static_cast<uint64_t>(*args.seed);
  std::atomic<bool> valid{true};
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const size_t scratch = sizeof(A) * static_cast<size_t>(2 * prompts + chosen) +
                           sizeof(int64_t) * static_cast<size_t>(2 * prompts + chosen + 1);
    const auto one_row = [&, batch = batch, prompts = prompts, chosen = chosen, negatives = negatives](int64_t b,
                                                                                                       char* own) {
      int64_t* const pool = reinterpret_cast<int64_t*>(own);  // what a draw shuffles
      int64_t* const left = pool + prompts;                   // the prompts that were not chosen, ascending
      int64_t* const positive = left + prompts;
      A* const row = reinterpret_cast<A*>(positive + chosen);
      A* const weights = row + 2 * prompts;
      if (!read_row(static_cast<const T*>(args.logits) + b * prompts, prompts, row)) {
        valid = false;
        return;
      }
      choose(row, prompts, chosen, weights, positive);
      for (int64_t n = 0; n < prompts; ++n) pool[n] = 0;
      for (int64_t i = 0; i < chosen; ++i) pool[positive[i]] = 1;
      int64_t count = 0;
      for (int64_t n = 0; n < prompts; ++n) {
        if (pool[n] == 0) left[count++] = n;
      }
      if (args.positive_weights) weigh(row, prompts, positive, chosen, args.renormalize, row + prompts, weights);
      for (int64_t j = 0; j < negatives; ++j) {
        for (int64_t n = 0; n < count; ++n) pool[n] = left[n];
        for (int64_t i = 0; i < chosen; ++i) {
          const uint64_t bits =
              philox(static_cast<uint32_t>(b), static_cast<uint32_t>(j), static_cast<uint32_t>(i), 0, seed);
          const int64_t at = i + philox_below(count - i, bits), taken = pool[at];
          pool[at] = pool[i];
          pool[i] = taken;
        }
        if (!args.positive_weights) weigh(row, prompts, pool, chosen, args.renormalize, row + prompts, weights);
        for (int64_t i = 0; i < chosen; ++i) {
          const int64_t place = (j * batch + b) * chosen + i;
          args.indices[place] = pool[i];
          store(static_cast<T*>(args.weights) + place, weights[i]);
        }
      }
    };
    each_row(batch, prompts, threads, scratch, one_row);
  });
  return valid;
}

}  // namespace CPL_ISA
}  // namespace cpl
