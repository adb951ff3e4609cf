// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/matmul.h"

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

Layout make_layout(DType type, int64_t rows, int64_t columns, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  KIVI_CUBLAS_VERIFY(cublasLtMatrixLayoutCreate(&layout, data_type_of(type), uint64_t(rows),
                                                uint64_t(columns), stride));
  return Layout(layout);
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
  cublasLtMatmulDesc_t operation = nullptr;
  KIVI_CUBLAS_VERIFY(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.operation.reset(operation);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  KIVI_CUBLAS_VERIFY(cublasLtMatmulDescSetAttribute(
      plan.operation.get(), CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
  if (!bias.empty()) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    KIVI_CUBLAS_VERIFY(cublasLtMatmulDescSetAttribute(
        plan.operation.get(), CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    const cudaDataType_t type = data_type_of(bias.dtype);
    KIVI_CUBLAS_VERIFY(cublasLtMatmulDescSetAttribute(
        plan.operation.get(), CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
  }
  plan.a = make_layout(w.dtype, k, n, w.row_stride);
  plan.b = make_layout(x.dtype, k, t, x.row_stride);
  plan.c = make_layout(out.dtype, n, t, out.row_stride);

  cublasLtMatmulPreference_t created = nullptr;
  KIVI_CUBLAS_VERIFY(cublasLtMatmulPreferenceCreate(&created));
  const Preference preference(created);
  KIVI_CUBLAS_VERIFY(cublasLtMatmulPreferenceSetAttribute(
      preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kMatmulWorkspaceBytes,
      sizeof kMatmulWorkspaceBytes));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  KIVI_CUBLAS_VERIFY(cublasLtMatmulAlgoGetHeuristic(
      handle_.get(), plan.operation.get(), plan.a.get(), plan.b.get(), plan.c.get(), plan.c.get(),
      preference.get(), 1, &best, &found));
  KIVI_VERIFY(found == 1);
  plan.algorithm = best.algo;
  return plans_.emplace(key, std::move(plan)).first->second;
}

void Matmul::run(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
                 cudaStream_t stream) {
  if (x.rows() == 0) return;
  const Plan& plan = plan_of(x, w, bias, out);
  if (!bias.empty()) {
    KIVI_CUBLAS_VERIFY(cublasLtMatmulDescSetAttribute(
        plan.operation.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.data, sizeof bias.data));
  }
  const float one = 1, zero = 0;
  KIVI_CUBLAS_VERIFY(cublasLtMatmul(handle_.get(), plan.operation.get(), &one, w.data, plan.a.get(),
                                    x.data, plan.b.get(), &zero, out.data, plan.c.get(), out.data,
                                    plan.c.get(), &plan.algorithm, workspace_.get(),
                                    kMatmulWorkspaceBytes, stream));
}

}  // namespace kivi::cuda
