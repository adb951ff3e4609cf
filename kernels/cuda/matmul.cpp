#include "kernels/cuda/matmul.h"

#include <cstdio>
#include <cstdlib>

#include "base/verify.h"

namespace kivi::cuda {
namespace {

void verify_blas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  std::fprintf(stderr, "%s: %s\n", call, cublasLtGetStatusString(status));
  std::abort();
}
#define KIVI_BLAS_VERIFY(call) verify_blas((call), #call)

cudaDataType_t data_type_of(DType t) {
  return t == DType::f32 ? CUDA_R_32F : t == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

cublasLtMatrixLayout_t make_layout(DType type, int64_t rows, int64_t columns, int64_t stride) {
  cublasLtMatrixLayout_t layout;
  KIVI_BLAS_VERIFY(cublasLtMatrixLayoutCreate(&layout, data_type_of(type), uint64_t(rows),
                                              uint64_t(columns), stride));
  return layout;
}

}  // namespace

// In cuBLAS's column-major words: C [n, t] = op(A) B with A = W^T stored [k, n], B = x^T [k, t].
struct Matmul::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  Plan() = default;
  Plan(Plan&& o) noexcept
      : operation(std::exchange(o.operation, nullptr)),
        a(std::exchange(o.a, nullptr)),
        b(std::exchange(o.b, nullptr)),
        c(std::exchange(o.c, nullptr)),
        algorithm(o.algorithm) {}
  ~Plan() {
    if (a != nullptr) cublasLtMatrixLayoutDestroy(a);
    if (b != nullptr) cublasLtMatrixLayoutDestroy(b);
    if (c != nullptr) cublasLtMatrixLayoutDestroy(c);
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
  }
};

Matmul::Matmul() {
  KIVI_BLAS_VERIFY(cublasLtCreate(&handle_));
  KIVI_VERIFY(cudaMalloc(&workspace_, kMatmulWorkspaceBytes) == cudaSuccess);
}

Matmul::~Matmul() {
  plans_.clear();
  cudaFree(workspace_);
  cublasLtDestroy(handle_);
}

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
  KIVI_BLAS_VERIFY(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  KIVI_BLAS_VERIFY(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                                  &transposed, sizeof transposed));
  if (!bias.empty()) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    KIVI_BLAS_VERIFY(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                    &epilogue, sizeof epilogue));
    const cudaDataType_t type = data_type_of(bias.dtype);
    KIVI_BLAS_VERIFY(cublasLtMatmulDescSetAttribute(
        plan.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
  }
  plan.a = make_layout(w.dtype, k, n, w.row_stride);
  plan.b = make_layout(x.dtype, k, t, x.row_stride);
  plan.c = make_layout(out.dtype, n, t, out.row_stride);

  cublasLtMatmulPreference_t preference;
  KIVI_BLAS_VERIFY(cublasLtMatmulPreferenceCreate(&preference));
  KIVI_BLAS_VERIFY(
      cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                           &kMatmulWorkspaceBytes, sizeof kMatmulWorkspaceBytes));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  KIVI_BLAS_VERIFY(cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.a, plan.b, plan.c,
                                                  plan.c, preference, 1, &best, &found));
  cublasLtMatmulPreferenceDestroy(preference);
  KIVI_VERIFY(found == 1);
  plan.algorithm = best.algo;
  return plans_.emplace(key, std::move(plan)).first->second;
}

void Matmul::run(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
                 cudaStream_t stream) {
  if (x.rows() == 0) return;
  const Plan& plan = plan_of(x, w, bias, out);
  if (!bias.empty()) {
    KIVI_BLAS_VERIFY(cublasLtMatmulDescSetAttribute(
        plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.data, sizeof bias.data));
  }
  const float one = 1, zero = 0;
  KIVI_BLAS_VERIFY(cublasLtMatmul(handle_, plan.operation, &one, w.data, plan.a, x.data, plan.b,
                                  &zero, out.data, plan.c, out.data, plan.c, &plan.algorithm,
                                  workspace_, kMatmulWorkspaceBytes, stream));
}

}  // namespace kivi::cuda
