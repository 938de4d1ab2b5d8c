// layer_norm2d on CPU. Compiled once per instruction set.
#include <type_traits>

#include "layer_norm2d/cpu_last.h"
#include "layer_norm2d/cpu_planar.h"
#include "layer_norm2d/op.h"

namespace cpl {
namespace CPL_ISA {

static bool planar(const ImageView& view) { return view.stride_pixel == 1; }

void layer_norm2d_forward(const LayerNorm2dForward& args, int threads) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (!planar(args.x)) return forward_last<T, A>(args, threads);
    if (long_blocks<A>(args.size, 1)) return forward_planar<T, A, kLong>(args, threads);
    forward_planar<T, A, kShort>(args, threads);
  });
}

void layer_norm2d_backward(const LayerNorm2dBackward& args, int threads) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (!planar(args.x)) return backward_last<T, A>(args, threads);
    if (long_blocks<A>(args.size, 2)) return backward_planar<T, A, kLong>(args, threads);
    backward_planar<T, A, kShort>(args, threads);
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
