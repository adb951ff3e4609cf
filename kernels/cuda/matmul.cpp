// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/matmul.h"

#include <algorithm>

#include "base/verify.h"

namespace kivi::cuda {
namespace {

cudaDataType_t data_type_of(DType t) {
  return t == DType::f32 ? CUDA_R_32F : t == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

struct LayoutDeleter {
  void operator()(cublasLtMatrixLayout_t layout) const {
    KIVI_CUBLAS_VERIFY(cublasLtMatrixLayoutDestroy(layout));
  }
};
struct OperationDeleter {
  void operator()(cublasLtMatmulDesc_t operation) const {
    KIVI_CUBLAS_VERIFY(cublasLtMatmulDescDestroy(operation));
  }
};
struct PreferenceDeleter {
  void operator()(cublasLtMatmulPreference_t preference) const {
    KIVI_CUBLAS_VERIFY(cublasLtMatmulPreferenceDestroy(preference));
  }
};
template <class Handle, class Deleter>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Deleter>;
using Layout = Owned<cublasLtMatrixLayout_t, LayoutDeleter>;
using Operation = Owned<cublasLtMatmulDesc_t, OperationDeleter>;
using Preference = Owned<cublasLtMatmulPreference_t, PreferenceDeleter>;

Layout make_layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  KIVI_CUBLAS_VERIFY(
      cublasLtMatrixLayoutCreate(&layout, type, uint64_t(rows), uint64_t(columns), stride));
  return Layout(layout);
}

template <class T>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  KIVI_CUBLAS_VERIFY(
      cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value));
}

// W^T times x, with fp32 sums, and a bias where there is one.
Operation make_operation(const Tensor& bias) {
  cublasLtMatmulDesc_t created = nullptr;
  KIVI_CUBLAS_VERIFY(cublasLtMatmulDescCreate(&created, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Operation operation(created);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (!bias.empty()) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type_of(bias.dtype));
  }
  return operation;
}

// Tiles of 512 rows of W are cuBLASLt 13.0's first offer for a few numbers of rows of x. They take
// 1.3 to 1.6 times as long as its next offer (docs/design/decisions/015-cublaslt-first-choice.md).
bool has_tall_tiles(const cublasLtMatmulAlgo_t& algorithm) {
  int tile = 0;
  size_t written = 0;
  KIVI_CUBLAS_VERIFY(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID,
                                                          &tile, sizeof tile, &written));
  return tile == CUBLASLT_MATMUL_TILE_512x64 ||
         (tile >= CUBLASLT_MATMUL_TILE_512x8 && tile <= CUBLASLT_MATMUL_TILE_512x128);
}

}  // namespace

void HandleDeleter::operator()(cublasLtHandle_t handle) const {
  KIVI_CUBLAS_VERIFY(cublasLtDestroy(handle));
}

// In cuBLAS's column-major words: C [n, t] = op(A) B with A = W^T stored [k, n], B = x^T [k, t].
struct Matmul::Plan {
  Operation operation;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
};

Matmul::Matmul() : workspace_(make_device_memory(kMatmulWorkspaceBytes)) {
  cublasLtHandle_t handle = nullptr;
  KIVI_CUBLAS_VERIFY(cublasLtCreate(&handle));
  handle_.reset(handle);
}

Matmul::~Matmul() = default;

const Matmul::Plan& Matmul::plan_of(const Tensor& x, const Tensor& w, const Tensor& bias,
                                    const Tensor& out) {
  const int64_t t = x.rows(), k = x.shape[1], n = w.rows();
  const Key key{t,
                n,
                k,
                x.row_stride,
                w.row_stride,
                out.row_stride,
                int(x.dtype),
                int(out.dtype),
                !bias.empty()};
  if (auto it = plans_.find(key); it != plans_.end()) return it->second;

  Plan plan;
  plan.operation = make_operation(bias);
  plan.a = make_layout(data_type_of(w.dtype), k, n, w.row_stride);
  plan.b = make_layout(data_type_of(x.dtype), k, t, x.row_stride);
  plan.c = make_layout(data_type_of(out.dtype), n, t, out.row_stride);
  const bool found = choose(plan, kMatmulWorkspaceBytes);
  KIVI_VERIFY(found);
  return plans_.emplace(key, std::move(plan)).first->second;
}

// Takes the first algorithm that cuBLASLt offers within a workspace of `workspace_bytes`, but one
// with tall tiles only if there is no other. Returns false if it offers none.
bool Matmul::choose(Plan& plan, size_t workspace_bytes) const {
  cublasLtMatmulPreference_t created = nullptr;
  KIVI_CUBLAS_VERIFY(cublasLtMatmulPreferenceCreate(&created));
  const Preference preference(created);
  KIVI_CUBLAS_VERIFY(cublasLtMatmulPreferenceSetAttribute(
      preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
      sizeof workspace_bytes));
  constexpr int kOffers = 8;
  cublasLtMatmulHeuristicResult_t offers[kOffers]{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_.get(), plan.operation.get(), plan.a.get(), plan.b.get(), plan.c.get(), plan.c.get(),
      preference.get(), kOffers, offers, &found);
  if (status != CUBLAS_STATUS_SUCCESS || found < 1) return false;
  auto* const end = offers + found;
  auto* const best = std::find_if(offers, end, [](const auto& offer) {
    return offer.state == CUBLAS_STATUS_SUCCESS && !has_tall_tiles(offer.algo);
  });
  plan.algorithm = (best == end ? offers[0] : *best).algo;
  return true;
}

const Matmul::Plan* Matmul::plan_of_e4m3(int64_t rows, const Weight& w, const Tensor& bias,
                                         const Tensor& out) {
  const Key8 key{rows,           w.rows,         w.columns,
                 out.row_stride, int(out.dtype), bias.empty() ? -1 : int(bias.dtype)};
  if (auto it = plans_e4m3_.find(key); it != plans_e4m3_.end()) return it->second.get();
  auto plan = std::make_unique<Plan>();
  plan->operation = make_operation(bias);
  set(plan->operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t(1));
  for (const auto mode : {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE})
    set(plan->operation, mode, int32_t(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F));
  // The heuristic wants scales to be there, and looks at their alignment at most.
  for (const auto pointer :
       {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER})
    set(plan->operation, pointer, static_cast<const void*>(w.scales));
  plan->a = make_layout(CUDA_R_8F_E4M3, w.columns, w.rows, w.columns);
  plan->b = make_layout(CUDA_R_8F_E4M3, w.columns, rows, w.columns);
  plan->c = make_layout(data_type_of(out.dtype), w.rows, rows, out.row_stride);
  // An algorithm that counts its tiles in the workspace has a memset before it, which no kernel
  // overlaps with.
  if (!choose(*plan, 0) && !choose(*plan, kMatmulWorkspaceBytes)) plan.reset();
  return plans_e4m3_.emplace(key, std::move(plan)).first->second.get();
}

bool Matmul::has_e4m3(int64_t rows, const Weight& w, const Tensor& bias, const Tensor& out) {
  return plan_of_e4m3(rows, w, bias, out) != nullptr;
}

void Matmul::run_e4m3(const Rows8& x, const Weight& w, const Tensor& bias, const Tensor& out,
                      cudaStream_t stream) {
  const Plan* plan = plan_of_e4m3(x.rows, w, bias, out);
  KIVI_VERIFY(plan != nullptr);
  set(plan->operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(w.scales));
  set(plan->operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(x.scales));
  if (!bias.empty()) set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data);
  const float one = 1, zero = 0;
  KIVI_CUBLAS_VERIFY(cublasLtMatmul(handle_.get(), plan->operation.get(), &one, w.codes,
                                    plan->a.get(), x.codes, plan->b.get(), &zero, out.data,
                                    plan->c.get(), out.data, plan->c.get(), &plan->algorithm,
                                    workspace_.get(), kMatmulWorkspaceBytes, stream));
}

void Matmul::run(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
                 cudaStream_t stream) {
  if (x.rows() == 0) return;
  const Plan& plan = plan_of(x, w, bias, out);
  if (!bias.empty()) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data);
  const float one = 1, zero = 0;
  KIVI_CUBLAS_VERIFY(cublasLtMatmul(handle_.get(), plan.operation.get(), &one, w.data, plan.a.get(),
                                    x.data, plan.b.get(), &zero, out.data, plan.c.get(), out.data,
                                    plan.c.get(), &plan.algorithm, workspace_.get(),
                                    kMatmulWorkspaceBytes, stream));
}

}  // namespace kivi::cuda
