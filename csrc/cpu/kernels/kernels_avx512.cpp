#define VISIONZIP_ISA avx512
#include "cpu/kernels/kernels_body.h"
