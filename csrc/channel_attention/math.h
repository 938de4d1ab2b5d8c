// The arithmetic of channel_attention beside its matrix products, shared by the CPU and the CUDA kernels.
//
//   n = max(||x||, 1e-12)                        for each channel of q and k
//   S_ij = <q_i, k_j> / (n_i n_j)                the products are of q and k as they are: no normalised copies
//   A = softmax over j of t S,  y = A v
//
// and backward, with dA = dy v^T and D = t A * (dA - rowsum(dA * A)), the gradient of S:
//
//   dv = A^T dy
//   dq_i = sum_j M_ij k_j - a_i q_i,  M_ij = D_ij / (n_i n_j),  a_i = sum_j D_ij S_ij / n_i^2
//   dk_j = sum_i M_ij q_i - b_j k_j,                            b_j = sum_i D_ij S_ij / n_j^2
//
// where a (b) is 0 for a channel whose norm was clamped.
#pragma once

#include "common/scalar.h"

namespace cpl {
namespace CPL_ISA {

constexpr double kMinNorm = 1e-12;  // as of torch.nn.functional.normalize

// Of a sum of squares. A NaN stays one.
template <typename A>
CPL_HD A attention_norm(A squares) {
  const A norm = square_root(squares);
  return norm < static_cast<A>(kMinNorm) ? static_cast<A>(kMinNorm) : norm;
}

// a_i or b_j, from the sum of D * S along the channel's row or column.
template <typename A>
CPL_HD A attention_projection(A along, A norm) {
  return norm > static_cast<A>(kMinNorm) ? along / (norm * norm) : A(0);
}

}  // namespace CPL_ISA
}  // namespace cpl
