// aggregate_prompts on CPU with a resize.
//
// A work item is a channel: mixed at the prompts' own size, widened, then stretched into the output; in the backward
// the same in reverse. Widening is linear too, so it is done where there is less to do: on the images, or once on the
// prompts that are used.
#pragma once

#include <algorithm>
#include <cstdint>

#include "aggregate_prompts/cpu_dots.h"
#include "aggregate_prompts/cpu_rows.h"
#include "aggregate_prompts/op.h"
#include "aggregate_prompts/plan.h"
#include "aggregate_prompts/resample.h"
#include "common/parallel.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kResampleCost = 2;  // of an element, against that of adding one

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
}  // namespace CPL_ISA
}  // namespace cpl
