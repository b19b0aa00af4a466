#define VISIONZIP_ISA avx512bf16
#include "kernels_body.h"
