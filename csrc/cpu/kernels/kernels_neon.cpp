#define VISIONZIP_ISA neon
#include "cpu/kernels/kernels_body.h"
