// Products of matrices whose elements lie in the lanes of a warp (emulation.h).
#include <cstring>
#include <string>

#include "block.h"
#include "cuda_emulation/current.h"
#include "cuda_emulation/emulation.h"

namespace cuda_emulation {

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

void require_matrix_products(const char* what, Site site) {
  if (compute_capability() < 80) fail(std::string(what) + " needs compute capability 8.0", site);
  const Thread& thread = *current.thread;
  if (thread.block->threads.size() < (thread.warp() + 1) * 32) fail(std::string(what) + " needs all 32 lanes", site);
}

struct LoadArgument {
  uint32_t* to;
  const char* row;
};

void complete_load(void** arguments, unsigned) {
  const auto of = [arguments](unsigned l) -> LoadArgument& { return *static_cast<LoadArgument*>(arguments[l]); };
  for (unsigned l = 0; l < 32; l++) {
    for (unsigned i = 0; i < 4; i++) {
      const char* row = of(8 * i + l / 4).row;
      std::memcpy(of(l).to + i, row + sizeof(uint32_t) * (l % 4), sizeof(uint32_t));
    }
  }
}

struct ProductArgument {
  float* d;
  const uint32_t *a, *b;
  int depth;
  float (*element_of)(uint16_t);
};

// Elements number 2 i and 2 i + 1 of a lane's 32-bit registers.
float element(const ProductArgument& argument, const uint32_t* registers, int i) {
  return argument.element_of(static_cast<uint16_t>(registers[i / 2] >> 16 * (i % 2)));
}

void complete_product(void** arguments, unsigned) {
  const auto of = [arguments](int l) -> ProductArgument& { return *static_cast<ProductArgument*>(arguments[l]); };
  const int depth = of(0).depth;
  float a[16][16], b[8][16];  // b transposed
  for (int l = 0; l < 32; l++) {
    // Registers of a: (rows, columns) 0 and 0, 8 and 0, 0 and 8, 8 and 8.
    for (int i = 0; i < depth / 2; i++) {
      a[l / 4 + i / 2 % 2 * 8][2 * (l % 4) + i % 2 + i / 4 * 8] = element(of(l), of(l).a, i);
    }
    for (int i = 0; i < depth / 4; i++) b[l / 4][2 * (l % 4) + i % 2 + i / 2 * 8] = element(of(l), of(l).b, i);
  }
  for (int l = 0; l < 32; l++) {
    for (int i = 0; i < 4; i++) {
      float& sum = of(l).d[i];
      for (int c = 0; c < depth; c++) sum += a[l / 4 + i / 2 * 8][c] * b[2 * (l % 4) + i % 2][c];
    }
  }
}

}  // namespace

int compute_capability() { return current.thread->block->launch.settings.arch; }

void load_matrices(uint32_t (&to)[4], const void* row, Site site) {
  require_matrix_products("ldmatrix", site);
  check_aligned(row, 16, site);
  if (!current.thread->block->memory->holds(row)) fail("ldmatrix: the row is not in this block's shared memory", site);
  races::access(row, 16, races::Access::kRead, races::origin(site));
  LoadArgument argument{to, static_cast<const char*>(row)};
  run_collective(kAllLanes, Collective::kMatrix, &argument, complete_load, site);
}

void multiply_matrices(float (&d)[4], const uint32_t* a, const uint32_t* b, int depth, float (*element_of)(uint16_t),
                       Site site) {
  require_matrix_products("mma", site);
  ProductArgument argument{d, a, b, depth, element_of};
  run_collective(kAllLanes, Collective::kMatrix, &argument, complete_product, site);
}

}  // namespace cuda_emulation
