// feature_distances as Python calls it.
#pragma once

#include "common/pyview.h"
#include "feature_distances/op.h"

namespace cpl::bind {

inline DistancesForward feature_distances_forward_args(Address anchor, int64_t anchor_batch, int64_t anchor_row,
                                                       Address others, int64_t others_negative, int64_t others_batch,
                                                       int64_t others_row, Address distances, int64_t negatives,
                                                       int64_t batch, int64_t rows, int64_t run, int power, int norm,
                                                       int dtype) {
  return {{pointer(anchor), anchor_batch, anchor_row},
          {pointer(others), others_negative, others_batch, others_row},
          pointer(distances),
          {negatives, batch, rows, run},
          power,
          static_cast<Norm>(norm),
          static_cast<DType>(dtype)};
}

inline DistancesBackward feature_distances_backward_args(Address anchor, int64_t anchor_batch, int64_t anchor_row,
                                                         Address others, int64_t others_negative, int64_t others_batch,
                                                         int64_t others_row, Address dy, Address danchor,
                                                         Address dothers, int64_t negatives, int64_t batch,
                                                         int64_t rows, int64_t run, int power, int norm, int dtype) {
  return {pointer(dy),
          {pointer(anchor), anchor_batch, anchor_row},
          {pointer(others), others_negative, others_batch, others_row},
          pointer(danchor),
          pointer(dothers),
          {negatives, batch, rows, run},
          power,
          static_cast<Norm>(norm),
          static_cast<DType>(dtype)};
}

inline void feature_distances_forward(Address anchor, int64_t anchor_batch, int64_t anchor_row, Address others,
                                      int64_t others_negative, int64_t others_batch, int64_t others_row,
                                      Address distances, int64_t negatives, int64_t batch, int64_t rows, int64_t run,
                                      int power, int norm, int dtype, int threads) {
  const DistancesForward args =
      feature_distances_forward_args(anchor, anchor_batch, anchor_row, others, others_negative, others_batch,
                                     others_row, distances, negatives, batch, rows, run, power, norm, dtype);
  CPL_CALL_ISA(feature_distances_forward(args, threads));
}

inline void feature_distances_backward(Address anchor, int64_t anchor_batch, int64_t anchor_row, Address others,
                                       int64_t others_negative, int64_t others_batch, int64_t others_row, Address dy,
                                       Address danchor, Address dothers, int64_t negatives, int64_t batch, int64_t rows,
                                       int64_t run, int power, int norm, int dtype, int threads) {
  const DistancesBackward args = feature_distances_backward_args(
      anchor, anchor_batch, anchor_row, others, others_negative, others_batch, others_row, dy, danchor, dothers,
      negatives, batch, rows, run, power, norm, dtype);
  CPL_CALL_ISA(feature_distances_backward(args, threads));
}

#if defined(CPL_WITH_CUDA)
inline int64_t feature_distances_scratch(int64_t negatives, int64_t batch, int64_t rows, int64_t run, int norm) {
  return cuda::feature_distances_scratch({negatives, batch, rows, run}, static_cast<Norm>(norm));
}

inline void feature_distances_forward_cuda(Address anchor, int64_t anchor_batch, int64_t anchor_row, Address others,
                                           int64_t others_negative, int64_t others_batch, int64_t others_row,
                                           Address distances, int64_t negatives, int64_t batch, int64_t rows,
                                           int64_t run, int power, int norm, int dtype, Address scratch,
                                           Address stream) {
  cuda::feature_distances_forward(
      feature_distances_forward_args(anchor, anchor_batch, anchor_row, others, others_negative, others_batch,
                                     others_row, distances, negatives, batch, rows, run, power, norm, dtype),
      pointer(scratch), pointer(stream));
}

inline void feature_distances_backward_cuda(Address anchor, int64_t anchor_batch, int64_t anchor_row, Address others,
                                            int64_t others_negative, int64_t others_batch, int64_t others_row,
                                            Address dy, Address danchor, Address dothers, int64_t negatives,
                                            int64_t batch, int64_t rows, int64_t run, int power, int norm, int dtype,
                                            Address scratch, Address stream) {
  cuda::feature_distances_backward(
      feature_distances_backward_args(anchor, anchor_batch, anchor_row, others, others_negative, others_batch,
                                      others_row, dy, danchor, dothers, negatives, batch, rows, run, power, norm,
                                      dtype),
      pointer(scratch), pointer(stream));
}
#endif

}  // namespace cpl::bind
