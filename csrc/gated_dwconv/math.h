// The arithmetic of gated_dwconv at one element:
//
//   y = phi(a) * g                   a, g: the two halves of the convolution; phi: gelu or the identity
//   da = dy * g * phi'(a),  dg = dy * phi(a)
//   gelu(a) = a P(a),  gelu'(a) = P(a) + a p(a),  P and p the normal distribution and its density
#pragma once

#include "common/normal.h"

namespace cpl {
namespace CPL_ISA {

template <bool kGelu, typename A>
CPL_HD A gated_value(A a, A g) {
  if constexpr (kGelu) return a * normal(a).below * g;
  return a * g;
}

template <typename A>
struct GatedGradient {
  A da;
  A dg;
  A y;  // the value once more, to the bit
};

template <bool kGelu, typename A>
CPL_HD GatedGradient<A> gated_gradient(A dy, A a, A g) {
  if constexpr (kGelu) {
    const Normal<A> n = normal(a);
    return {dy * g * (n.below + a * n.density), dy * a * n.below, a * n.below * g};
  }
  return {dy * g, dy * a, a * g};
}

}  // namespace CPL_ISA
}  // namespace cpl
