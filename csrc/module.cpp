// The Python module: every exported kernel, one line each.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "aggregate_prompts/bind.h"
#include "channel_attention/bind.h"
#include "common/caches.h"
#include "common/isa.h"
#include "common/pyview.h"
#include "dwconv/bind.h"
#include "feature_distances/bind.h"
#include "gated_dwconv/bind.h"
#include "info_nce/bind.h"
#include "layer_norm2d/bind.h"
#include "pointwise_conv/bind.h"
#include "products/bind.h"
#include "route_negatives/bind.h"
#include "route_topk/bind.h"

#if !defined(CPL_CUDA_ARCHS)
#define CPL_CUDA_ARCHS ""
#endif

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels of cpl_kernels over raw pointers; called through cpl_kernels.<op>.native and .cuda.";
  m.def("isa", [] { return cpl::isa_name(cpl::active_isa()); });
  m.def("last_level_cache", &cpl::last_level_cache);
  m.def("set_last_level_cache", &cpl::set_last_level_cache);  // for tests
  m.attr("CUDA_ARCHS") = CPL_CUDA_ARCHS;
#if defined(CPL_WITH_CUDA)
  m.attr("HAS_CUDA") = true;
#else
  m.attr("HAS_CUDA") = false;
#endif

  using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("aggregate_prompts_forward", &cpl::bind::aggregate_prompts_forward, NoGil());
  m.def("aggregate_prompts_backward", &cpl::bind::aggregate_prompts_backward, NoGil());
  m.def("channel_attention_forward", &cpl::bind::channel_attention_forward, NoGil());
  m.def("channel_attention_backward", &cpl::bind::channel_attention_backward, NoGil());
  m.def("dwconv_forward", &cpl::bind::dwconv_forward, NoGil());
  m.def("dwconv_backward", &cpl::bind::dwconv_backward, NoGil());
  m.def("feature_distances_forward", &cpl::bind::feature_distances_forward, NoGil());
  m.def("feature_distances_backward", &cpl::bind::feature_distances_backward, NoGil());
  m.def("gated_dwconv_forward", &cpl::bind::gated_dwconv_forward, NoGil());
  m.def("gated_dwconv_backward", &cpl::bind::gated_dwconv_backward, NoGil());
  m.def("info_nce_rows", &cpl::bind::info_nce_rows, NoGil());
  m.def("info_nce_rows_and_columns", &cpl::bind::info_nce_rows_and_columns, NoGil());
  m.def("info_nce_mirror", &cpl::bind::info_nce_mirror, NoGil());
  m.def("info_nce_whole_rows", &cpl::bind::info_nce_whole_rows, NoGil());
  m.def("info_nce_finish", &cpl::bind::info_nce_finish, NoGil());
  m.def("info_nce_side", &cpl::bind::info_nce_side, NoGil());
  m.def("info_nce_reduce", &cpl::bind::info_nce_reduce, NoGil());
  m.def("info_nce_gradient", &cpl::bind::info_nce_gradient, NoGil());
  m.def("layer_norm2d_forward", &cpl::bind::layer_norm2d_forward, NoGil());
  m.def("layer_norm2d_backward", &cpl::bind::layer_norm2d_backward, NoGil());
  m.def("pointwise_conv_forward", &cpl::bind::pointwise_conv_forward, NoGil());
  m.def("pointwise_conv_backward", &cpl::bind::pointwise_conv_backward, NoGil());
#if defined(CPL_WITH_AMX)
  m.def("products_packed_bytes", &cpl::bind::products_packed_bytes);
  m.def("products_have_pieces", &cpl::bind::products_have_pieces, NoGil());
  m.def("info_nce_multiply_rows", &cpl::bind::info_nce_multiply_rows, NoGil());
  m.def("info_nce_multiply_whole_rows", &cpl::bind::info_nce_multiply_whole_rows, NoGil());
  m.def("info_nce_multiply_gradient", &cpl::bind::info_nce_multiply_gradient, NoGil());
  m.def("products_pack", &cpl::bind::products_pack, NoGil());
  m.def("products_multiply", &cpl::bind::products_multiply, NoGil());
#endif
  m.def("route_negatives", &cpl::bind::route_negatives, NoGil());
  m.def("route_topk_forward", &cpl::bind::route_topk_forward, NoGil());
  m.def("route_topk_backward", &cpl::bind::route_topk_backward, NoGil());
#if defined(CPL_WITH_CUDA)
  m.def("aggregate_prompts_planes", &cpl::bind::aggregate_prompts_planes);
  m.def("aggregate_prompts_forward_cuda", &cpl::bind::aggregate_prompts_forward_cuda, NoGil());
  m.def("aggregate_prompts_backward_cuda", &cpl::bind::aggregate_prompts_backward_cuda, NoGil());
  m.def("channel_attention_scratch", &cpl::bind::channel_attention_scratch);
  m.def("channel_attention_forward_cuda", &cpl::bind::channel_attention_forward_cuda, NoGil());
  m.def("channel_attention_backward_cuda", &cpl::bind::channel_attention_backward_cuda, NoGil());
  m.def("dwconv_partial", &cpl::bind::dwconv_partial);
  m.def("dwconv_forward_cuda", &cpl::bind::dwconv_forward_cuda, NoGil());
  m.def("dwconv_backward_cuda", &cpl::bind::dwconv_backward_cuda, NoGil());
  m.def("feature_distances_scratch", &cpl::bind::feature_distances_scratch);
  m.def("feature_distances_forward_cuda", &cpl::bind::feature_distances_forward_cuda, NoGil());
  m.def("feature_distances_backward_cuda", &cpl::bind::feature_distances_backward_cuda, NoGil());
  m.def("gated_dwconv_partial", &cpl::bind::gated_dwconv_partial);
  m.def("gated_dwconv_forward_cuda", &cpl::bind::gated_dwconv_forward_cuda, NoGil());
  m.def("gated_dwconv_backward_cuda", &cpl::bind::gated_dwconv_backward_cuda, NoGil());
  m.def("info_nce_scratch", &cpl::bind::info_nce_scratch);
  m.def("info_nce_sums_cuda", &cpl::bind::info_nce_sums_cuda, NoGil());
  m.def("info_nce_gradient_cuda", &cpl::bind::info_nce_gradient_cuda, NoGil());
  m.def("layer_norm2d_partial_rows", &cpl::bind::layer_norm2d_partial_rows);
  m.def("layer_norm2d_forward_cuda", &cpl::bind::layer_norm2d_forward_cuda, NoGil());
  m.def("layer_norm2d_backward_cuda", &cpl::bind::layer_norm2d_backward_cuda, NoGil());
  m.def("route_negatives_cuda", &cpl::bind::route_negatives_cuda, NoGil());
  m.def("route_topk_forward_cuda", &cpl::bind::route_topk_forward_cuda, NoGil());
  m.def("route_topk_backward_cuda", &cpl::bind::route_topk_backward_cuda, NoGil());
#endif
}
