// 1x1 convolution on CPUs: a small weight times a very wide map. Every number of a result is summed in the same order
// however the work is divided among threads.
#include "pointwise_conv/cpu_product.h"
#include "pointwise_conv/cpu_sums.h"

namespace cpl {
namespace CPL_ISA {

void pointwise_conv_forward(const PointwiseConvForward& args, int threads) {
  dispatch(args.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    Product<T, typename Arithmetic<T>::type>(args, threads).run();
  });
}

void pointwise_conv_backward(const PointwiseConvBackward& args, int threads) {
  dispatch(args.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = typename Arithmetic<T>::type;
    const auto [batch, in, out, pixels] = args.size;
    A* const dweight = static_cast<A*>(args.dweight);
    // One side's channels are turned, the other's are read where they lie. Turning those of dy means that the result
    // must be turned too, which takes about four times as long a number.
    const bool natural = in * batch * pixels <= out * batch * pixels + 4 * in * out;
    if (dweight != nullptr && natural) {
      Correlator<T, A>({args.dy, args.x, batch, out, in, pixels}, dweight, in, 1, threads).run();
    } else if (dweight != nullptr) {
      Correlator<T, A>({args.x, args.dy, batch, in, out, pixels}, dweight, 1, in, threads).run();
    }
    if (args.dbias != nullptr) sum_channels<T>(args.dy, batch, out, pixels, static_cast<A*>(args.dbias), threads);
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
