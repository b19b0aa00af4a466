#define VISIONZIP_ISA avx2
#include "kernels_body.h"
