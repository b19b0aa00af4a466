#define VISIONZIP_ISA avx2
#include "cpu/kernels/kernels_body.h"
