// aggregate_prompts on CPU. Compiled once per instruction set. Every work item has fixed bounds and sums in a fixed
// order: the same bits at any number of threads.
#include <type_traits>

#include "aggregate_prompts/cpu_flat.h"
#include "aggregate_prompts/cpu_resized.h"
#include "aggregate_prompts/cpu_rows.h"
#include "aggregate_prompts/op.h"
#include "aggregate_prompts/plan.h"
#include "common/pages.h"

namespace cpl {
namespace CPL_ISA {

void aggregate_prompts_forward(const AggregateForward& args, int threads) {
  const Plan plan = make_plan(args.weights, args.weights_dtype, args.indices, args.size);
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    prefer_huge_pages(args.y, bytes<T>(args.size.batch, args.size.channels * args.size.height * args.size.width));
    if (resized(args.size)) {
      forward_resized<T, A>(args, plan, threads);
    } else {
      forward_flat<T, A>(args, plan, threads);
    }
  });
}

void aggregate_prompts_backward(const AggregateBackward& args, int threads) {
  const Plan plan = make_plan(args.weights, args.weights_dtype, args.indices, args.size);
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (args.dprompts != nullptr) prefer_huge_pages(args.dprompts, bytes<T>(args.size.prompts, elements(args.size)));
    if (resized(args.size)) {
      backward_resized<T, A>(args, plan, threads);
    } else {
      backward_flat<T, A>(args, plan, threads);
    }
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
