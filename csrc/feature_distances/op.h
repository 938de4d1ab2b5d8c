// feature_distances of one layer: what the CPU and the CUDA kernels are called with.
#pragma once

#include "common/dtype.h"
#include "common/isa.h"

namespace cpl {

// Over which direction of an image [rows, run] the L2 norm is taken: that of the channels.
enum class Norm : int { kNone = 0, kAcrossRows = 1, kAlongRun = 2 };  // cpl_kernels/feature_distances/memory.py

// An image is rows of a run each; the elements of a run are neighbours in memory. Planar images (NCHW) have their
// channels as rows, channels-last ones their pixels; without a norm an image in one piece is a single row.
struct DistancesSize {
  int64_t negatives;  // K
  int64_t batch;
  int64_t rows;
  int64_t run;
};

// Strides in elements.
struct Anchor {
  const void* data;  // [B, rows, run]
  int64_t stride_batch;
  int64_t stride_row;
};
struct Others {
  const void* data;  // [K, B, rows, run]
  int64_t stride_negative;
  int64_t stride_batch;
  int64_t stride_row;
};

// The distances and their gradient are contiguous, in fp32, or fp64 for fp64 images.
struct DistancesForward {
  Anchor anchor;
  Others others;
  void* distances;  // [K, B]
  DistancesSize size;
  int power;  // 1 or 2
  Norm norm;
  DType dtype;  // of anchor and others
};

struct DistancesBackward {
  const void* dy;  // [K, B]
  Anchor anchor;
  Others others;
  void* danchor;  // [B, rows, run] in one piece, or null: not needed
  void* dothers;  // [K, B, rows, run] in one piece, or null: not needed
  DistancesSize size;
  int power;
  Norm norm;
  DType dtype;
};

CPL_DECLARE_PER_ISA(void feature_distances_forward(const DistancesForward& args, int threads))
CPL_DECLARE_PER_ISA(void feature_distances_backward(const DistancesBackward& args, int threads))

#if defined(CPL_WITH_CUDA)
namespace cuda {
// Elements of the scratch buffer (fp32, or fp64 for fp64 images) that either pass wants.
int64_t feature_distances_scratch(const DistancesSize& size, Norm norm);
void feature_distances_forward(const DistancesForward& args, void* scratch, void* stream);
void feature_distances_backward(const DistancesBackward& args, void* scratch, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
