// aggregate_prompts on CPU. Compiled once per instruction set.
//
// Without a resize the prompts are rows of P = C * S_h * S_w numbers, and a work item is a run of P: its piece
// of every used prompt stays in cache while all images that want it are served. With a resize a work item is
// a channel: mixed at the prompts' own size, widened, then stretched into the output; in the backward the
// same in reverse. Widening is linear too, so it is done where there is less to do: on the images, or once
// on the prompts that are used. Every work item has fixed bounds and sums in a fixed order.
#include <algorithm>
#include <type_traits>

#include "aggregate_prompts/op.h"
#include "aggregate_prompts/plan.h"
#include "aggregate_prompts/resample.h"
#include "common/lanes.h"
#include "common/pages.h"
#include "common/parallel.h"
#include "common/stream.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kMaxTile = 4096;         // elements: longer runs measured no faster
constexpr int64_t kMinTile = 256;          // below, the runs are too short for the hardware's prefetcher
constexpr int64_t kCacheBytes = 1 << 20;   // what the pieces of a run may take of the second-level cache
constexpr int64_t kMaxChunks = 64;         // rows of partial sums; fixed, so is their order
constexpr int64_t kStreamBytes = 4 << 20;  // results above this no longer wait in cache for who reads them
constexpr int64_t kFused = 4;              // rows summed in one go
constexpr int64_t kResampleCost = 2;       // of an element, against that of adding one

template <int kRows, bool kAdd, typename T, typename A>
inline void mix_rows(const T* const* rows, const A* weights, A* __restrict out, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    A sum = kAdd ? out[j] : A(0);
    for (int i = 0; i < kRows; ++i) sum += weights[i] * static_cast<A>(load(rows[i] + j));
    out[j] = sum;
  }
}

template <bool kAdd, typename T, typename A>
inline void mix_some(const T* const* rows, const A* weights, int64_t count, A* out, int64_t n) {
  switch (count) {
    case 1:
      return mix_rows<1, kAdd>(rows, weights, out, n);
    case 2:
      return mix_rows<2, kAdd>(rows, weights, out, n);
    case 3:
      return mix_rows<3, kAdd>(rows, weights, out, n);
    default:
      return mix_rows<4, kAdd>(rows, weights, out, n);
  }
}

// out[j] = sum over i < count of weight(i) * row(i)[j]
template <typename A, typename Row, typename Weight>
inline void mix(int64_t count, const Row& row, const Weight& weight, A* out, int64_t n) {
  if (count == 0) std::fill_n(out, n, A(0));
  for (int64_t first = 0; first < count; first += kFused) {
    const int64_t some = std::min(kFused, count - first);
    std::decay_t<decltype(row(0))> rows[kFused];
    A weights[kFused];
    for (int64_t i = 0; i < some; ++i) {
      rows[i] = row(first + i);
      weights[i] = static_cast<A>(weight(first + i));
    }
    if (first == 0) {
      mix_some<false>(rows, weights, some, out, n);
    } else {
      mix_some<true>(rows, weights, some, out, n);
    }
  }
}

template <typename T, typename A>
inline void narrow(const A* __restrict from, T* __restrict to, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) store(to + j, from[j]);
}

// Elements in memory, written through `fill(A* buffer)`: at once where they are, or by way of a buffer.
template <typename T, typename A, typename Fill>
inline void write(T* target, int64_t n, bool stream, A* buffer, const Fill& fill) {
  if constexpr (std::is_same_v<T, A>) {
    if (!stream) return fill(target);
    fill(buffer);
    stream_copy(target, buffer, sizeof(T) * static_cast<size_t>(n));
  } else {
    fill(buffer);
    if (!stream) return narrow(buffer, target, n);
    T* const narrowed = reinterpret_cast<T*>(buffer + n);
    narrow(buffer, narrowed, n);
    stream_copy(target, narrowed, sizeof(T) * static_cast<size_t>(n));
  }
}

template <typename T>
inline void write_zeros(T* target, int64_t n) {
  std::memset(static_cast<void*>(target), 0, sizeof(T) * static_cast<size_t>(n));
}

// One prompt and up to two gradients d of images that used it: acc (+)= sum of w d, dots += <d, prompt>.
template <int kRows, bool kFirst, bool kDots, bool kAcc, typename D, typename T, typename A>
inline void gather_rows(const D* const* d, const A* weights, const T* __restrict prompt, A* __restrict acc,
                        double* const* dots, int64_t n) {
  const D* d0 = d[0];
  const D* d1 = d[kRows - 1];
  const A w0 = weights[0], w1 = weights[kRows - 1];
  A dot0 = 0, dot1 = 0;
#pragma omp simd reduction(+ : dot0, dot1)
  for (int64_t j = 0; j < n; ++j) {
    const A a = load(d0 + j);
    const A b = kRows == 2 ? static_cast<A>(load(d1 + j)) : A(0);
    if constexpr (kAcc) acc[j] = (kFirst ? A(0) : acc[j]) + (kRows == 2 ? w0 * a + w1 * b : w0 * a);
    if constexpr (kDots) {
      const A p = load(prompt + j);
      dot0 += a * p;
      if constexpr (kRows == 2) dot1 += b * p;
    }
  }
  if constexpr (kDots) {
    *dots[0] += static_cast<double>(dot0);
    if constexpr (kRows == 2) *dots[1] += static_cast<double>(dot1);
  }
}

template <typename D, typename T, typename A>
inline void gather(int64_t rows, bool first, const D* const* d, const A* weights, const T* prompt, A* acc,
                   double* const* dots, int64_t n) {
  const auto call = [&](auto two, auto is_first, auto with_dots, auto with_acc) {
    gather_rows<decltype(two)::value ? 2 : 1, decltype(is_first)::value, decltype(with_dots)::value,
                decltype(with_acc)::value>(d, weights, prompt, acc, dots, n);
  };
  const auto choose = [&](auto two, auto is_first) {
    if (acc == nullptr) return call(two, is_first, std::true_type(), std::false_type());
    if (dots[0] == nullptr) return call(two, is_first, std::false_type(), std::true_type());
    call(two, is_first, std::true_type(), std::true_type());
  };
  if (rows == 2) {
    if (first) return choose(std::true_type(), std::true_type());
    return choose(std::true_type(), std::false_type());
  }
  if (first) return choose(std::false_type(), std::true_type());
  choose(std::false_type(), std::false_type());
}

bool resized(const AggregateSize& s) { return s.height != s.source_height || s.width != s.source_width; }
int64_t elements(const AggregateSize& s) { return s.channels * s.source_height * s.source_width; }

template <typename T>
size_t bytes(int64_t rows, int64_t length) {
  return static_cast<size_t>(rows * length) * sizeof(T);
}

template <typename T>
bool streamed(int64_t rows, int64_t length) {
  return bytes<T>(rows, length) > static_cast<size_t>(kStreamBytes);
}

// Runs of P, and chunks of runs; functions of the sizes alone, never of the thread count.
struct Tiling {
  int64_t length, tile, count, chunks;

  Tiling(int64_t length_in, int64_t pieces, int64_t item) : length(length_in), tile(kMaxTile) {
    while (tile > kMinTile && tile * pieces * item > kCacheBytes) tile /= 2;
    count = (length + tile - 1) / tile;
    chunks = std::min(count, kMaxChunks);
  }
  int64_t chunk_begin(int64_t chunk) const { return count * chunk / chunks; }
};

template <typename T, typename A>
void forward_flat(const AggregateForward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const Tiling tiling(elements(size), static_cast<int64_t>(plan.used.size()), sizeof(T));
  const bool stream = streamed<T>(size.batch, tiling.length);
  const T* const prompts = static_cast<const T*>(args.prompts);
  T* const y = static_cast<T*>(args.y);
  const size_t scratch = static_cast<size_t>(tiling.tile) * (sizeof(A) + sizeof(T));
  parallel_for(tiling.chunks, threads, scratch, [&](int64_t chunk, char* own) {
    for (int64_t i = tiling.chunk_begin(chunk); i < tiling.chunk_begin(chunk + 1); ++i) {
      const int64_t first = i * tiling.tile, n = std::min(tiling.tile, tiling.length - first);
      for (const int64_t b : plan.order) {
        const int64_t place = b * size.chosen;
        write(y + b * tiling.length + first, n, stream, reinterpret_cast<A*>(own), [&](A* out) {
          mix(
              size.chosen, [&](int64_t c) { return prompts + args.indices[place + c] * tiling.length + first; },
              [&](int64_t c) { return plan.weights[static_cast<size_t>(place + c)]; }, out, n);
        });
      }
    }
    stream_fence();
  });
}

// Partial sums of dweights, [chunks, B * k] in fp64; each chunk adds to its own row.
class Dots {
 public:
  Dots(int64_t chunks, const AggregateBackward& args)
      : places_(args.size.batch * args.size.chosen),
        chunks_(chunks),
        wanted_(args.dweights != nullptr),
        memory_(wanted_ ? sizeof(double) * static_cast<size_t>(chunks * places_) : 0) {
    if (wanted_) std::fill_n(data(), chunks * places_, 0.0);
  }
  double* at(int64_t chunk, int64_t place) const { return wanted_ ? data() + chunk * places_ + place : nullptr; }
  void finish(const AggregateBackward& args) const {
    if (!wanted_) return;
    dispatch(args.weights_dtype, [&](auto* element) {
      using W = std::remove_pointer_t<decltype(element)>;
      for (int64_t p = 0; p < places_; ++p) {
        double sum = 0;
        for (int64_t c = 0; c < chunks_; ++c) sum += data()[c * places_ + p];
        store(static_cast<W*>(args.dweights) + p, static_cast<typename Arithmetic<W>::type>(sum));
      }
    });
  }

 private:
  double* data() const { return reinterpret_cast<double*>(memory_.data()); }
  int64_t places_, chunks_;
  bool wanted_;
  Scratch memory_;
};

// Calls f(n, slot) for every prompt that is used, g(n) for the others.
template <typename Used, typename Unused>
inline void each_prompt(const Plan& plan, int64_t prompts, const Used& f, const Unused& g) {
  int64_t slot = 0;
  for (int64_t n = 0; n < prompts; ++n) {
    if (slot < static_cast<int64_t>(plan.used.size()) && plan.used[static_cast<size_t>(slot)] == n) {
      f(n, slot++);
    } else {
      g(n);
    }
  }
}

template <typename T, typename A>
void backward_flat(const AggregateBackward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const Tiling tiling(elements(size), size.batch, sizeof(T));
  const bool stream = streamed<T>(size.prompts, tiling.length);
  const T* const prompts = static_cast<const T*>(args.prompts);
  const T* const dy = static_cast<const T*>(args.dy);
  T* const dprompts = static_cast<T*>(args.dprompts);
  const Dots dots(tiling.chunks, args);
  const size_t scratch = static_cast<size_t>(tiling.tile) * (sizeof(A) + sizeof(T));
  parallel_for(tiling.chunks, threads, scratch, [&](int64_t chunk, char* own) {
    const int64_t begin = tiling.chunk_begin(chunk), end = tiling.chunk_begin(chunk + 1);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * tiling.tile, n = std::min(tiling.tile, tiling.length - first);
      each_prompt(
          plan, size.prompts,
          [&](int64_t prompt, int64_t slot) {
            const int64_t last = plan.first_pair[static_cast<size_t>(slot) + 1];
            const auto fill = [&](A* acc) {
              for (int64_t at = plan.first_pair[static_cast<size_t>(slot)]; at < last; at += 2) {
                const int64_t rows = std::min<int64_t>(2, last - at);
                const T* d[2];
                A weights[2];
                double* sums[2];
                for (int64_t r = 0; r < rows; ++r) {
                  const Pair& pair = plan.pairs[static_cast<size_t>(at + r)];
                  d[r] = dy + pair.image * tiling.length + first;
                  weights[r] = static_cast<A>(plan.weights[static_cast<size_t>(pair.place)]);
                  sums[r] = dots.at(chunk, pair.place);
                }
                gather(rows, at == plan.first_pair[static_cast<size_t>(slot)], d, weights,
                       prompts + prompt * tiling.length + first, acc, sums, n);
              }
            };
            if (dprompts == nullptr) return fill(nullptr);
            write(dprompts + prompt * tiling.length + first, n, stream, reinterpret_cast<A*>(own), fill);
          },
          [&](int64_t prompt) {
            if (dprompts != nullptr) write_zeros(dprompts + prompt * tiling.length + first, n);
          });
    }
    stream_fence();
  });
  dots.finish(args);
}

// The tables of a resize, and where its horizontal half is done.
template <typename A>
struct Resize {
  Resample<A> rows, columns;
  bool on_prompts;  // once for every used prompt, not for every image
};

template <typename T, typename A>
void forward_resized(const AggregateForward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const int64_t source = size.source_height * size.source_width, wide = size.source_height * size.width;
  const int64_t used = static_cast<int64_t>(plan.used.size()), pairs = size.batch * size.chosen;
  const int64_t widen = kResampleCost * wide;
  const Resize<A> resize{Resample<A>::forwards(size.height, size.source_height),
                         Resample<A>::forwards(size.width, size.source_width),
                         used * widen + (size.chosen > 1 ? pairs * wide : 0) <= pairs * source + size.batch * widen};
  const T* const prompts = static_cast<const T*>(args.prompts);
  const int64_t slack = Resample<A>::kSlack;
  const int64_t expanded = (resize.on_prompts ? used : 0) * wide + slack;
  const size_t scratch = sizeof(A) * static_cast<size_t>(expanded + source + slack + wide + slack + size.width);
  parallel_for(size.channels, threads, scratch, [&](int64_t channel, char* own) {
    A* const all = reinterpret_cast<A*>(own);  // [used, S_h, W]
    A* const small = all + expanded;           // [S_h, S_w]
    A* const mixed = small + source + slack;   // [S_h, W]
    A* const line = mixed + wide + slack;      // [W]
    const auto prompt = [&](int64_t n) { return prompts + (n * size.channels + channel) * source; };
    const auto widen_rows = [&](A* to) {
      for (int64_t r = 0; r < size.source_height; ++r) {
        resize.columns.row(small + r * size.source_width, to + r * size.width);
      }
    };
    for (int64_t u = 0; u < used && resize.on_prompts; ++u) {
      const T* from = prompt(plan.used[static_cast<size_t>(u)]);
      for (int64_t j = 0; j < source; ++j) small[j] = load(from + j);
      widen_rows(all + u * wide);
    }
    for (const int64_t b : plan.order) {
      const int64_t place = b * size.chosen;
      const auto weight = [&](int64_t i) { return plan.weights[static_cast<size_t>(place + i)]; };
      const A* from = mixed;
      A factor = 1;
      if (!resize.on_prompts) {
        mix(size.chosen, [&](int64_t i) { return prompt(args.indices[place + i]); }, weight, small, source);
        widen_rows(mixed);
      } else if (size.chosen == 1) {
        from = all + plan.slot[static_cast<size_t>(place)] * wide;
        factor = static_cast<A>(weight(0));
      } else {
        const auto row = [&](int64_t i) { return all + plan.slot[static_cast<size_t>(place + i)] * wide; };
        mix(size.chosen, row, weight, mixed, wide);
      }
      T* const y = static_cast<T*>(args.y) + (b * size.channels + channel) * size.height * size.width;
      for (int64_t o = 0; o < size.height; ++o) {
        write(y + o * size.width, size.width, false, line, [&](A* out) {
          mix(
              resize.rows.taps(o), [&](int64_t t) { return from + resize.rows.at(t, o) * size.width; },
              [&](int64_t t) { return factor * resize.rows.weight(t, o); }, out, size.width);
        });
      }
    }
  });
}

template <typename T, typename A>
void backward_resized(const AggregateBackward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const int64_t source = size.source_height * size.source_width, wide = size.source_height * size.width;
  const int64_t used = static_cast<int64_t>(plan.used.size()), pairs = size.batch * size.chosen;
  const bool need_dots = args.dweights != nullptr, need_acc = args.dprompts != nullptr;
  const int64_t on_prompts = used * kResampleCost * ((need_dots ? wide : 0) + (need_acc ? source : 0)) + pairs * wide;
  const Resize<A> resize{Resample<A>::transposed(size.height, size.source_height),
                         Resample<A>::transposed(size.width, size.source_width),
                         on_prompts <= size.batch * kResampleCost * source + pairs * source};
  const Resample<A> widen = Resample<A>::forwards(size.width, size.source_width);
  const T* const prompts = static_cast<const T*>(args.prompts);
  const int64_t slack = Resample<A>::kSlack, plane = resize.on_prompts ? wide : source;
  const int64_t expanded = (resize.on_prompts && need_dots ? used * wide : 0) + slack;
  const int64_t sums = (need_acc ? used * plane : 0) + slack;
  const size_t elements = static_cast<size_t>(expanded + sums + 2 * (source + slack) + wide + slack);
  const int64_t chunks = std::min(size.channels, kMaxChunks);
  const Dots dots(chunks, args);

  const auto one_channel = [&](int64_t chunk, int64_t channel, char* own) {
    A* const all = reinterpret_cast<A*>(own);  // [used, S_h, W], if the prompts are widened
    A* const acc = all + expanded;             // [used, plane]
    A* const small = acc + sums;               // [S_h, S_w]
    A* const tall = small + source + slack;    // [S_h, W]
    const auto prompt = [&](int64_t n) { return (n * size.channels + channel) * source; };
    std::fill_n(acc, need_acc ? used * plane : 0, A(0));
    for (int64_t u = 0; u < used && resize.on_prompts && need_dots; ++u) {
      const T* from = prompts + prompt(plan.used[static_cast<size_t>(u)]);
      for (int64_t j = 0; j < source; ++j) small[j] = load(from + j);
      for (int64_t r = 0; r < size.source_height; ++r) {
        widen.row(small + r * size.source_width, all + u * wide + r * size.width);
      }
    }
    for (const int64_t b : plan.order) {
      const T* const dy = static_cast<const T*>(args.dy) + (b * size.channels + channel) * size.height * size.width;
      for (int64_t r = 0; r < size.source_height; ++r) {
        mix(
            resize.rows.taps(r), [&](int64_t t) { return dy + resize.rows.at(t, r) * size.width; },
            [&](int64_t t) { return resize.rows.weight(t, r); }, tall + r * size.width, size.width);
        if (!resize.on_prompts) resize.columns.row(tall + r * size.width, small + r * size.source_width);
      }
      for (int64_t place = b * size.chosen; place < (b + 1) * size.chosen; ++place) {
        const int64_t u = plan.slot[static_cast<size_t>(place)];
        const A weight = static_cast<A>(plan.weights[static_cast<size_t>(place)]);
        const A* const d = resize.on_prompts ? tall : small;
        double* const dot = dots.at(chunk, place);
        A* const sum = need_acc ? acc + u * plane : nullptr;
        if (resize.on_prompts) {
          gather(1, false, &d, &weight, all + (need_dots ? u * wide : 0), sum, &dot, plane);
        } else {
          gather(1, false, &d, &weight, prompts + prompt(args.indices[place]), sum, &dot, plane);
        }
      }
    }
    if (!need_acc) return;
    T* const dprompts = static_cast<T*>(args.dprompts);
    each_prompt(
        plan, size.prompts,
        [&](int64_t n, int64_t u) {
          const A* from = acc + u * plane;
          if (resize.on_prompts) {
            for (int64_t r = 0; r < size.source_height; ++r) {
              resize.columns.row(from + r * size.width, small + r * size.source_width);
            }
            from = small;
          }
          narrow(from, dprompts + prompt(n), source);
        },
        [&](int64_t n) { write_zeros(dprompts + prompt(n), source); });
  };
  parallel_for(chunks, threads, sizeof(A) * elements, [&](int64_t chunk, char* own) {
    for (int64_t c = size.channels * chunk / chunks; c < size.channels * (chunk + 1) / chunks; ++c) {
      one_channel(chunk, c, own);
    }
  });
  dots.finish(args);
}

}  // namespace

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
