#define VISIONZIP_ISA avx512
#include "kernels_body.h"
