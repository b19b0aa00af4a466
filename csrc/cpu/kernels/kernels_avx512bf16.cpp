#define VISIONZIP_ISA avx512bf16
#include "cpu/kernels/kernels_body.h"
