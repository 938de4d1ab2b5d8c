// channel_attention on CPU. Compiled once per instruction set.
//
// Forward: a pass over q and k for their products and norms, the softmax of a small matrix, a pass over v. Backward:
// a pass over dy and v (dv, and the products of the attention's gradient), the small matrices, a pass over q and k.
// Each image is read once and written once.
#include <cmath>

#include "channel_attention/cpu_blocks.h"
#include "channel_attention/cpu_small.h"
#include "channel_attention/math.h"
#include "common/pages.h"
#include "common/parallel.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kApplyBlock = 256;  // pixels of a block that is only applied; 64 to 512 measured alike within 5 %
constexpr int64_t kSumPiece = 1024;   // entries of a row of sums that one thread adds up

// Runs body(block, sums, scratch) over all blocks of all slices; `sums` is the slice's row of `row` numbers, zeros at
// first.
template <typename A, typename Body>
void in_slices(const ChannelAttentionSize& size, const Slices& slices, int threads, size_t scratch_bytes, int64_t row,
               double* partial, const Body& body) {
  parallel_for(slices.total(), threads, scratch_bytes, [&](int64_t i, char* scratch) {
    const int64_t head = i / slices.per_head, slice = i % slices.per_head;
    double* const sums = partial + i * row;
    std::fill_n(sums, row, 0.0);
    const int64_t end = slices.blocks * (slice + 1) / slices.per_head;
    for (int64_t b = slices.blocks * slice / slices.per_head; b < end; ++b) {
      body(block_at(size, head, slices.block, b), sums, reinterpret_cast<A*>(scratch));
    }
  });
}

// Adds the rows of each head's slices into the first, in order.
inline void sum_slices(const Slices& slices, int threads, int64_t row, double* partial) {
  if (slices.per_head == 1) return;
  const int64_t pieces = (row + kSumPiece - 1) / kSumPiece;
  parallel_for(slices.heads * pieces, threads, 0, [&](int64_t i, char*) {
    const int64_t first = i % pieces * kSumPiece, count = std::min(kSumPiece, row - first);
    double* __restrict total = partial + i / pieces * slices.per_head * row + first;
    for (int64_t s = 1; s < slices.per_head; ++s) {
      const double* __restrict sums = total + s * row;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) total[j] += sums[j];
    }
  });
}

// body(head, block, scratch) over blocks of kApplyBlock pixels of all heads.
template <typename A, typename Body>
void in_blocks(const ChannelAttentionSize& size, int threads, int64_t elements, const Body& body) {
  const int64_t blocks = (size.pixels + kApplyBlock - 1) / kApplyBlock;
  parallel_for(size.batch * size.heads * blocks, threads, sizeof(A) * static_cast<size_t>(elements),
               [&](int64_t i, char* scratch) {
                 body(i / blocks, block_at(size, i / blocks, kApplyBlock, i % blocks), reinterpret_cast<A*>(scratch));
               });
}

template <typename T, typename A>
void forward(const ChannelAttentionForward& args, int threads) {
  const ChannelAttentionSize& size = args.size;
  const int64_t width = size.width, heads = size.batch * size.heads, entries = width * width;
  prefer_huge_pages(args.y.data, sizeof(T) * static_cast<size_t>(size.batch * size.channels() * size.pixels));
  const Slices slices = Slices::of<A>(size);
  const int64_t row = entries + 2 * width, pitch = row_pitch<A>(slices.block);  // sums: Gram, squares of q, of k
  const Scratch memory(sizeof(double) * static_cast<size_t>(slices.total() * row));
  double* const partial = reinterpret_cast<double*>(memory.data());
  in_slices<A>(size, slices, threads, sizeof(A) * static_cast<size_t>(2 * width * pitch), row, partial,
               [&](const Block& block, double* sums, A* q) {
                 A* const k = q + width * pitch;
                 gather(Rows<const T>(args.qkv, size, block, 0), block, width, q, pitch, sums + entries);
                 gather(Rows<const T>(args.qkv, size, block, 1), block, width, k, pitch, sums + entries + width);
                 add_gram(q, k, width, pitch, block.padded, sums);
               });
  sum_slices(slices, threads, row, partial);
  const int64_t each = Packed<A>::size(width);
  const Scratch packed(sizeof(A) * static_cast<size_t>(heads * each));
  A* const attention = reinterpret_cast<A*>(packed.data());
  parallel_for(heads, threads, sizeof(A) * static_cast<size_t>(width), [&](int64_t head, char* scratch) {
    const HeadStatistics<A> at(args, head);
    cosines_of(partial + head * slices.per_head * row, width, at);
    pack_attention(at, width, reinterpret_cast<A*>(scratch), attention + head * each);
  });
  constexpr int64_t block_pitch = row_pitch<A>(kApplyBlock);
  in_blocks<A>(size, threads, width * (block_pitch + kPanel<A>), [&](int64_t head, const Block& block, A* v) {
    gather(Rows<const T>(args.qkv, size, block, 2), block, width, v, block_pitch);
    apply(attention + head * each, v, width, block_pitch, Rows<T>(args.y, size, block), block, v + width * block_pitch);
  });
}

template <typename T, typename A>
void backward(const ChannelAttentionBackward& args, int threads) {
  const ChannelAttentionSize& size = args.size;
  const int64_t width = size.width, heads = size.batch * size.heads, entries = width * width;
  prefer_huge_pages(args.dqkv.data, 3 * sizeof(T) * static_cast<size_t>(size.batch * size.channels() * size.pixels));
  const Slices slices = Slices::of<A>(size);
  const int64_t pitch = row_pitch<A>(slices.block), each = Packed<A>::size(width);
  const Scratch memory(sizeof(double) * static_cast<size_t>(slices.total() * entries + heads));
  double* const partial = reinterpret_cast<double*>(memory.data());
  double* const dtemperature = partial + slices.total() * entries;
  // Of each head the attention [c, c]; its transpose, later M, packed; M^T packed; a and b [c].
  const int64_t of_head = entries + 2 * each + 2 * width;
  const Scratch matrices(sizeof(A) * static_cast<size_t>(heads * of_head));
  const auto small = [&](int64_t head) {
    A* const p = reinterpret_cast<A*>(matrices.data()) + head * of_head;
    return SmallMatrices<A>{p, p + entries, p + entries + each, p + entries + 2 * each, p + entries + 2 * each + width};
  };
  parallel_for(heads, threads, 0,
               [&](int64_t head, char*) { attention_of(HeadStatistics<A>(args, head), width, small(head)); });
  const size_t bytes = sizeof(A) * static_cast<size_t>(width * (2 * pitch + kPanel<A>));
  in_slices<A>(size, slices, threads, bytes, entries, partial, [&](const Block& block, double* sums, A* dy) {
    A* const v = dy + width * pitch;
    gather(Rows<const T>(args.dy, size, block), block, width, dy, pitch);
    gather(Rows<const T>(args.qkv, size, block, 2), block, width, v, pitch);
    add_gram(dy, v, width, pitch, block.padded, sums);
    apply(small(block.batch * size.heads + block.head).packed, dy, width, pitch, Rows<T>(args.dqkv, size, block, 2),
          block, v + width * pitch);
  });
  sum_slices(slices, threads, entries, partial);
  parallel_for(heads, threads, 2 * sizeof(A) * static_cast<size_t>(width), [&](int64_t head, char* scratch) {
    dtemperature[head] = gradients_of(partial + head * slices.per_head * entries, HeadStatistics<A>(args, head), width,
                                      reinterpret_cast<A*>(scratch), small(head));
  });
  for (int64_t h = 0; h < size.heads; ++h) {
    double sum = 0;
    for (int64_t b = 0; b < size.batch; ++b) sum += dtemperature[b * size.heads + h];
    static_cast<A*>(args.dtemperature)[h] = static_cast<A>(sum);
  }
  constexpr int64_t block_pitch = row_pitch<A>(kApplyBlock);
  in_blocks<A>(size, threads, width * (2 * block_pitch + kPanel<A>), [&](int64_t head, const Block& block, A* q) {
    A* const k = q + width * block_pitch;
    A* const spare = k + width * block_pitch;
    const SmallMatrices<A> m = small(head);
    gather(Rows<const T>(args.qkv, size, block, 0), block, width, q, block_pitch);
    gather(Rows<const T>(args.qkv, size, block, 1), block, width, k, block_pitch);
    apply<true>(m.packed, k, width, block_pitch, Rows<T>(args.dqkv, size, block, 0), block, spare, m.project_q, q);
    apply<true>(m.transposed, q, width, block_pitch, Rows<T>(args.dqkv, size, block, 1), block, spare, m.project_k, k);
  });
}

}  // namespace

void channel_attention_forward(const ChannelAttentionForward& args, int threads) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    forward<T, typename Arithmetic<T>::type>(args, threads);
  });
}

void channel_attention_backward(const ChannelAttentionBackward& args, int threads) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    backward<T, typename Arithmetic<T>::type>(args, threads);
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
