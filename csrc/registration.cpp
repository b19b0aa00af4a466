// Every operator's schema, in one file.  Implementations are registered beside their kernels; fake kernels and autograd
// in Python (visionzip_ext/).  What each operator computes is said in visionzip_ext/ops.py and reference.py.
//
// scale: where none is given, D ** -0.5.  has_cls: by default images in a batch have CLS, and packed images have none.
#include <torch/csrc/stable/library.h>

#include "common/library.h"

VISIONZIP_DEFINE_OPERATORS(VISIONZIP_LIBRARY, m) {
  m.def(
      "zip(Tensor hidden, Tensor keys, Tensor attn, SymInt k, SymInt m, *, bool has_cls=True, "
      "str merge=\"residual\", str policy=\"attention\", bool keep_cls=True) "
      "-> (Tensor tokens, Tensor indices, Tensor assignment)");
  m.def(
      "zip_qk(Tensor hidden, Tensor queries, Tensor keys, SymInt k, SymInt m, *, float? scale=None, bool has_cls=True, "
      "str merge=\"residual\", Tensor? lse=None, str policy=\"attention\", bool keep_cls=True) "
      "-> (Tensor tokens, Tensor indices, Tensor assignment)");
  m.def(
      "select(Tensor keys, Tensor attn, SymInt k, SymInt m, *, bool has_cls=True, str policy=\"attention\", "
      "bool keep_cls=True) -> (Tensor indices, Tensor assignment)");
  m.def(
      "select_qk(Tensor queries, Tensor keys, SymInt k, SymInt m, *, float? scale=None, bool has_cls=True, "
      "Tensor? lse=None, str policy=\"attention\", bool keep_cls=True) -> (Tensor indices, Tensor assignment)");
  m.def("merge(Tensor x, Tensor assignment, SymInt k, SymInt m, *, str merge=\"residual\") -> Tensor");
  // Images of different sizes, packed one after another.  k, m: one number for all sequences, or one for each.
  m.def(
      "zip_packed(Tensor hidden, Tensor keys, Tensor cu_seqlens, SymInt[] k, SymInt[] m, *, Tensor? queries=None, "
      "Tensor? scores=None, float? scale=None, Tensor? lse=None, SymInt? max_seqlen=None, SymInt group=1, "
      "bool has_cls=False, str merge=\"residual\", str policy=\"attention\", bool keep_cls=True) "
      "-> (Tensor tokens, Tensor indices, Tensor assignment, Tensor token_cu_seqlens)");
  m.def(
      "select_packed(Tensor keys, Tensor cu_seqlens, SymInt[] k, SymInt[] m, *, Tensor? queries=None, "
      "Tensor? scores=None, float? scale=None, Tensor? lse=None, SymInt? max_seqlen=None, SymInt group=1, "
      "bool has_cls=False, str policy=\"attention\", bool keep_cls=True) "
      "-> (Tensor indices, Tensor assignment, Tensor token_cu_seqlens)");
  m.def(
      "merge_packed(Tensor x, Tensor assignment, Tensor cu_seqlens, SymInt[] k, SymInt[] m, *, "
      "str merge=\"residual\") -> Tensor");
  m.def(
      "merge_packed_backward(Tensor grad, Tensor assignment, Tensor cu_seqlens, SymInt[] k, SymInt[] m, *, "
      "str merge=\"residual\") -> Tensor");
  m.def("merge_backward(Tensor grad, Tensor assignment, SymInt k, SymInt m, *, str merge=\"residual\") -> Tensor");
  // For tools, on CUDA alone: how many clusters of 1, 2, ... 16 blocks the GPU that x is on runs at the same time.
  m.def("_clusters(Tensor x) -> int[]");
}
