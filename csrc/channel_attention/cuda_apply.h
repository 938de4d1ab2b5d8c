// The second matrix product of channel_attention on the tensor cores: of a head's small matrix and its pixels.
//
// The matrix lies in shared memory in two tf32 parts, in the order in which lanes want it. No pixel does: a lane reads
// and writes 8 or 16 bytes of a row at a time, and a step's column n = g is pixel 4 g + j of 32, for each j its own
// step.
#pragma once

#include <cstdint>

#include "channel_attention/cuda_runs.h"
#include "channel_attention/cuda_shape.h"
#include "channel_attention/cuda_words.h"
#include "channel_attention/op.h"

namespace cpl::cuda {
namespace {

constexpr int kApplyWarps = 8;
constexpr int kApplyThreads = kApplyWarps * kLanes;
// Blocks of a multiprocessor: 128 registers, which single pixels' addresses have no room in.
template <bool kWide>
constexpr int kApplyBlocks = kWide ? 2 : 1;
constexpr int kOutRows = 48;  // channels of a warp's results
constexpr int kOutTiles = kOutRows / 16;
constexpr int kKept = 12;  // steps along k whose matrix lies in shared memory: 96 channels
constexpr int kRoles = 3;  // at the most

// A step's 16 x 8 of the matrix, in two parts.
struct Fragment {
  float4 part[kParts][kLanes];
};

struct Role {
  Factor<float> factor;
  ImageView x;  // and own
};

struct Roles {
  Role role[kRoles];
  unsigned count;
};

// How the pixels and rows of a head are shared out. A result is one lane's sum over all channels, so results depend on
// none of this.
struct Walk {
  unsigned rounds;   // of a block's warps over the pixels
  unsigned walkers;  // blocks that share the rounds
  unsigned bands;    // blocks along the rows
  int groups;        // of kOutRows rows in a block
  int kept;          // steps whose matrix lies in shared memory at once
};

// Fragments [group][step][tile of its rows], from row `row` and step `step` on.
__device__ inline void keep(const Factor<float>& factor, const float* matrix, int width, int row, int step, int count,
                            int steps, Fragment* fragments) {
  const int64_t along_row = factor.transposed ? 1 : width, along_column = factor.transposed ? width : 1;
#pragma unroll 2
  for (int n = threadIdx.x; n < count * kLanes; n += kApplyThreads) {
    const int lane = n % kLanes, f = n / kLanes;
    const int tile = f / (steps * kOutTiles) * kOutTiles + f % kOutTiles;
    const int i = row + tile * 16 + lane / 4, k = (step + f / kOutTiles % steps) * 8 + lane % 4;
    float high[4], low[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int at_i = i + r % 2 * 8, at_k = k + r / 2 * 4;
      const bool inside = at_i < width && at_k < width;
      split_tf32(inside ? matrix[at_i * along_row + at_k * along_column] : 0.0f, high[r], low[r]);
    }
    fragments[f].part[0][lane] = make_float4(high[0], high[1], high[2], high[3]);
    fragments[f].part[1][lane] = make_float4(low[0], low[1], low[2], low[3]);
  }
}

template <typename T>
constexpr int kRowWords = 4 / kPerWord<T>;  // of four pixels

template <typename T>
constexpr int kAtOnce = 12 / kRowWords<T>;  // steps whose pixels are read before the first is multiplied

using Results = float[kOutTiles][kColumns][4];

// Pixels of some steps, as a lane reads them.
template <typename T>
using Group = uint32_t[kAtOnce<T>][2][kRowWords<T>];

// x points to channel t of the first step; so many channels and pixels are left from there.
template <bool kWide, typename T>
__device__ void read_group(const T* x, const Plane<const T>& plane, int channels, int left, Group<T>& words) {
#pragma unroll
  for (int s = 0; s < kAtOnce<T>; ++s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      read_words<kWide, kWide ? 1 : 8>(x, plane.stride_pixel, 8 * s + 4 * r < channels ? left : 0, words[s][r]);
      x += 4 * plane.stride_channel;
    }
  }
}

// sum += M x for some steps.
template <typename T>
__device__ void multiply_group(const Fragment* fragments, int steps, const Group<T>& words, Results& sum) {
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int s = 0; s < kAtOnce<T>; ++s) {
    if (s >= steps) break;
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) {
      const Fragment& fragment = fragments[s * kOutTiles + m];
      const float4 high = fragment.part[0][lane], low = fragment.part[1][lane];
      const float a[kParts][4] = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int w = j / kPerWord<T>, e = j % kPerWord<T>;
        const float above = element<T>(words[s][0][w], e), below = element<T>(words[s][1][w], e);
        if constexpr (kExact<T>) {
          const float b[2] = {above, below};
          mma_tf32(sum[m][j], a[1], b, sum[m][j]);
          mma_tf32(sum[m][j], a[0], b, sum[m][j]);
        } else {
          float b[kParts][2];
          split_tf32(above, b[0][0], b[1][0]);
          split_tf32(below, b[0][1], b[1][1]);
          multiply_parts(sum[m][j], a, b, sum[m][j]);
        }
      }
    }
  }
}

// Result e of a run, in row 8 n + g.
__device__ inline float& result(Results& sum, int n, int e) {
  return sum[n / 2][e % kColumns][n % 2 * 2 + e / kColumns];
}

// sum = -scale * own, both of which point to this lane's first row. All of it is on its way before any is waited for.
template <bool kWide, typename T>
__device__ void start(const float* scale, const T* own, const Plane<const T>& plane, int rows, int left, Results& sum) {
  Run<T> words[2 * kOutTiles];
  float scales[2 * kOutTiles];
#pragma unroll
  for (int n = 0; n < 2 * kOutTiles; ++n, own += 8 * plane.stride_channel) {
    const bool inside = 8 * n < rows;
    scales[n] = inside ? scale[8 * n] : 0.0f;
    read_run<kWide>(own, plane.stride_pixel, inside ? left : 0, words[n]);
  }
#pragma unroll
  for (int n = 0; n < 2 * kOutTiles; ++n) {
#pragma unroll
    for (int e = 0; e < kRun; ++e) {
      result(sum, n, e) = -scales[n] * element<T>(words[n][e / kPerWord<T>], e % kPerWord<T>);
    }
  }
}

__device__ inline Head anew(Head head) {
  head.image = static_cast<unsigned>(anew(static_cast<int>(head.image)));
  head.of_image = static_cast<unsigned>(anew(static_cast<int>(head.of_image)));
  return head;
}

// grid: heads x walkers x bands x roles, the roles of a piece beside each other: they read the same pixels.
template <bool kWide, typename T>
__global__ void __launch_bounds__(kApplyThreads, kApplyBlocks<kWide>)
    apply_mma(const __grid_constant__ Roles roles, ImageView z_view, ChannelAttentionSize size,
              const __grid_constant__ Walk walk) {
  CPL_DYNAMIC_SHARED(Fragment, fragments);  // [groups * kOutTiles][kept]
  unsigned index = blockIdx.x;
  const Role& role = roles.role[index % roles.count];
  index /= roles.count;
  const unsigned band = index % walk.bands;
  index /= walk.bands;
  const unsigned walker = index % walk.walkers;
  const unsigned head_of_all = index / walk.walkers;
  const Head head(size, head_of_all);
  const Factor<float>& factor = role.factor;

  const int warp = threadIdx.x / kLanes, g = threadIdx.x % kLanes / 4, t = threadIdx.x % 4;
  const int group = warp % walk.groups, split = warp / walk.groups, splits = kApplyWarps / walk.groups;
  const int width = static_cast<int>(size.width), steps = (width + 7) / 8;
  const int first_row = static_cast<int>(band) * walk.groups * kOutRows, row = first_row + group * kOutRows;
  const int count = walk.groups * kOutTiles * walk.kept;
  const auto pixel_of_round = [&](unsigned round) { return (static_cast<int64_t>(round) * splits + split) * kPixels; };
  const auto pixels_left = [&](int64_t pixel) {  // of a warp's 32; none where it has no rows
    const int64_t left = size.pixels - pixel;
    return row < width ? static_cast<int>(left < kPixels ? left : kPixels) : 0;
  };
  Group<T> words;
  const auto read = [&](unsigned round, int step) {
    const int64_t pixel = pixel_of_round(round);
    const int column = pixel_of<kWide>(0, g), k = 8 * step + t;
    const Plane<const T> x(role.x, size, anew(head), factor.x_third);
    read_group<kWide>(x.at(k, pixel + column), x, width - k, pixels_left(pixel) - column, words);
  };

  read(walker, 0);
  for (unsigned round = walker; round < walk.rounds; round += walk.walkers) {
    const int64_t pixel = pixel_of_round(round);
    const int left = pixels_left(pixel);
    Results sum = {};
    if (factor.scale != nullptr) {
      const Head here = anew(head);
      const int64_t of_all = here.image * size.heads + here.of_image, out = row + g;
      const Plane<const T> own(role.x, size, here, factor.own_third);
      start<kWide>(factor.scale + (of_all * 2 + factor.own_third) * width + out, own.at(out, pixel), own,
                   width - static_cast<int>(out), left, sum);
    }
    for (int part = 0; part < steps; part += walk.kept) {
      if (round == walker || walk.kept < steps) {
        const float* const matrix = factor.matrix + static_cast<int64_t>(head_of_all) * width * width;
        __syncthreads();  // whoever still multiplies by the last part must be done
        keep(factor, matrix, width, first_row, part, count, walk.kept, fragments);
        __syncthreads();
      }
#pragma unroll 1
      for (int step = part; step < part + walk.kept && step < steps;) {
        const int at_once = kAtOnce<T>, n = group * walk.kept + step - part;
        if (row < width) {
          multiply_group<T>(fragments + n * kOutTiles, part + walk.kept - step, words, sum);
        }
        step += at_once;
        // What is multiplied next is read as early as there are registers for it.
        const bool more = step < steps;
        read(more ? round : round + walk.walkers, more ? step : 0);
      }
    }
    const Plane<T> z(z_view, size, anew(head), factor.z_third);
    const int out = anew(row) + g;
    T* to = z.at(out, pixel_of_round(anew(static_cast<int>(round))));
#pragma unroll
    for (int n = 0; n < 2 * kOutTiles; ++n, to += 8 * z.stride_channel) {
      float results[kRun];
#pragma unroll
      for (int e = 0; e < kRun; ++e) results[e] = result(sum, n, e);
      if (out + 8 * n < width) store_run<kWide>(results, to, z.stride_pixel, left);
    }
  }
}

}  // namespace
}  // namespace cpl::cuda
