// feature_distances on CPU. Compiled once per instruction set.
#include <type_traits>

#include "feature_distances/cpu_across.h"
#include "feature_distances/cpu_along.h"
#include "feature_distances/cpu_plain.h"
#include "feature_distances/op.h"

namespace cpl {
namespace CPL_ISA {

// f(power as a constant, a null pointer of the element type)
template <typename Args, typename F>
static void choose(const Args& args, const F& f) {
  dispatch(args.dtype, [&](auto* element) {
    if (args.power == 1) return f(std::integral_constant<int, 1>(), element);
    f(std::integral_constant<int, 2>(), element);
  });
}

void feature_distances_forward(const DistancesForward& args, int threads) {
  choose(args, [&](auto power, auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (args.norm == Norm::kNone) return forward_plain<power, T, A>(args, threads);
    if (args.norm == Norm::kAcrossRows) return forward_across<power, T, A>(args, threads);
    forward_along<power, T, A>(args, threads);
  });
}

void feature_distances_backward(const DistancesBackward& args, int threads) {
  choose(args, [&](auto power, auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (args.norm == Norm::kNone) return backward_plain<power, T, A>(args, threads);
    if (args.norm == Norm::kAcrossRows) return backward_across<power, T, A>(args, threads);
    backward_along<power, T, A>(args, threads);
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
