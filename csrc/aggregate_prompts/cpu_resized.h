// aggregate_prompts on CPU with a resize.
//
// A work item is a channel: mixed at the prompts' own size, widened, then stretched into the output; in the backward
// the same in reverse. All of it goes by strips of rows, so that what one step leaves is in the first-level cache for
// the next, and the results' way to memory and the gradients' way from there go on beside the arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "aggregate_prompts/cpu_columns.h"
#include "aggregate_prompts/cpu_dots.h"
#include "aggregate_prompts/cpu_rows.h"
#include "aggregate_prompts/op.h"
#include "aggregate_prompts/plan.h"
#include "aggregate_prompts/resample.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "common/stream.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kGatherCost = 2;        // of an element that Columns gathers, against that of adding one
constexpr int64_t kStripElements = 1024;  // 512 and 4096 measured no faster

inline int64_t strip_rows(int64_t width, int64_t rows) {
  return std::min(rows, std::max<int64_t>(1, kStripElements / width));
}

// The widened rows of a plane, made when they are asked for, a strip at a time.
template <typename A>
struct Widened {
  A* rows;
  int64_t width;
  int64_t done;  // how many there are
};

// The vertical half of the resize: an image y from the widened rows of a plane, times factor. more() makes another
// strip of these. `buffer`: twice a strip of y.
template <typename T, typename A, typename More>
void stretch(const Taps<A>& vertical, const Widened<A>& from, A factor, const More& more, T* y, bool stream,
             A* buffer) {
  const int64_t height = vertical.size(), width = from.width, strip = strip_rows(width, height);
  const auto row = [&](int64_t o, const auto& use) {
    const A weights[kFused] = {factor * vertical.weights(o)[0], factor * vertical.weights(o)[1]};
    while (from.done < vertical.first(o) + vertical.count(o)) more();
    use(from.rows + vertical.first(o) * width, weights, vertical.count(o));
  };
  if constexpr (std::is_same_v<T, A>) {
    const size_t line_bytes = sizeof(T) * static_cast<size_t>(width);
    if (stream && line_bytes % kStreamLine == 0 && reinterpret_cast<uintptr_t>(y) % kStreamLine == 0) {
      for (int64_t o = 0; o < height; ++o, y += width) {
        row(o, [&](const A* rows, const A* weights, int64_t count) {
          if (count != 2) {
            mix_run(rows, width, weights, count, buffer, width);
            return stream_copy(y, buffer, line_bytes);
          }
          for (int64_t j = 0; j < width; j += Lanes<A>::kCount) {  // to memory from where it was computed
            const typename Lanes<A>::Vector line = mix_vector<2>(rows + j, width, weights);
            stream_line(y + j, &line);
          }
        });
      }
      return;
    }
  }
  for (int64_t first = 0; first < height; first += strip) {
    const int64_t end = std::min(height, first + strip);
    write(y + first * width, (end - first) * width, stream, buffer, [&](A* out) {
      for (int64_t o = first; o < end; ++o, out += width) {
        row(o,
            [&](const A* rows, const A* weights, int64_t count) { mix_run(rows, width, weights, count, out, width); });
      }
    });
  }
}

template <typename T, typename A>
void forward_resized(const AggregateForward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const int64_t height = size.source_height, width = size.source_width, source = height * width;
  const int64_t wide = height * size.width, image = size.height * size.width;
  const int64_t used = static_cast<int64_t>(plan.used.size()), pairs = size.batch * size.chosen;
  const Taps<A> vertical = Taps<A>::forwards(size.height, height);
  const Columns<A> columns(Taps<A>::forwards(size.width, width));
  // Widening is linear too: once for every used prompt, where that costs less than for every image.
  const bool on_prompts =
      size.chosen > 1 && !columns.fast() && (used - size.batch) * kGatherCost * wide + pairs * wide <= pairs * source;
  const bool stream = streamed<T>(size.batch * size.channels, image);
  const T* const prompts = static_cast<const T*>(args.prompts);
  const int64_t slack = Columns<A>::kSlack, strip = strip_rows(size.width, height);
  const int64_t expanded = (on_prompts ? used * wide : 0) + slack, plane = wide + slack;
  const int64_t buffer = 2 * strip_rows(size.width, size.height) * size.width;
  const size_t scratch = sizeof(A) * static_cast<size_t>(expanded + plane + buffer + strip * width + slack);
  parallel_for(size.channels, threads, scratch, [&](int64_t channel, char* own) {
    A* const all = reinterpret_cast<A*>(own);         // [used, S_h, W], if the prompts are widened
    Widened<A> mixed{all + expanded, size.width, 0};  // [S_h, W]
    A* const results = mixed.rows + plane;
    A* const small = results + buffer;  // [strip, S_w]
    const auto prompt = [&](int64_t n) { return prompts + (n * size.channels + channel) * source; };
    for (int64_t u = 0; u < used && on_prompts; ++u) {
      const T* const from = prompt(plan.used[static_cast<size_t>(u)]);
      for (int64_t r = 0; r < height; r += strip) {
        const int64_t count = std::min(strip, height - r);
        for (int64_t j = 0; j < count * width; ++j) small[j] = load(from + r * width + j);
        columns.rows(small, width, all + u * wide + r * size.width, count);
      }
    }
    int64_t last = -1;  // the prompt of the plane, if of one
    for (const int64_t b : plan.order) {
      const int64_t place = b * size.chosen;
      const bool one = size.chosen == 1;  // then images of one prompt follow each other, and differ by a factor only
      const A factor = one ? static_cast<A>(plan.weights[static_cast<size_t>(place)]) : A(1);
      if (!one || args.indices[place] != last) mixed.done = 0;
      if (one) last = args.indices[place];
      const auto weight = [&](int64_t i) { return one ? 1.0 : plan.weights[static_cast<size_t>(place + i)]; };
      const auto more = [&]() {
        const int64_t first = mixed.done, count = std::min(strip, height - first);
        A* const to = mixed.rows + first * size.width;
        if (on_prompts) {
          const auto row = [&](int64_t i) {
            return all + plan.slot[static_cast<size_t>(place + i)] * wide + first * size.width;
          };
          mix(size.chosen, row, weight, to, count * size.width);
        } else {
          const auto row = [&](int64_t i) { return prompt(args.indices[place + i]) + first * width; };
          mix(size.chosen, row, weight, small, count * width);
          columns.rows(small, width, to, count);
        }
        mixed.done += count;
      };
      stretch(vertical, mixed, factor, more, static_cast<T*>(args.y) + (b * size.channels + channel) * image, stream,
              results);
    }
    stream_fence();
  });
}

template <typename T, typename A>
void backward_resized(const AggregateBackward& args, const Plan& plan, int threads) {
  const AggregateSize& size = args.size;
  const int64_t height = size.source_height, width = size.source_width, source = height * width;
  const int64_t wide = height * size.width, image = size.height * size.width;
  const int64_t used = static_cast<int64_t>(plan.used.size()), pairs = size.batch * size.chosen;
  const bool need_dots = args.dweights != nullptr, need_acc = args.dprompts != nullptr;
  const Taps<A> vertical = Taps<A>::transposed(size.height, height);
  const Columns<A> columns(Taps<A>::transposed(size.width, width));
  const Columns<A> widen(Taps<A>::forwards(size.width, width));
  // Narrowing is linear too: once for every used prompt, where that costs less than for every image.
  const int64_t cost = used * kGatherCost * ((need_dots ? wide : 0) + (need_acc ? source : 0)) + pairs * wide;
  const bool on_prompts = !columns.fast() && cost <= size.batch * kGatherCost * source + pairs * source;
  const T* const prompts = static_cast<const T*>(args.prompts);
  const bool stream = streamed<T>(size.prompts, size.channels * source);
  const int64_t slack = Columns<A>::kSlack, plane = on_prompts ? wide : source, strip = strip_rows(size.width, height);
  const int64_t expanded = (on_prompts && need_dots ? used * wide : 0) + slack;
  const int64_t sums = (need_acc ? used * plane : 0) + slack;
  const int64_t narrowed = 2 * source + slack;
  const size_t elements = static_cast<size_t>(expanded + sums + narrowed + strip * size.width + slack);
  const int64_t chunks = std::min(size.channels, kMaxChunks);
  const Dots dots(chunks, args);
  std::vector<char> fresh(static_cast<size_t>(pairs), 0);  // whether a place is the first to add to its prompt's sum
  std::vector<char> seen(static_cast<size_t>(used), 0);
  for (const int64_t b : plan.order) {
    for (int64_t place = b * size.chosen; place < (b + 1) * size.chosen; ++place) {
      char& before = seen[static_cast<size_t>(plan.slot[static_cast<size_t>(place)])];
      fresh[static_cast<size_t>(place)] = !before;
      before = 1;
    }
  }

  const auto one_channel = [&](int64_t chunk, int64_t channel, char* own) {
    A* const all = reinterpret_cast<A*>(own);  // [used, S_h, W], if the prompts are widened
    A* const acc = all + expanded;             // [used, plane]
    A* const small = acc + sums;               // [S_h, S_w], or a strip of it
    A* const tall = small + narrowed;          // [strip, W]
    const auto prompt = [&](int64_t n) { return (n * size.channels + channel) * source; };
    for (int64_t u = 0; u < used && on_prompts && need_dots; ++u) {
      const T* from = prompts + prompt(plan.used[static_cast<size_t>(u)]);
      for (int64_t j = 0; j < source; ++j) small[j] = load(from + j);
      widen.rows(small, width, all + u * wide, height);
    }
    for (const int64_t b : plan.order) {
      const T* const dy = static_cast<const T*>(args.dy) + (b * size.channels + channel) * image;
      for (int64_t first = 0; first < height; first += strip) {
        const int64_t count = std::min(strip, height - first);
        for (int64_t r = first; r < first + count; ++r) {
          mix_run(dy + vertical.first(r) * size.width, size.width, vertical.weights(r), vertical.count(r),
                  tall + (r - first) * size.width, size.width);
        }
        if (!on_prompts) columns.rows(tall, size.width, small, count);
        const A* const d = on_prompts ? tall : small;
        const int64_t row = on_prompts ? size.width : width;
        for (int64_t place = b * size.chosen; place < (b + 1) * size.chosen; ++place) {
          const int64_t u = plan.slot[static_cast<size_t>(place)];
          const A weight = static_cast<A>(plan.weights[static_cast<size_t>(place)]);
          const bool is_first = fresh[static_cast<size_t>(place)] != 0;
          double* const dot = dots.at(chunk, place);
          A* const sum = need_acc ? acc + u * plane + first * row : nullptr;
          if (on_prompts) {
            gather(1, is_first, &d, &weight, all + (need_dots ? u * wide + first * row : 0), sum, &dot, count * row);
          } else {
            gather(1, is_first, &d, &weight, prompts + prompt(args.indices[place]) + first * row, sum, &dot,
                   count * row);
          }
        }
      }
    }
    if (!need_acc) return;
    T* const dprompts = static_cast<T*>(args.dprompts);
    each_prompt(
        plan, size.prompts,
        [&](int64_t n, int64_t u) {
          const A* from = acc + u * plane;
          if (on_prompts) {
            columns.rows(from, size.width, small, height);
            from = small;
          }
          write_narrow(from, dprompts + prompt(n), source, stream, small + source);
        },
        [&](int64_t n) { write_zeros(dprompts + prompt(n), source); });
  };
  parallel_for(chunks, threads, sizeof(A) * elements, [&](int64_t chunk, char* own) {
    for (int64_t c = size.channels * chunk / chunks; c < size.channels * (chunk + 1) / chunks; ++c) {
      one_channel(chunk, c, own);
    }
    stream_fence();
  });
  dots.finish(args);
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
